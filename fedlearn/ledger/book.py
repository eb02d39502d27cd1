"""The rules of the ledger as a pure state machine: one set, used to write a new entry and to check an old file."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from fedlearn.errors import ChargeMismatch
from fedlearn.ledger.entries import Budget, Charged, Committed, Entry, Opened, Reserved, Voided
from fedlearn.privacy.events import PoissonGaussian

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(slots=True)
class Book:
    """Everything that follows from the entries so far."""

    budget: Budget | None = None
    length: int = 0
    open_reservation: Reserved | None = None
    charges: dict[int, Charged] = field(default_factory=dict)
    commits: dict[int, Committed] = field(default_factory=dict)
    charges_of_step: Counter[int] = field(default_factory=Counter)
    committed_steps: set[int] = field(default_factory=set)
    events: Counter[PoissonGaussian] = field(default_factory=Counter)

    def apply(self, entry: Entry) -> None:
        """Take the next entry into account; leaves the book unchanged if the entry may not follow.

        Raises:
            ChargeMismatch: it may not; the message says why.
        """
        self.check(entry)
        match entry:
            case Opened():
                self.budget = entry.budget
            case Reserved():
                self.open_reservation = entry
            case Voided():
                self.open_reservation = None
            case Charged():
                self.open_reservation = None
                self.charges[entry.sequence] = entry
                self.charges_of_step[entry.step] += 1
                self.events[entry.event] += 1
            case Committed():
                self.commits[entry.charge] = entry
                self.committed_steps.add(self.charges[entry.charge].step)
        self.length += 1

    def check(self, entry: Entry) -> None:
        """Raise ChargeMismatch if ``entry`` may not be the next one."""
        if entry.sequence != self.length:
            raise ChargeMismatch(f"entry {entry.sequence}: number {self.length} is next.")
        if not math.isfinite(entry.time):
            raise ChargeMismatch(f"entry {entry.sequence}: time {entry.time} is not finite.")
        if isinstance(entry, Opened) != (self.length == 0):
            raise ChargeMismatch(f"entry {entry.sequence}: a ledger begins with its budget and has one.")
        match entry:
            case Opened():
                pass
            case Reserved():
                self._check_reserved(entry)
            case Voided():
                self._check_open(entry.reservation, "voided")
            case Charged():
                self._check_charged(entry)
            case Committed():
                self._check_committed(entry)

    def _check_reserved(self, entry: Reserved) -> None:
        if self.open_reservation is not None:
            held = self.open_reservation
            raise ChargeMismatch(f"step {held.step} attempt {held.attempt} is still reserved: charge or void it first.")
        if entry.step < 0:
            raise ChargeMismatch(f"step={entry.step}: must be >= 0.")
        if entry.step in self.committed_steps:
            raise ChargeMismatch(f"step {entry.step} was released and committed; a step is released once.")
        if entry.attempt != self.charges_of_step[entry.step]:
            raise ChargeMismatch(
                f"step {entry.step} attempt {entry.attempt}: the attempt must be {self.charges_of_step[entry.step]}, "
                "the charges made for the step; it advances after a charge and only then."
            )

    def _check_open(self, reservation: int, verb: str) -> Reserved:
        held = self.open_reservation
        if held is None or held.sequence != reservation:
            raise ChargeMismatch(
                f"reservation {reservation} cannot be {verb}: it is not open; a charge is final and never voided."
            )
        return held

    def _check_charged(self, entry: Charged) -> None:
        held = self._check_open(entry.reservation, "charged")
        if held.step != entry.step:
            raise ChargeMismatch(f"reservation {entry.reservation} is for step {held.step}, not {entry.step}.")
        _check_digest("sum_digest", entry.sum_digest)

    def _check_committed(self, entry: Committed) -> None:
        charge = self.charges.get(entry.charge)
        if charge is None:
            raise ChargeMismatch(f"commit of {entry.charge}: there is no such charge.")
        if entry.charge in self.commits:
            raise ChargeMismatch(f"commit of {entry.charge}: it was committed before.")
        if charge.step in self.committed_steps:
            raise ChargeMismatch(f"commit of {entry.charge}: step {charge.step} was committed under another charge.")
        _check_digest("published_digest", entry.published_digest)


def _check_digest(name: str, value: str) -> None:
    if not _DIGEST.fullmatch(value):
        raise ChargeMismatch(f"{name}: must be 64 lower-case hexadecimal digits.")
