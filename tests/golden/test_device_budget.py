"""The phone's figures against ones that others published or computed."""

from __future__ import annotations

import math

import mpmath
import pytest

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.privacy.factorization import INDEPENDENT, Tree
from fedlearn.privacy.gaussian import gaussian_epsilon, zcdp_epsilon
from fedlearn_client import zcdp

# source, rho, delta, epsilon that was published, by which conversion
PUBLISHED = [
    ("Gboard es-ES 2022 (google-research/federated, dp_ftrl notebook), RDP", 0.8061224489795918, 1e-10, 8.90, 0.01),
    ("Gboard es-ES 2024 (mf_dpftrl_matrices), exact Gaussian", 0.1506840301548885, 1e-10, 3.4240074094281336, 0.2),
    ("Gboard pt-BR, es-US (mf_dpftrl_matrices), exact Gaussian", 0.014342572340349278, 1e-10, 0.9935500950539097, 0.06),
]


@pytest.mark.parametrize(("source", "rho", "delta", "published", "above"), PUBLISHED)
def test_published_figures(source: str, rho: float, delta: float, published: float, above: float) -> None:
    """Never below the exact Gaussian; above it by what the conversion from zCDP gives away."""
    ours = zcdp.epsilon(rho, delta)
    assert gaussian_epsilon(math.sqrt(2 * rho), delta) <= ours
    assert published - 0.005 <= ours <= published + above


def test_rho_of_the_published_mechanisms() -> None:
    # es-ES 2022: squared sensitivity 79, z = 7: rho 79 / 98 = .8061; the phone's bound for the tree is above it
    tree = MechanismTerms("tree", Tree(), 7.0, 1.0, 2.0**-30, 2000, 314, 6)
    assert 79 / 98 <= zcdp.rho(tree, 6) <= 1.3 * 79 / 98
    # pt-BR 2023: squared sensitivity 2, z = 8.35: rho .014342572340349278
    twice = MechanismTerms("independent", INDEPENDENT, 8.35, 1.0, 2.0**-30, 2000, 314, 2)
    assert zcdp.rho(twice, 2) == pytest.approx(0.014342572340349278, rel=1e-12)
    assert zcdp.rho(twice, 2) >= 0.014342572340349278


@pytest.mark.parametrize(
    ("rho", "delta", "epsilon"),
    [(0.125, 1e-6, 2.4190932), (0.5, 1e-6, 5.2215344), (1.0, 1e-5, 7.0771967), (10.0, 1e-6, 32.2216609)],
)
def test_the_conversion_in_fifty_digits(rho: float, delta: float, epsilon: float) -> None:
    """Proposition 12 of Canonne, Kamath and Steinke (2020), minimised over the order by mpmath."""
    with mpmath.workdps(50):
        log_delta = mpmath.log(delta)

        def at(exponent: mpmath.mpf) -> mpmath.mpf:
            order = 1 + mpmath.exp(exponent)
            return rho * order + mpmath.log(1 - 1 / order) - (log_delta + mpmath.log(order)) / (order - 1)

        low, high = mpmath.mpf(-8), mpmath.mpf(8)
        for _ in range(150):
            left, right = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, right) if at(left) < at(right) else (left, high)
        exact = at((low + high) / 2)
        ours = zcdp.epsilon(rho, delta)
        assert exact <= ours <= exact * (1 + mpmath.mpf("1e-12"))
    assert ours == pytest.approx(epsilon, abs=1e-7)
    assert zcdp_epsilon(rho, delta) <= ours <= zcdp_epsilon(rho, delta) * (1 + 1e-6)
