"""How a step is paid for: by the ledger when privacy is on, not at all when it is off.

The order of calls in a round is the guarantee: reserve, charge, release, (publish), commit.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Protocol

from fedlearn.errors import ChargeMismatch, ResumeRefused
from fedlearn.ledger import Ledger, Reservation
from fedlearn.privacy.events import PoissonGaussian
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.mechanisms import Mechanism, unprotected_mean
from fedlearn.privacy.sampling import RoundKey, SamplingKey
from fedlearn.privacy.tally import Tally
from fedlearn.types import BoundedSum, Charge, NoisyMean


class Spend(Protocol):
    """Pays for steps, one at a time."""

    grid_step: float | None

    @property
    def charges(self) -> int:
        """Charges made so far, lost ones included."""
        ...

    @property
    def affordable(self) -> int | None:
        """Charges that still fit the budget, or None for no limit."""
        ...

    def reserve(self, step: int) -> tuple[int, RoundKey]:
        """Durably reserve ``step``; return the attempt number and the key that draws its cohort."""
        ...

    def charge(self, bounded: BoundedSum) -> Charge | None:
        """Durably charge the reserved step for this sum, before any noise is drawn."""
        ...

    def release(self, bounded: BoundedSum, charge: Charge | None) -> NoisyMean:
        """Return what may leave the private part."""
        ...

    def commit(self, charge: Charge | None, published: str) -> None:
        """Record that the model with digest ``published`` was made public under ``charge``."""
        ...

    def abandon(self, reason: str) -> None:
        """Give back a reservation whose sum was never charged: states that no noise was drawn."""
        ...


class LedgerSpend:
    """Pays from a ledger for a mechanism.

    Args:
        ledger: the training's ledger, open.
        mechanism: adds the noise.
        event: what one step costs.
        sampling_key: the run's secret; stays here, nodes get one round's key. None where no step is left.
        l2_clip_norm: decides the grid of the sums.
        tally: says, outside the run directory, which charges were made.
    """

    def __init__(
        self,
        ledger: Ledger,
        mechanism: Mechanism,
        event: PoissonGaussian,
        sampling_key: SamplingKey | None,
        l2_clip_norm: float,
        *,
        tally: Tally,
    ) -> None:
        self._ledger = ledger
        self._mechanism = mechanism
        self._event = event
        self._sampling_key = sampling_key
        self._tally = tally
        self._reservation: Reservation | None = None
        self.grid_step: float | None = grid_step(l2_clip_norm)

    @property
    def charges(self) -> int:
        """Charges of this training, lost ones included."""
        return sum(count for _, count in self._ledger.spent_events())

    @property
    def affordable(self) -> int:
        """Charges that still fit the budget, and the number that was planned."""
        return affordable(self._ledger)

    def reserve(self, step: int) -> tuple[int, RoundKey]:
        """Reserve ``step``, or take up its open reservation.

        The attempt is the number of charges the step has had: only a charged attempt that was lost gets a fresh
        cohort, any other retry repeats the draw exactly.
        """
        if self._sampling_key is None:
            raise ResumeRefused(f"step {step}: the sampling key is gone; start a new run.")
        attempt = self._ledger.next_attempt(step)
        self._reservation = self._ledger.reserve(step, attempt)
        return attempt, self._sampling_key.round_key(step, attempt)

    def charge(self, bounded: BoundedSum) -> Charge:
        """Charge the reserved step, bound to this sum's digest; recorded outside the run directory too."""
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            raise ChargeMismatch(f"step {bounded.step}: nothing is reserved; reserve before a charge.")
        charge = self._ledger.charge(reservation, self._event, bounded.digest)
        self._tally.record(self._ledger.charged_digests())
        return charge

    def release(self, bounded: BoundedSum, charge: Charge | None) -> NoisyMean:
        """Add noise under the charge."""
        return self._mechanism.release(bounded, _paid(charge))

    def commit(self, charge: Charge | None, published: str) -> None:
        """Record the publication."""
        self._ledger.commit(_paid(charge), published)

    def abandon(self, reason: str) -> None:
        """Void the open reservation, if there is one."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            self._ledger.void(reservation, reason)


def affordable(ledger: Ledger) -> int:
    """Return how many charges still fit both the budget and the number that was planned."""
    return max(0, min(ledger.budget.steps - len(ledger.charged_digests()), ledger.remaining_charges()))


def _paid(charge: Charge | None) -> Charge:
    if charge is None:
        raise ChargeMismatch("a private release without a charge.")
    return charge


class NoSpend:
    """``privacy=none``: nothing is protected, nothing is paid. Cohorts are drawn from the seed.

    Args:
        seed: of the simulation.
        denominator: the constant a sum is divided by.
    """

    def __init__(self, seed: int, denominator: float) -> None:
        self._seed = seed
        self._denominator = denominator
        self.grid_step: float | None = None

    @property
    def charges(self) -> int:
        """None are made."""
        return 0

    @property
    def affordable(self) -> int | None:
        """Nothing limits what costs nothing."""
        return None

    def reserve(self, step: int) -> tuple[int, RoundKey]:
        """Return the seeded draw of this step."""
        packed = struct.pack("<qq", self._seed, step)
        return 0, RoundKey(hashlib.blake2b(packed, digest_size=32, person=b"fedlearn-nopriv").digest())

    def charge(self, bounded: BoundedSum) -> None:
        """Nothing to pay."""
        del bounded

    def release(self, bounded: BoundedSum, charge: Charge | None) -> NoisyMean:
        """Return the plain mean."""
        del charge
        return unprotected_mean(bounded, self._denominator)

    def commit(self, charge: Charge | None, published: str) -> None:
        """Nothing to record."""
        del charge, published

    def abandon(self, reason: str) -> None:
        """Nothing to give back."""
        del reason
