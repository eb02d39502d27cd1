"""A second, independent accountant beside the one of record: Opacus's PRV (Gopi, Lee and Wutschitz 2021)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Final

from fedlearn.errors import InvalidSpend, MissingDependency
from fedlearn.privacy.events import PoissonGaussian

PRV_EPS_ERROR: Final = 0.01
"""Width that Opacus's PRV adds to its estimate: its figure is an upper bound that lies about so much over the truth."""


def opacus_prv(spend: Sequence[tuple[PoissonGaussian, int]], delta: float) -> float:
    """Return Opacus's PRV upper bound on the epsilon of all events together.

    Args:
        spend: Poisson-sampled events and how often each happened, >= 1.
        delta: in (0, 1).

    Returns:
        Epsilon > 0; over the truth by ``PRV_EPS_ERROR``, up to its own errors.

    Raises:
        InvalidSpend: an event of another kind, a count < 1, or Opacus gave no number.
        MissingDependency: Opacus is not installed.
    """
    for event, count in spend:
        if not isinstance(event, PoissonGaussian) or count < 1:
            raise InvalidSpend(f"{event} x {count}: Opacus's PRV takes Poisson-sampled events with a count >= 1 only.")
    try:
        from opacus.accountants import PRVAccountant  # noqa: PLC0415  # optional, loads torch
    except ImportError as error:
        raise MissingDependency("The cross-check needs Opacus: pip install 'fedlearn[lab]'") from error
    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sampling_probability, count) for event, count in spend]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its search for a domain warns about orders that it does not report
        value = float(accountant.get_epsilon(delta, eps_error=PRV_EPS_ERROR))
    if not (math.isfinite(value) and value >= 0):
        raise InvalidSpend(f"Opacus's PRV gave {value} at delta={delta}.")
    return value
