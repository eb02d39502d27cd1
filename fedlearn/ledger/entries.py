"""What a ledger holds: typed, append-only entries, and the exact bytes they are stored as."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Final

from fedlearn.errors import FedlearnError, LedgerDamaged, OutOfRange
from fedlearn.ledger.scope import Scope
from fedlearn.privacy.events import Event, event_from_json, event_to_json

GENESIS: Final = "0" * 64

_ENTRY: Final = b"fedlearn ledger entry v2\n"
_GRANT: Final = b"fedlearn ledger grant v1\n"
_RECOVERY: Final = b"fedlearn ledger recovery v1\n"
_HEX: Final = re.compile(r"[0-9a-f]*")

canonical: Callable[[Any], str] = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
).encode
"""Returns the one JSON text of a value: sorted keys, no spaces, ASCII, floats by their shortest exact form."""


class Rule(StrEnum):
    """Why a run was closed."""

    COMPLETED = "completed"
    """Every step it was to make was made, or could not be made any more."""

    DATA_INDEPENDENT = "data_independent"
    """A rule that was fixed before the run and looks at no data ended it."""

    JUDGEMENT = "judgement"
    """Somebody decided, perhaps because of what was released: what was planned stays spent."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A part of a run's plan: ``count`` releases of ``event``; 1 for an event that covers all its steps.

    Raises:
        OutOfRange: the count is not an integer >= 1.
    """

    event: Event
    count: int

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise OutOfRange(f"count={self.count!r}: must be an integer >= 1.")


@dataclass(frozen=True, slots=True)
class Opened:
    """The ledger was made for this scope. Always the first entry, never another."""

    sequence: int
    time: float
    scope: Scope


@dataclass(frozen=True, slots=True)
class Granted:
    """The authority allows (purpose, epoch) this epsilon at the scope's delta; replaces an earlier grant."""

    sequence: int
    time: float
    purpose: str
    epoch: str
    epsilon: float
    authority_signature: str


@dataclass(frozen=True, slots=True)
class RunOpened:
    """A run was admitted; its whole plan is reserved."""

    sequence: int
    time: float
    run: str
    purpose: str
    epoch: str
    plan: tuple[Planned, ...]
    config_digest: str


@dataclass(frozen=True, slots=True)
class Reserved:
    """An attempt at a step of a part was announced; its cohort may be drawn, no noise yet."""

    sequence: int
    time: float
    run: str
    part: int
    step: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Voided:
    """A reservation ended without a charge: the entry states that no noise was drawn for it."""

    sequence: int
    time: float
    reservation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Charged:
    """One release was paid for one sum. Counts for ever, whether or not it was published."""

    sequence: int
    time: float
    reservation: int
    run: str
    part: int
    step: int
    task_digest: str
    sum_digest: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The release paid for by a charge was published."""

    sequence: int
    time: float
    charge: int
    published_digest: str


@dataclass(frozen=True, slots=True)
class RunClosed:
    """The run ends: nothing is charged to it any more."""

    sequence: int
    time: float
    run: str
    rule: Rule
    reason: str


@dataclass(frozen=True, slots=True)
class Recovered:
    """The ledger had lost entries: every event that any open run planned counts as spent, and those runs are closed."""

    sequence: int
    time: float
    reason: str
    authority_signature: str


Entry = Opened | Granted | RunOpened | Reserved | Voided | Charged | Committed | RunClosed | Recovered

KINDS: Final[dict[str, type[Entry]]] = {
    "opened": Opened,
    "granted": Granted,
    "run_opened": RunOpened,
    "reserved": Reserved,
    "voided": Voided,
    "charged": Charged,
    "committed": Committed,
    "run_closed": RunClosed,
    "recovered": Recovered,
}
KIND_OF: Final = {cls: kind for kind, cls in KINDS.items()}


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored; ``signature`` is the operator's over ``signed_bytes(hash)``."""

    sequence: int
    kind: str
    body: str
    hash: str
    signature: str


def to_row(entry: Entry, previous_hash: str, sign: Callable[[bytes], str]) -> Row:
    """Return the stored form of an entry, chained to the one before it and signed."""
    kind = KIND_OF[type(entry)]
    body = canonical(_body(entry))
    digest = _chain(previous_hash, kind, body)
    return Row(entry.sequence, kind, body, digest, sign(signed_bytes(digest)))


