"""How a step is paid for: by the ledger when privacy is on, not at all when it is off.

The order of calls in a round is the guarantee: reserve, charge, release, (publish), commit.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Protocol

from fedlearn.errors import ChargeMismatch, ResumeRefused
from fedlearn.ledger import Reservation, Rule, RunAccount
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

    def charge(self, bounded: BoundedSum, task: bytes) -> Charge | None:
        """Durably charge the reserved step for this sum, before any noise is drawn; ``task`` is the task's digest."""
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

    def finish(self) -> None:
        """Record that no step will follow."""
        ...

    def checkpoint(self) -> bytes:
        """Return a signed checkpoint of the ledger, JSON; nothing where there is no ledger."""
        ...


class LedgerSpend:
    """Pays from a run's account for a mechanism.

    Args:
        account: the training's, in its open ledger.
        mechanism: adds the noise. None where no step is left.
        sampling_key: the run's secret; stays here, nodes get one round's key. None where no step is left.
        l2_clip_norm: decides the grid of the sums.
        tally: says, outside the run directory, which charges were made.
    """

    def __init__(
        self,
        account: RunAccount,
        mechanism: Mechanism | None,
        sampling_key: SamplingKey | None,
        l2_clip_norm: float,
        *,
        tally: Tally,
    ) -> None:
        self._account = account
        self._mechanism = mechanism
        self._sampling_key = sampling_key
        self._tally = tally
        self._reservation: Reservation | None = None
        self.grid_step: float | None = grid_step(l2_clip_norm)

    @property
    def charges(self) -> int:
        """Charges of this training, lost ones included."""
        return len(self._account.charged_digests())

    @property
    def affordable(self) -> int:
        """Charges that the plan still pays for."""
        return self._account.remaining()

    def reserve(self, step: int) -> tuple[int, RoundKey]:
        """Reserve ``step``, or take up its open reservation.

        The attempt is the number of charges the step has had: only a charged attempt that was lost gets a fresh
        cohort, any other retry repeats the draw exactly.
        """
        if self._sampling_key is None:
            raise ResumeRefused(f"step {step}: the sampling key is gone; start a new run.")
        attempt = self._account.next_attempt(step)
        self._reservation = self._account.reserve(step, attempt)
        return attempt, self._sampling_key.round_key(step, attempt)

    def charge(self, bounded: BoundedSum, task: bytes) -> Charge:
        """Charge the reserved step, bound to the task and to this sum; noted outside the run directory too."""
        reservation, self._reservation = self._reservation, None
        if reservation is None:
            raise ChargeMismatch(f"step {bounded.step}: nothing is reserved; reserve before a charge.")
        charge = self._account.charge(reservation, task.hex(), bounded.digest)
        self._tally.record(self._account.charged_digests())
        return charge

    def release(self, bounded: BoundedSum, charge: Charge | None) -> NoisyMean:
        """Add noise under the charge."""
        if self._mechanism is None:
            raise ChargeMismatch(f"step {bounded.step}: the run has ended; no further step is released.")
        return self._mechanism.release(bounded, _paid(charge))

    def commit(self, charge: Charge | None, published: str) -> None:
        """Record the publication."""
        self._account.commit(_paid(charge), published)

    def abandon(self, reason: str) -> None:
        """Void the open reservation, if there is one."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            self._account.void(reservation, reason)

    def finish(self) -> None:
        """Close the account; what the plan did not use returns to the budget."""
        if not self._account.closed:
            self._account.close(Rule.COMPLETED, "every step was made, or is not paid for any more")

    def checkpoint(self) -> bytes:
        """Return a signed checkpoint of the ledger."""
        return self._account.checkpoint().to_json().encode("ascii")


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

    def charge(self, bounded: BoundedSum, task: bytes) -> None:
        """Nothing to pay."""
        del bounded, task

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

    def finish(self) -> None:
        """Nothing to record."""

    def checkpoint(self) -> bytes:
        """Nothing is written."""
        return b""
