"""Keys, a small policy, and everything that is signed around it; and ways to tamper with all of it."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.policy.document import (
    Budget,
    DataType,
    DeviceCaps,
    Feature,
    MechanismFloors,
    Policy,
    Population,
    PopulationKind,
    Purpose,
    PurposeKind,
    Recipient,
    RecipientKind,
    Source,
)
from fedlearn.policy.dsse import POLICY_TYPE, ROSTER_TYPE, STATUS_TYPE, sign_envelope
from fedlearn.policy.load import policy_bytes
from fedlearn.policy.roster import Roster, roster_bytes
from fedlearn.policy.status import Status, status_bytes
from fedlearn.policy.times import format_time

NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z
DAY = 86_400.0


@dataclass(frozen=True)
class Key:
    """A signer made from a number: the same one in every run."""

    number: int
    _key: Ed25519PrivateKey = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", Ed25519PrivateKey.from_private_bytes(self.number.to_bytes(32, "big")))

    @property
    def public(self) -> str:
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        return self._key.sign(message).hex()


ROOT, ANNE, BEN, CLARA, STATUS_KEY, OPERATOR, STRANGER = (Key(number) for number in range(1, 8))
ROOTS = (ROOT.public,)

POLICY = Policy(
    name="places",
    version=3,
    expires=format_time(NOW + 300 * DAY),
    population=Population("town", PopulationKind.ENROLLED, 50_000),
    purposes=(
        Purpose("places", PurposeKind.RECOMMEND, "Suggest places. 推荐餐馆。", 2, ("surface", "com.example.maps")),
        Purpose("places-training", PurposeKind.TRAIN, "Send a small, noised change.", 1, ("operator",)),
    ),
    recipients=(
        Recipient("surface", RecipientKind.SURFACE, "Search page", ""),
        Recipient("com.example.maps", RecipientKind.APP, "Maps", ""),
        Recipient("operator", RecipientKind.OPERATOR, "Example Ltd", OPERATOR.public),
    ),
    sources=(
        Source(
            "com.example.chat",
            "Chat Ltd",
            DataType.MESSAGE_CONTENT,
            ("places", "places-training"),
            "own_app",
            "drop",
            "off",
            False,
            30,
        ),
        Source("com.example.maps", "Maps Ltd", DataType.CHOICE, ("places",), "owner_import", "drop", "off", False, 7),
    ),
    features=(
        Feature("words", (DataType.MESSAGE_CONTENT,), "How well words fit.", 1),
        Feature("near_own", (DataType.CHOICE,), "Whether it is near.", 1),
        Feature("rating", (), "The catalogue's rating.", 1),
    ),
    mechanism=MechanismFloors(("independent", "blt", "banded", "tree"), 0.5, 4.0, 1000, 20, 5, 100),
    budget=Budget(3.0, 1e-6),
    device=DeviceCaps(8.0, 1e-6, 100_000, 5_000_000, 585, 4),
)
ROSTER = Roster(5, format_time(NOW + 100 * DAY), 2, (ANNE.public, BEN.public, CLARA.public), (STATUS_KEY.public,))
STATUS = Status(9, format_time(NOW - 3600), ("a" * 64,), ("b" * 64,))


def policy_envelope(policy: Policy = POLICY, signers: tuple[Key, ...] = (ANNE, BEN)) -> bytes:
    return sign_envelope(POLICY_TYPE, policy_bytes(policy), signers)


def roster_envelope(roster: Roster = ROSTER, signers: tuple[Key, ...] = (ROOT,)) -> bytes:
    return sign_envelope(ROSTER_TYPE, roster_bytes(roster), signers)


def status_envelope(status: Status = STATUS, signers: tuple[Key, ...] = (STATUS_KEY,)) -> bytes:
    return sign_envelope(STATUS_TYPE, status_bytes(status), signers)


def enrolled(policy: Policy) -> Policy:
    """The same policy for real phones."""
    return replace(policy, population=replace(policy.population, kind=PopulationKind.ENROLLED))


def leaves(body: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON document, inner ones too."""
    if path:
        yield path
    for key in body if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else ():
        yield from leaves(body[key], (*path, key))


def altered(body: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy of ``body`` in which one place is changed."""
    copy = json.loads(json.dumps(body))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = change(at[path[-1]])
    return copy


def _other(value: Any, chance: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return chance.choice([value + 1, -value - 1, value * 2 + 1, str(value), True, None])
    if isinstance(value, str):
        return chance.choice([value + "x", value[:-1] + "é", value.upper() + "1", "", 7, None])
    if isinstance(value, list):
        return chance.choice([[*value, value[0] if value else "x"], value[1:] if value else ["x"], None])
    return chance.choice([{**value, "surplus": 1}, {}, None])


def tampered(envelope: bytes, chance: random.Random) -> bytes:
    """One change to an envelope that holds exactly as many signatures as are needed. It is never the same bytes."""
    while (data := _tampered(envelope, chance)) == envelope:
        pass
    return data


def _tampered(envelope: bytes, chance: random.Random) -> bytes:
    body = json.loads(envelope)
    kind = chance.randrange(9)
    if kind <= 1:
        data = bytearray(envelope)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        return bytes(data)
    if kind == 2:
        data = bytearray(envelope)
        at = chance.randrange(len(data))
        return bytes(data[:at] + chance.choice([b"", b"\x00", b"A", b"="]) + data[at + chance.randrange(1, 5) :])
    if kind == 3:
        payload = json.loads(base64.b64decode(body["payload"]))
        place = chance.choice(list(leaves(payload)))
        payload = altered(payload, place, lambda value: _other(value, chance))
        body["payload"] = base64.b64encode(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).decode()
    elif kind == 4:
        body["signatures"].pop(chance.randrange(len(body["signatures"])))
    elif kind == 5:
        body["signatures"].append(dict(chance.choice(body["signatures"])))
    elif kind == 6:  # a signature under a key that does not count, in the place of one that does
        pae = b"DSSEv1 %d %b " % (len(body["payloadType"]), body["payloadType"].encode())
        payload = base64.b64decode(body["payload"])
        signature = bytes.fromhex(STRANGER.sign(pae + b"%d %b" % (len(payload), payload)))
        body["signatures"][0] = {"keyid": STRANGER.public, "sig": base64.b64encode(signature).decode()}
    elif kind == 7:
        place = chance.choice(list(leaves(body)))
        body = altered(body, place, lambda value: _other(value, chance))
    else:
        first = body["signatures"][0]
        body["signatures"] = [first, {"keyid": chance.choice([first["keyid"].upper(), "x", ""]), "sig": first["sig"]}]
        if len(json.loads(envelope)["signatures"]) == 1:
            body["signatures"][0] = {**first, "keyid": first["keyid"][::-1]}
    return json.dumps(body, separators=(",", ":")).encode()
