"""What a ledger holds: typed, append-only entries, and the rules by which one may follow another."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Final

from fedlearn.errors import InvalidSpend, LedgerDamaged, OutOfRange
from fedlearn.privacy.events import NeighboringRelation, PoissonGaussian, Unit, event_from_json, event_to_json
from fedlearn.privacy.plan import PrivacyPlan

GENESIS: Final = "0" * 64


@dataclass(frozen=True, slots=True)
class Budget:
    """What a run may spend, fixed when its ledger is made.

    Args:
        run_id: the run this ledger belongs to.
        epsilon: cap at ``delta`` over every charge, released or not.
        delta: in (0, 1).
        event: what one release spends.
        steps: releases the run plans; all are reserved when the ledger is made.
        unit: whose participation is hidden.
        neighboring_relation: adjacency of the budget; a ledger has one.
    """

    run_id: str
    epsilon: float
    delta: float
    event: PoissonGaussian
    steps: int
    unit: Unit = Unit.DEVICE
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise OutOfRange(f"privacy.epsilon={self.epsilon}: must be finite and > 0, e.g. 3.0.")
        if not 0 < self.delta < 1:
            raise OutOfRange(f"privacy.delta={self.delta}: must be in (0, 1).")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise OutOfRange(f"rounds={self.steps!r}: must be an integer >= 1.")
        object.__setattr__(self, "epsilon", float(self.epsilon))

    @classmethod
    def of(cls, plan: PrivacyPlan, run_id: str) -> Budget:
        """Return the budget of a run that executes ``plan``."""
        return cls(
            run_id=run_id,
            epsilon=plan.epsilon,
            delta=plan.delta,
            event=plan.event,
            steps=plan.steps,
            unit=plan.unit,
            neighboring_relation=plan.neighboring_relation,
        )


@dataclass(frozen=True, slots=True)
class Opened:
    """The ledger was made for this budget. Always the first entry, never another."""

    sequence: int
    time: float
    budget: Budget


@dataclass(frozen=True, slots=True)
class Reserved:
    """An attempt at a step was announced; its cohort may be drawn, no noise yet."""

    sequence: int
    time: float
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
    """One event was spent on one sum. Counts for ever, whether or not the release was published."""

    sequence: int
    time: float
    reservation: int
    step: int
    event: PoissonGaussian
    sum_digest: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The release paid for by a charge was published."""

    sequence: int
    time: float
    charge: int
    published_digest: str


Entry = Opened | Reserved | Voided | Charged | Committed

_KINDS: Final[dict[str, type[Entry]]] = {
    "opened": Opened,
    "reserved": Reserved,
    "voided": Voided,
    "charged": Charged,
    "committed": Committed,
}


@dataclass(frozen=True, slots=True)
class Row:
    """An entry as it is stored."""

    sequence: int
    kind: str
    body: str
    hash: str


def to_row(entry: Entry, previous_hash: str) -> Row:
    """Return the stored form of an entry, chained to the one before it."""
    kind = next(name for name, cls in _KINDS.items() if type(entry) is cls)
    body = asdict(entry)
    if isinstance(entry, Opened):
        body["budget"]["event"] = event_to_json(entry.budget.event)
    if isinstance(entry, Charged):
        body["event"] = event_to_json(entry.event)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Row(entry.sequence, kind, text, _chain(previous_hash, kind, text))


def from_row(row: Row, previous_hash: str) -> Entry:
    """Read an entry back and check its place in the chain.

    Raises:
        LedgerDamaged: the hash, the kind or a field is not what an intact ledger holds.
    """
    if row.hash != _chain(previous_hash, row.kind, row.body):
        raise LedgerDamaged("its hash does not follow from the entry before it")
    try:
        body = json.loads(row.body)
        cls = _KINDS[row.kind]
        if cls is Opened:
            body["budget"] = _budget(body["budget"])
        if cls is Charged:
            body["event"] = event_from_json(body["event"])
        entry = cls(**body)
    except (ValueError, KeyError, TypeError, InvalidSpend) as error:
        raise LedgerDamaged(f"it cannot be read ({error})") from error
    _require_types(entry)
    if entry.sequence != row.sequence:
        raise LedgerDamaged(f"it says it is number {entry.sequence}")
    return entry


_INTEGERS: Final = frozenset({"sequence", "step", "attempt", "reservation", "charge"})
_TEXTS: Final = frozenset({"reason", "sum_digest", "published_digest"})


def _require_types(entry: Entry) -> None:
    for item in fields(entry):
        value = getattr(entry, item.name)
        wanted = int if item.name in _INTEGERS else str if item.name in _TEXTS else float
        if item.name not in {"budget", "event"} and type(value) is not wanted:
            raise LedgerDamaged(f"its field {item.name}={value!r} is not a {wanted.__name__}")


def _budget(body: dict[str, object]) -> Budget:
    if set(body) != {field.name for field in fields(Budget)}:
        raise ValueError(f"budget fields {sorted(body)}")
    run_id, epsilon, delta, steps = body["run_id"], body["epsilon"], body["delta"], body["steps"]
    if not (isinstance(run_id, str) and isinstance(epsilon, float) and isinstance(delta, float)):
        raise TypeError("budget field of a wrong type")
    if not isinstance(steps, int):
        raise TypeError("budget field of a wrong type")
    return Budget(
        run_id=run_id,
        epsilon=epsilon,
        delta=delta,
        event=event_from_json(str(body["event"])),
        steps=steps,
        unit=Unit(str(body["unit"])),
        neighboring_relation=NeighboringRelation(str(body["neighboring_relation"])),
    )


def _chain(previous_hash: str, kind: str, body: str) -> str:
    return hashlib.sha256(f"{previous_hash}\n{kind}\n{body}".encode()).hexdigest()
