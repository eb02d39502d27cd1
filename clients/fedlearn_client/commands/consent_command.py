"""``fedlearn-device consent``: what the settings screen does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, Final

from fedlearn.errors import ConsentRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import ConsentStub
from fedlearn_client.commands.connection import TIMEOUT_S, add_connection, connected, moment, parser, show
from fedlearn_client.commands.words import AGES, DATA_TYPES, data_type_word

_WHY: Final = {
    "stopped": "a signed status stopped the policy: wait for a newer status",
    "text_changed": "the policy has other words now: grant again",
    "disputed": "somebody claims this data",
    "minor": "the owner is not known to be an adult",
    "not_registered": "the app has registered no such stream yet",
    "restricted": "the app withholds it",
    "expired": "the policy has expired",
}
_FIELDS: Final = ("app", "data_type", "purpose", "recipient")


def main(arguments: Sequence[str]) -> int:
    """List the switches, grant, withdraw, or say who the owner is."""
    given = _parse(arguments)
    with connected(given.device) as channel:
        consent = ConsentStub(channel)
        if given.action in {"grant", "withdraw"}:
            _set(consent, given)
            return 0
        if given.action == "owner":
            off = given.personal == "off"
            consent.SetOwner(pb.SetOwnerRequest(age=AGES[given.age], personal_off=off), timeout=TIMEOUT_S)
        listed = consent.List(pb.ListRequest(), timeout=TIMEOUT_S)
    show(listed, given.json, lambda: iter([_owner(listed)]) if given.action == "owner" else _lines(listed))
    return 0


def _parse(arguments: Sequence[str]) -> Any:
    made = parser("consent", "The switches of the settings screen: what is on, grant, withdraw. Times are UTC.")
    actions = made.add_subparsers(dest="action", metavar="{list,grant,withdraw,owner}")
    add_connection(actions.add_parser("list", help="every switch (default)"), default=False)
    for name, words in (("grant", "switch one on"), ("withdraw", "switch one off; destroys what was derived")):
        action = actions.add_parser(name, help=words, description=f"{words.capitalize()}.")
        action.add_argument("app", help="whose data")
        action.add_argument("data_type", choices=sorted(DATA_TYPES), metavar="data_type", help=", ".join(DATA_TYPES))
        action.add_argument("purpose", help="as `consent list` names it")
        action.add_argument("recipient", help="an app or surface that gets rankings, or the operator")
        add_connection(action, default=False)
    owner = actions.add_parser("owner", help="facts that consent depends on")
    owner.add_argument("--age", choices=sorted(AGES), required=True, help="unknown counts as a minor")
    owner.add_argument("--personal", choices=["on", "off"], default="on", help="off: everybody gets the same ranking")
    add_connection(owner, default=False)
    return made.parse_args(arguments)


def _set(consent: ConsentStub, given: Any) -> None:
    """Switch with the words that are on this screen: they are printed first."""
    wanted = (given.app, DATA_TYPES[given.data_type], given.purpose, given.recipient)
    switch = _find(consent.List(pb.ListRequest(), timeout=TIMEOUT_S), wanted)
    on = given.action == "grant"
    if on and not given.json:
        print(f'"{switch.text}"')  # noqa: T201 - the command's own output
    app, data_type, purpose, recipient = wanted
    request = pb.SetRequest(app=app, data_type=data_type, purpose=purpose, recipient=recipient, on=on)
    request.text_version = switch.current_text_version
    reply = consent.Set(request, timeout=TIMEOUT_S)
    now = _find(consent.List(pb.ListRequest(), timeout=TIMEOUT_S), wanted)
    show(reply, given.json, lambda: _outcome(reply, now))


def _find(listed: pb.ListReply, wanted: tuple[str, int, str, str]) -> pb.Grant:
    """Return a switch; raise ConsentRefused that names the first word which fits none, and those that would."""
    left = list(listed.grants)
    if not left:
        raise ConsentRefused("no switches: no task bundle is installed, and its policy says which there are.")
    for name, value in zip(_FIELDS, wanted, strict=True):
        fitting = [grant for grant in left if getattr(grant, name) == value]
        if not fitting:
            known = dict.fromkeys(
                data_type_word(grant.data_type) if name == "data_type" else str(getattr(grant, name)) for grant in left
            )
            raise ConsentRefused(f"{name}: the policy has no such switch; there is {', '.join(known)}.")
        left = fitting
    return left[0]


def _outcome(reply: pb.SetReply, now: pb.Grant) -> Iterator[str]:
    if now.on:
        yield f"on, but {_why(now)}" if now.blocked else "on"
    elif reply.receipt.statement:
        yield f"off; receipt signed by {reply.receipt.public_key.hex()[:16]}:"
        yield json.dumps(json.loads(reply.receipt.statement), indent=1, ensure_ascii=False)
    else:
        yield "off; it was off before"


def _lines(listed: pb.ListReply) -> Iterator[str]:
    yield _owner(listed)
    if not listed.grants:
        yield "no switches: no task bundle is installed, and its policy says which there are"
    everywhere = {grant.blocked for grant in listed.grants} == {"expired"}
    if everywhere:
        yield f"nothing can be on: {_WHY['expired']}"
    for (app, data_type), grants in groupby(listed.grants, lambda grant: (grant.app, grant.data_type)):
        yield f"\n{app} {data_type_word(data_type)}"
        for grant in grants:
            since = f"  since {moment(grant.time_ms)}" if grant.time_ms else ""
            yield f"  {'on ' if grant.on else 'off'}  {grant.purpose} {grant.recipient}{since}"
            # what the lines above say of all need not be said of each
            if grant.blocked and (grant.on or grant.blocked not in {"minor", "expired"}):
                yield f"       {_why(grant)}"


def _why(grant: pb.Grant) -> str:
    return f"{'no effect' if grant.on else 'cannot be on'}: {_WHY.get(grant.blocked, grant.blocked)}"


def _owner(listed: pb.ListReply) -> str:
    age = pb.AgeClass.Name(listed.age).removeprefix("AGE_CLASS_").lower()
    barred = "" if listed.age == pb.AGE_CLASS_ADULT else " (nothing can be on: consent owner --age adult)"
    personal = "OFF: everybody gets the same ranking, nothing trains" if listed.personal_off else "on"
    return f"owner: {age}{barred}; personal {personal}"
