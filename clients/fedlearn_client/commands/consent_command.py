"""``fedlearn-device consent``: what the settings screen does."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from fedlearn.errors import ConsentRefused
from fedlearn.proto import device_pb2 as pb
from fedlearn.proto.device_pb2_grpc import ConsentStub
from fedlearn_client.commands.connection import TIMEOUT_S, connected, moment, parser, show, table
from fedlearn_client.commands.words import AGES, DATA_TYPES


def main(arguments: Sequence[str]) -> int:
    """List the switches, grant, withdraw, or say who the owner is."""
    given = _parser().parse_args(arguments)
    with connected(given.device) as channel:
        consent = ConsentStub(channel)
        if given.action == "owner":
            off = given.personal == "off"
            consent.SetOwner(pb.SetOwnerRequest(age=AGES[given.age], personal_off=off), timeout=TIMEOUT_S)
        elif given.action in {"grant", "withdraw"}:
            return _set(consent, given)
        listed = consent.List(pb.ListRequest(), timeout=TIMEOUT_S)
    show(listed, given.json, lambda: _lines(listed))
    return 0


def _parser() -> argparse.ArgumentParser:
    made = parser("consent", "The switches of the settings screen: what is on, grant, withdraw.")
    actions = made.add_subparsers(dest="action", metavar="{list,grant,withdraw,owner}")
    actions.add_parser("list", help="every switch (default)")
    for name, words in (("grant", "switch one on"), ("withdraw", "switch one off; destroys what was derived")):
        action = actions.add_parser(name, help=words)
        action.add_argument("app")
        action.add_argument("data_type", choices=sorted(DATA_TYPES))
        action.add_argument("purpose")
        action.add_argument("recipient")
    owner = actions.add_parser("owner", help="facts that consent depends on")
    owner.add_argument("--age", choices=sorted(AGES), required=True)
    owner.add_argument("--personal", choices=["on", "off"], default="on", help="off: everybody gets the same ranking")
    return made


def _set(consent: ConsentStub, given: argparse.Namespace) -> int:
    """Switch with the words that are on this screen: they are printed first."""
    wanted = (given.app, DATA_TYPES[given.data_type], given.purpose, given.recipient)
    listed = consent.List(pb.ListRequest(), timeout=TIMEOUT_S)
    found = [g for g in listed.grants if (g.app, g.data_type, g.purpose, g.recipient) == wanted]
    if not found:
        raise ConsentRefused("no such switch; `fedlearn-device consent list` shows those that the policy has.")
    on = given.action == "grant"
    if on and not given.json:
        print(f'"{found[0].text}"')  # noqa: T201 - the command's own output
    app, data_type, purpose, recipient = wanted
    reply = consent.Set(
        pb.SetRequest(
            app=app,
            data_type=data_type,
            purpose=purpose,
            recipient=recipient,
            on=on,
            text_version=found[0].current_text_version,
        ),
        timeout=TIMEOUT_S,
    )
    show(reply, given.json, lambda: _outcome(reply, on))
    return 0


def _outcome(reply: pb.SetReply, on: bool) -> Iterator[str]:
    if on:
        yield "on"
    elif reply.receipt.statement:
        yield f"off; receipt signed by {reply.receipt.public_key.hex()[:16]}:"
        yield json.dumps(json.loads(reply.receipt.statement), indent=1, ensure_ascii=False)
    else:
        yield "off; it was off before"


def _lines(listed: pb.ListReply) -> Iterator[str]:
    age = pb.AgeClass.Name(listed.age).removeprefix("AGE_CLASS_").lower()
    barred = "" if listed.age == pb.AGE_CLASS_ADULT else " (nothing can be on)"
    yield f"owner: {age}{barred}; personal {'OFF' if listed.personal_off else 'on'}"
    rows = [
        {
            "": "on" if grant.on and not grant.blocked else f"blocked: {grant.blocked}" if grant.on else "off",
            "app": grant.app,
            "data": pb.DataType.Name(grant.data_type).removeprefix("DATA_TYPE_").lower(),
            "purpose": grant.purpose,
            "recipient": grant.recipient,
            "since": moment(grant.time_ms),
        }
        for grant in listed.grants
    ]
    yield table(rows)
