"""What private steps on a phone promise about one of its examples; apart from the guarantee about whole devices.

The relation is zero-out: one example's clipped gradient is replaced by zeros wherever it stood. Batches are shuffled,
not Poisson-sampled, so no amplification is claimed: in each epoch of each round its phone joins, an example is in one
batch, whose sum of clipped gradients it moves by at most the clip. That is one Gaussian release of mu = 1 / z an epoch,
and all of them together one of mu = sqrt(participations * epochs) / z, also when later steps depend on earlier ones
(Dong, Roth and Su 2022, corollary 3.3). What the phone sends is a function of these releases.
"""

from __future__ import annotations

import math
from typing import Final

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.gaussian import gaussian_epsilon, total_mu

EXAMPLE_LEVEL: Final = (
    "example-level: what one phone's update shows about one of its examples to whoever sees the update; noise in "
    "simulation is seeded, so this is a simulation of the guarantee"
)
"""The words that go with every figure of this module."""


def example_mu(noise_multiplier: float, participations: int, epochs: int) -> float:
    """Return mu of everything one phone sends, for one of its examples; rounded up.

    Args:
        noise_multiplier: z, std of a step's noise over the clip of one example's gradient; finite, > 0.
        participations: rounds the phone joins, >= 0; a bound holds for every phone that joins no more.
        epochs: passes over its examples in a round, >= 1.

    Raises:
        InvalidSpend: an argument is out of range.
    """
    if not (math.isfinite(noise_multiplier) and noise_multiplier > 0):
        raise InvalidSpend(f"client.example_privacy.noise_multiplier={noise_multiplier}: must be finite and > 0.")
    for name, value, least in (("participations", participations, 0), ("epochs", epochs, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidSpend(f"{name}={value!r}: must be an integer >= {least}.")
    return total_mu([(math.nextafter(1 / noise_multiplier, math.inf), participations * epochs)])


def example_epsilon(noise_multiplier: float, participations: int, epochs: int, delta: float) -> float:
    """Return the epsilon of everything one phone sends, for one of its examples; exact and rounded up.

    Args:
        noise_multiplier: as in ``example_mu``.
        participations: as in ``example_mu``.
        epochs: as in ``example_mu``.
        delta: in (0, 1).

    Raises:
        InvalidSpend: an argument is out of range.
    """
    return gaussian_epsilon(example_mu(noise_multiplier, participations, epochs), delta)
