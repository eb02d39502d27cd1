"""Whose budget a ledger keeps, fixed when it is made."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from fedlearn.errors import OutOfRange
from fedlearn.privacy.events import NeighboringRelation, Unit
from fedlearn.privacy.filter import RdpFilter

_KEY: Final = re.compile(r"[0-9a-f]{64}")
_ID: Final = re.compile(r"[0-9a-f]{32}")
MAX_TEXT: Final = 4096


class Kind(StrEnum):
    """Where the population comes from."""

    SIMULATED = "simulated"
    """Files that the engineer holds."""

    ENROLLED = "enrolled"
    """Real devices: one ledger for all runs over them."""


class GateKind(StrEnum):
    """By which rule runs are admitted under a cap."""

    PLAN = "plan"
    """One run ever, whose plan the accountant of record certifies."""

    ZCDP = "zcdp"
    """Any number of runs, chosen adaptively, by the sum of their zCDP parameters (Feldman and Zrnic 2021)."""

    RDP = "rdp"
    """Any number of runs, chosen adaptively, by the sum of their Renyi divergences at one order fixed beforehand."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A budget and the keys that keep it.

    Args:
        ledger_id: 32 random hexadecimal digits.
        population: whose data, in words.
        kind: simulated or enrolled.
        unit: whose participation is hidden.
        neighboring_relation: adjacency; a scope has one.
        epsilon: cap at ``delta`` over everything that is ever spent, > 0.
        delta: in (0, 1).
        gate: how runs are admitted.
        order: of the Renyi divergence, > 1; only, and always, with the gate ``rdp``.
        operator_key: Ed25519 public key that signs every entry, 64 hexadecimal digits.
        authority_key: likewise, signs grants and recoveries; None: there are none.

    Raises:
        OutOfRange: a field is out of its range; the message names it.
    """

    ledger_id: str
    population: str
    kind: Kind
    unit: Unit
    neighboring_relation: NeighboringRelation
    epsilon: float
    delta: float
    gate: GateKind
    order: float | None
    operator_key: str
    authority_key: str | None

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.ledger_id):
            raise OutOfRange(f"ledger_id={self.ledger_id!r}: must be 32 lower-case hexadecimal digits.")
        require_text("population", self.population)
        require_cap(self.epsilon, self.delta)
        object.__setattr__(self, "epsilon", float(self.epsilon))
        object.__setattr__(self, "delta", float(self.delta))
        if (self.gate is GateKind.RDP) != (self.order is not None):
            raise OutOfRange(f"order={self.order}: the gate rdp needs one and no other gate has one.")
        if self.order is not None and not (math.isfinite(self.order) and self.order > 1):
            raise OutOfRange(f"order={self.order}: must be finite and > 1.")
        for name, key in (("operator_key", self.operator_key), ("authority_key", self.authority_key)):
            if key is not None and not _KEY.fullmatch(key):
                raise OutOfRange(f"{name}={key!r}: must be 64 lower-case hexadecimal digits, an Ed25519 public key.")

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Scope:
        """Read a scope back; raises ValueError, TypeError or OutOfRange if it is none."""
        if set(body) != set(cls.__slots__):
            raise ValueError(f"scope fields {sorted(body)}")
        numbers = [body["epsilon"], body["delta"], *([] if body["order"] is None else [body["order"]])]
        texts = [body["ledger_id"], body["operator_key"]]
        texts += [] if body["authority_key"] is None else [body["authority_key"]]
        if not all(type(value) is float for value in numbers) or not all(type(value) is str for value in texts):
            raise TypeError("a scope field of a wrong type")
        return cls(
            **{
                **body,
                "kind": Kind(body["kind"]),
                "unit": Unit(body["unit"]),
                "neighboring_relation": NeighboringRelation(body["neighboring_relation"]),
                "gate": GateKind(body["gate"]),
            }
        )


def new_scope(
    population: str,
    epsilon: float,
    delta: float,
    operator_key: str,
    *,
    kind: Kind = Kind.SIMULATED,
    neighboring_relation: NeighboringRelation = NeighboringRelation.ADD_OR_REMOVE,
    gate: GateKind | None = None,
    authority_key: str | None = None,
) -> Scope:
    """Return a scope with a fresh random id; see ``Scope`` for the arguments.

    Args:
        gate: by default that of ``default_gate``. The order of ``rdp`` follows from epsilon and delta alone.

    Raises:
        OutOfRange: a field is out of its range.
    """
    chosen = default_gate(neighboring_relation) if gate is None else gate
    require_cap(epsilon, delta)
    return Scope(
        ledger_id=secrets.token_hex(16),
        population=population,
        kind=kind,
        unit=Unit.DEVICE,
        neighboring_relation=neighboring_relation,
        epsilon=float(epsilon),
        delta=float(delta),
        gate=chosen,
        order=float(RdpFilter.order_for(epsilon, delta)) if chosen is GateKind.RDP else None,
        operator_key=operator_key,
        authority_key=authority_key,
    )


def default_gate(relation: NeighboringRelation) -> GateKind:
    """Return the gate of a shared scope: zCDP needs no order but credits no sampling, RDP credits it."""
    return GateKind.ZCDP if relation is NeighboringRelation.ZERO_OUT else GateKind.RDP


def require_cap(epsilon: float, delta: float) -> None:
    """Raise OutOfRange unless epsilon is finite and > 0 and delta in (0, 1)."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise OutOfRange(f"epsilon={epsilon}: must be finite and > 0, e.g. 3.0.")
    if not 0 < delta < 1:
        raise OutOfRange(f"delta={delta}: must be in (0, 1), e.g. 1e-6.")


def require_text(name: str, value: str) -> None:
    """Raise OutOfRange unless ``value`` is text of 1 to 4,096 characters."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise OutOfRange(f"{name}: must be text of 1 to {MAX_TEXT} characters.")