def from_row(row: Row, previous_hash: str) -> Entry:
    """Read an entry back and check its place in the chain; its signature is checked by ``signing``.

    Raises:
        LedgerDamaged: the hash, the kind or a field is not what an intact ledger holds.
    """
    if row.hash != _chain(previous_hash, row.kind, row.body):
        raise LedgerDamaged("its hash does not follow from the entry before it")
    try:
        entry = _READERS[row.kind](json.loads(row.body))
        same = canonical(_body(entry)) == row.body  # else a field is of another type, or the text has another form
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, FedlearnError) as error:
        raise LedgerDamaged(f"it cannot be read ({error})") from error
    _require_types(entry)
    if not same:
        raise LedgerDamaged("it is not in its one canonical form")
    if entry.sequence != row.sequence:
        raise LedgerDamaged(f"it says it is number {entry.sequence}")
    return entry


def signed_bytes(digest: str) -> bytes:
    """Return what the operator signs for the entry with this hash."""
    return _ENTRY + digest.encode("ascii")


def grant_bytes(ledger_id: str, entry: Granted) -> bytes:
    """Return what the authority signs for a grant."""
    return grant_message(ledger_id, entry.sequence, entry.purpose, entry.epoch, entry.epsilon)


def grant_message(ledger_id: str, sequence: int, purpose: str, epoch: str, epsilon: float) -> bytes:
    """Return what the authority signs for a grant that becomes entry ``sequence``."""
    body = {
        "ledger_id": ledger_id,
        "sequence": sequence,
        "purpose": purpose,
        "epoch": epoch,
        "epsilon": epsilon,
    }
    return _GRANT + canonical(body).encode("ascii")


def recovery_message(ledger_id: str, sequence: int, reason: str) -> bytes:
    """Return what the authority signs for a recovery that becomes entry ``sequence``."""
    return _RECOVERY + canonical({"ledger_id": ledger_id, "sequence": sequence, "reason": reason}).encode("ascii")


def is_hex(value: object, digits: int) -> bool:
    """Return whether ``value`` is text of that many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and _HEX.fullmatch(value) is not None


def _body(entry: Entry) -> dict[str, object]:
    body: dict[str, object] = {name: getattr(entry, name) for name in entry.__slots__}
    if isinstance(entry, Opened):
        body["scope"] = {name: getattr(entry.scope, name) for name in entry.scope.__slots__}
    elif isinstance(entry, RunOpened):
        body["plan"] = [{"event": json.loads(event_to_json(part.event)), "count": part.count} for part in entry.plan]
    return body


def _opened(body: dict[str, Any]) -> Opened:
    return Opened(**{**body, "scope": Scope.from_json(body["scope"])})


def _run_opened(body: dict[str, Any]) -> RunOpened:
    return RunOpened(**{**body, "plan": tuple(_planned(part) for part in body["plan"])})


def _planned(body: Mapping[str, Any]) -> Planned:
    if set(body) != {"event", "count"}:
        raise ValueError(f"plan fields {sorted(body)}")
    return Planned(event_from_json(canonical(body["event"])), body["count"])


def _run_closed(body: dict[str, Any]) -> RunClosed:
    return RunClosed(**{**body, "rule": Rule(body["rule"])})


def _plain(cls: type[Entry]) -> Callable[[dict[str, Any]], Entry]:
    build: Callable[..., Entry] = cls
    return lambda body: build(**body)


_READERS: Final[dict[str, Callable[[dict[str, Any]], Entry]]] = {
    **{kind: _plain(cls) for kind, cls in KINDS.items()},
    "opened": _opened,
    "run_opened": _run_opened,
    "run_closed": _run_closed,
}
_TYPES: Final[dict[str, type]] = {"int": int, "float": float, "str": str}
_TYPED: Final = {
    cls: tuple((item.name, _TYPES[str(item.type)]) for item in fields(cls) if str(item.type) in _TYPES)
    for cls in KINDS.values()
}


def _require_types(entry: Entry) -> None:
    for name, wanted in _TYPED[type(entry)]:
        value = getattr(entry, name)
        if type(value) is not wanted:
            raise LedgerDamaged(f"its field {name}={value!r} is not a {wanted.__name__}")


def _chain(previous_hash: str, kind: str, body: str) -> str:
    return hashlib.sha256(f"{previous_hash}\n{kind}\n{body}".encode()).hexdigest()
