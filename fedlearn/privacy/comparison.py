"""Which mechanism leaves the least noise for given participation bounds, and what state it costs."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.privacy.error import max_error, mean_error
from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.sensitivity import squared_sensitivity
from fedlearn.privacy.shipped import MECHANISMS, best_factorization
from fedlearn.privacy.tree_sensitivity import MOST_STEPS


@dataclass(frozen=True, slots=True)
class MechanismRow:
    """One mechanism at noise multiplier 1 over its own sensitivity, clip norm 1: all rows give the same guarantee.

    Args:
        mechanism: name, as in ``privacy.mechanism``.
        factorization: what it would use.
        sens2: squared sensitivity.
        max_error: largest std of a prefix sum's noise, per coordinate.
        mean_error: root of the mean variance of the prefix sums' noise.
        state_floats: floats of noise state per model parameter.
    """

    mechanism: str
    factorization: Factorization
    sens2: float
    max_error: float
    mean_error: float
    state_floats: int


def compare_mechanisms(steps: int, min_separation: int, max_participations: int) -> tuple[MechanismRow, ...]:
    """Return one row per mechanism; the tree's only up to 16,384 steps, where computing its sensitivity ends.

    Args:
        steps: n >= 1.
        min_separation: b >= 1, y - x.
        max_participations: k in [1, ceil(n / b)].

    Raises:
        InvalidSpend: an argument is out of range.
    """
    rows = []
    for mechanism in MECHANISMS:
        factorization = best_factorization(mechanism, steps, min_separation, max_participations)
        if isinstance(factorization, Tree) and steps > MOST_STEPS:
            continue
        sens2 = squared_sensitivity(factorization, steps, min_separation, max_participations)
        rows.append(
            MechanismRow(
                mechanism,
                factorization,
                sens2,
                max_error(factorization, steps, sens2),
                mean_error(factorization, steps, sens2),
                state_floats(factorization, steps),
            )
        )
    return tuple(rows)


def state_floats(factorization: Factorization, steps: int) -> int:
    """Return the floats per parameter that the noise of later steps depends on.

    Those of earlier noise that bands still reach, of buffers, or of one open block for each size up to ``steps``.
    """
    match factorization:
        case Toeplitz():
            return len(factorization.coefficients) - 1
        case Blt():
            return len(factorization.decay)
        case Tree():
            return steps.bit_length()
