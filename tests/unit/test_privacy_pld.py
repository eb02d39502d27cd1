"""Losses of single events against 50 digits and against the library; truncated cohorts against direct convolution."""

from __future__ import annotations

import math
import random

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as library
from scipy.special import ndtr
from scipy.stats import binom

from fedlearn.privacy.accountants import SEARCHING, delta_at, epsilon
from fedlearn.privacy.dp_library import gaussian_losses
from fedlearn.privacy.events import MetricRelease, PoissonGaussian, TruncatedPoissonGaussian
from fedlearn.privacy.hockey_stick import added_divergences, removed_divergences, replaced_divergences
from fedlearn.privacy.pld import _TAIL_ERROR, _single

TRUNCATED = TruncatedPoissonGaussian(1.0, 0.01, 10_000, 130)


def plain(mu: mpmath.mpf, epsilon: mpmath.mpf) -> mpmath.mpf:
    def tail(x: mpmath.mpf) -> mpmath.mpf:
        return mpmath.erfc(x / mpmath.sqrt(2)) / 2

    return tail(epsilon / mu - mu / 2) - mpmath.exp(epsilon) * tail(epsilon / mu + mu / 2)


def exact(mu: float, q: float, epsilon: float, *, added: bool) -> float:
    """Balle, Barthe and Gaboardi 2018, theorem 2, in both directions."""
    with mpmath.workdps(50):
        m, p, e = mpmath.mpf(mu), mpmath.mpf(q), mpmath.mpf(epsilon)
        ratio = 1 + mpmath.expm1(-e if added else e) / p
        if ratio <= 0:
            return 0.0 if added else float(1 - mpmath.exp(e))
        if added:
            return float((1 - (1 - p) * mpmath.exp(e)) * plain(m, -mpmath.log(ratio)))
        return float(p * plain(m, mpmath.log(ratio)))


@pytest.mark.parametrize("added", [False, True])
def test_divergences_of_one_release(added: bool) -> None:
    rng = random.Random(int(added))
    ours = added_divergences if added else removed_divergences
    compared = 0
    for index in range(1000):
        mu = 10 ** rng.uniform(-3, 1.5)
        q = 1.0 if index % 7 == 0 else 10 ** rng.uniform(-5, -0.001)
        epsilon = rng.choice([-1, 1]) * 10 ** rng.uniform(-5, 2)
        value, truth = float(ours(mu, q, np.array([epsilon]))[0]), exact(mu, q, epsilon, added=added)
        assert value == pytest.approx(truth, abs=1e-15), (mu, q, epsilon)
        compared += 1e-10 < truth < 1 - 1e-10
    assert compared > 200


@pytest.mark.parametrize(("z", "q", "steps"), [(1.0, 0.01, 300), (0.3, 0.5, 10), (4.0, 0.2, 500), (20.0, 1.0, 50)])
def test_our_dots_give_the_library_s_figure(z: float, q: float, steps: int) -> None:
    theirs = library.from_gaussian_mechanism(z, value_discretization_interval=1e-3, sampling_prob=q)
    ours = gaussian_losses(z, q, 1e-3)
    for delta in (1e-4, 1e-6, 1e-8):
        expected = theirs.self_compose(steps).get_epsilon_for_delta(delta)
        assert ours.self_compose(steps).get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("z", "q", "steps"), [(1.0, 0.01, 300), (0.5, 0.3, 10), (4.0, 1.0, 20)])
def test_replace_one_is_the_library_s(z: float, q: float, steps: int) -> None:
    relation = library.NeighborRel.REPLACE_ONE
    theirs = library.from_gaussian_mechanism(
        z, value_discretization_interval=1e-3, sampling_prob=q, neighboring_relation=relation
    )
    ours = gaussian_losses(z, q, 1e-3, replace_one=True)
    for delta in (1e-4, 1e-6, 1e-8):
        expected = theirs.self_compose(steps).get_epsilon_for_delta(delta)
        assert ours.self_compose(steps).get_epsilon_for_delta(delta) == pytest.approx(expected, rel=1e-6)


def test_replaced_divergences_are_the_largest_over_thresholds() -> None:
    mu, q = 0.8, 0.2
    x = np.linspace(-30, 30, 2_000_001)
    upper = (1 - q) * ndtr(x) + q * ndtr(x + mu)
    lower = (1 - q) * ndtr(x) + q * ndtr(x - mu)
    for target in (-0.5, -1e-3, 0.0, 1e-3, 0.1, 0.5):
        ours = float(replaced_divergences(mu, q, np.array([target]))[0])
        assert ours == pytest.approx(float((upper - math.exp(target) * lower).max()), abs=1e-9)


