"""PLD against the accountant of Gopi, Lee and Wutschitz 2021 (prv-accountant 0.2.0), which shares no code with it."""

from __future__ import annotations

import math
import random
import warnings
from dataclasses import dataclass

import pytest
from prv_accountant import PoissonSubsampledGaussianMechanism, PRVAccountant

from fedlearn.privacy.accountants import SEARCHING, epsilon
from fedlearn.privacy.events import PoissonGaussian

pytestmark = pytest.mark.timeout(3600)

EPS_ERROR = 0.01
RELATIVE = 2e-4
MOST_REFUSED = 0.05


@dataclass(frozen=True)
class Configuration:
    """One run with an epsilon in [0.5, 20] by the coarse grid."""

    z: float
    q: float
    steps: int
    delta: float


def configurations(count: int, seed: int) -> list[Configuration]:
    rng = random.Random(seed)
    found: list[Configuration] = []
    while len(found) < count:
        drawn = Configuration(
            z=math.exp(rng.uniform(math.log(0.5), math.log(8))),
            q=math.exp(rng.uniform(math.log(5e-4), math.log(0.5))),
            steps=round(math.exp(rng.uniform(math.log(5), math.log(6000)))),
            delta=10 ** rng.uniform(-9, -4),
        )
        # A cheap look first: without sampling the std of the loss is sqrt(T) / z, with it about q times that.
        if drawn.q * math.sqrt(drawn.steps) / drawn.z > 6:
            continue
        event = PoissonGaussian(drawn.z, drawn.q)
        if 0.5 <= epsilon([(event, drawn.steps)], drawn.delta, discretization=SEARCHING) <= 20:
            found.append(drawn)
    return found


def prv(drawn: Configuration) -> tuple[float, float, float]:
    """Return its lower bound, estimate and upper bound."""
    mechanism = PoissonSubsampledGaussianMechanism(noise_multiplier=drawn.z, sampling_probability=drawn.q)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accountant = PRVAccountant(
            prvs=[mechanism], eps_error=EPS_ERROR, delta_error=drawn.delta / 1000, max_self_compositions=[drawn.steps]
        )
        low, estimate, high = accountant.compute_epsilon(delta=drawn.delta, num_self_compositions=[drawn.steps])
    return float(low), float(estimate), float(high)


@pytest.mark.parametrize(("count", "seed"), [(4, 1), pytest.param(220, 2, marks=pytest.mark.long)])
def test_pld_equals_prv(count: int, seed: int) -> None:
    worst, refused = 0.0, []
    for drawn in configurations(count, seed):
        try:
            low, estimate, high = prv(drawn)
        except (ValueError, RuntimeError, FloatingPointError) as error:
            refused.append((drawn, str(error)[:80]))
            continue
        ours = epsilon([(PoissonGaussian(drawn.z, drawn.q), drawn.steps)], drawn.delta)
        assert low <= ours <= high, drawn
        worst = max(worst, abs(ours / estimate - 1))
        assert abs(ours / estimate - 1) <= RELATIVE, (drawn, ours, estimate)
    print(f"{count} configurations: largest relative difference {worst:.2e}; prv-accountant refused {refused}")
    assert len(refused) <= MOST_REFUSED * count
    assert worst > 0, "a comparison with itself proves nothing"