def test_truncated_figure_is_the_library_s_and_not_below_it() -> None:
    theirs = library.from_truncated_subsampled_gaussian_mechanism(
        10_000, 0.01, 130, 1.0, value_discretization_interval=1e-3
    )
    expected = theirs.self_compose(1000).get_epsilon_for_delta(1e-5)
    ours = epsilon([(TRUNCATED, 1000)], 1e-5, discretization=SEARCHING)
    assert expected * (1 - 1e-7) <= ours <= expected * (1 + 1e-5)


def test_a_cap_that_never_binds_is_no_cap_and_a_tighter_one_costs_more() -> None:
    def at(cap: int, population: int = 10_000) -> float:
        event = TruncatedPoissonGaussian(1.0, 0.01, population, cap)
        return epsilon([(event, 200)], 1e-5, discretization=SEARCHING)

    free = epsilon([(PoissonGaussian(1.0, 0.01), 200)], 1e-5, discretization=SEARCHING)
    assert free <= at(10_000) <= free * (1 + 1e-6)
    assert at(10_000) <= at(150) < at(130) < at(110)
    assert free <= at(100, population=100) <= free * (1 + 1e-6)


def test_truncated_composition_against_direct_convolution() -> None:
    """Sums of products of non-negative numbers keep relative precision; the FFT does not, and its margin covers it."""
    cell, steps = 0.05, 64
    event = TruncatedPoissonGaussian(2.0, 0.02, 1000, 24)
    single = _single(event, cell)
    composed = single.self_compose(steps)
    for one, many in ((single._pmf_remove, composed._pmf_remove), (single._pmf_add, composed._pmf_add)):  # type: ignore[attr-defined]
        dense = one.to_dense_pmf()
        weights = dense._probs
        for _ in range(6):
            weights = np.convolve(weights, weights)
        losses = (np.arange(weights.size) + steps * dense._lower_loss) * cell
        infinite = -math.expm1(steps * math.log1p(-dense._infinity_mass))
        for target in (0.5, 1.5, 3.0, 4.5):
            above = losses > target
            direct = infinite + float(np.dot(-np.expm1(target - losses[above]), weights[above]))
            assert many.get_delta_for_epsilon(target) + 2e-16 * steps >= direct
            assert many.get_delta_for_epsilon(target) <= direct * (1 + 1e-9) + 1e-14


@pytest.mark.parametrize(
    ("n", "q", "cap"),
    [(10_000, 0.01, 130), (10_000, 0.01, 200), (20_000, 0.001, 40), (1000, 0.5, 520), (500, 0.9, 470)],
)
def test_binomial_tails_err_less_than_is_allowed_for(n: int, q: float, cap: int) -> None:
    with mpmath.workdps(60):
        p = mpmath.mpf(q)
        term = mpmath.binomial(n, cap + 1) * p ** (cap + 1) * (1 - p) ** (n - cap - 1)
        tail = mpmath.mpf(0)
        for j in range(cap + 1, n + 1):
            tail += term
            term *= mpmath.mpf(n - j) / (j + 1) * p / (1 - p)
        relative = abs(mpmath.mpf(float(binom.sf(cap, n, q))) / tail - 1)
    assert relative < _TAIL_ERROR / 10


def test_metrics_and_full_batches_merge_into_one_gaussian() -> None:
    parts = [(MetricRelease(3.0), 4), (PoissonGaussian(6.0, 1.0), 5)]
    merged = PoissonGaussian((4 / 9 + 5 / 36) ** -0.5, 1.0)
    assert epsilon(parts, 1e-6) == pytest.approx(epsilon([(merged, 1)], 1e-6), rel=1e-9)
    assert epsilon(parts, 1e-6) >= epsilon([(merged, 1)], 1e-6) * (1 - 1e-12)


def test_delta_at_inverts_epsilon_for_truncated_cohorts() -> None:
    spend = [(TRUNCATED, 100)]
    value = epsilon(spend, 1e-5, discretization=SEARCHING)
    assert delta_at(spend, value, discretization=SEARCHING) == pytest.approx(1e-5, rel=1e-3)
