"""The verifier's own figures: published ones, slow oracles beside its fast paths, and fedlearn's accountants.

The verifier shares no code with ``fedlearn.privacy``, so an error in one of them shows as a difference here.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedlearn.privacy import accountants, events, factorization
from fedlearn.privacy.events import NeighboringRelation
from fedlearn.privacy.filter import RdpFilter, ZcdpFilter
from fedlearn.privacy.sensitivity import squared_sensitivity

SCRIPT = Path(__file__).parents[2] / "fedlearn" / "ledger" / "verifier.py"


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verifier_against_golden", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


v = load()


def toeplitz(coefficients: tuple[float, ...], n: int, b: int, k: int) -> Any:
    return v.Matrix("toeplitz", coefficients, (), n, b, k, 1.0)


def blt(decay: tuple[float, ...], scale: tuple[float, ...], n: int, b: int, k: int) -> Any:
    return v.Matrix("blt", decay, scale, n, b, k, 1.0)


# Published figures


@pytest.mark.parametrize(
    ("event", "count", "delta", "published"),
    [
        # Google's dp-accounting 0.6.0, PLD at 1e-4
        (v.Poisson(1.0, 0.01), 1000, 1e-5, 1.82824),
        (v.Poisson(0.6, 0.001), 2000, 1e-6, 2.35492),
        # Balle and Wang 2018: the Gaussian mechanism's exact curve, mu = 1
        (v.Poisson(10.0, 1.0), 100, 1e-6, 4.88655),
    ],
)
def test_sampled_gaussians(event: Any, count: int, delta: float, published: float) -> None:
    assert v.epsilon_of([(event, count)], delta, "add_or_remove") == pytest.approx(published, abs=6e-6)


@pytest.mark.parametrize(
    ("sens2", "z", "published"),
    [
        # Xu et al., DP-FTRL of Gboard's language models; epsilon at delta 1e-10 as printed in google-research/federated
        (0.6, 1.411, 3.4240072731),
        (2.0, 8.35, 0.9935499570),
        (79.0, 7.0, 8.526),
    ],
)
def test_gboards_matrix_mechanisms(sens2: float, z: float, published: float) -> None:
    found = v.gaussian_epsilon(math.sqrt(sens2) / z, 1e-10)
    assert found == pytest.approx(published, rel=1e-4 if published == 8.526 else 2e-10)


def test_sensitivities_of_two_buffered_toeplitz_mechanisms() -> None:
    """McMahan, Xu and Zhang 2024: 2,048 steps; parameters from their optimiser, squared sensitivities of 2 buffers."""
    wide = blt((0.98822650, 0.61265134), (0.23558205, 0.27022327), 2048, 100, 21)
    rare = blt((0.99586201, 0.80867818), (0.12404838, 0.33325889), 2048, 400, 6)
    assert v.squared_sensitivity(wide) == pytest.approx(126.180, abs=5e-4)
    assert v.squared_sensitivity(rare) == pytest.approx(24.659, abs=5e-4)


# Slow oracles


def patterns(n: int, b: int, k: int) -> Any:
    """Every set of at most k steps that lie at least b apart."""
    for size in range(1, k + 1):
        for chosen in itertools.combinations(range(n), size):
            if all(later - earlier >= b for earlier, later in itertools.pairwise(chosen)):
                yield chosen


def brute_tree(n: int, b: int, k: int) -> int:
    blocks: list[tuple[int, int]] = []
    start = 0
    for bit in reversed(range(n.bit_length())):
        if n >> bit & 1:
            blocks += [
                (at, at + size)
                for size in (1 << s for s in range(bit + 1))
                for at in range(start, start + (1 << bit), size)
            ]
            start += 1 << bit
    return max(sum(sum(low <= x < high for x in chosen) ** 2 for low, high in blocks) for chosen in patterns(n, b, k))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 11, 13, 16])
def test_trees_against_every_pattern(n: int) -> None:
    for b in {1, 2, 3, 4, 6, 9, n}:
        for k in {1, 2, 3, 4, -(-n // b)}:
            if k <= -(-n // b):
                assert v.tree_sensitivity(n, b, k) == brute_tree(n, b, k), (n, b, k)


@pytest.mark.parametrize("n", [1, 2, 5, 9, 12])
def test_toeplitz_against_every_pattern(n: int) -> None:
    generator = np.random.default_rng(n)
    for b in (1, 2, 3, 5):
        for k in range(1, -(-n // b) + 1):
            falling = np.sort(generator.random(n))[::-1]
            c = (1.0, *(float(value) for value in falling[1:]))
            matrix = np.array([[c[i - j] if i >= j else 0.0 for j in range(n)] for i in range(n)])
            slow = max(float(np.sum(matrix[:, list(chosen)].sum(axis=1) ** 2)) for chosen in patterns(n, b, k))
            fast = v.squared_sensitivity(toeplitz(c, n, b, k))
            assert slow * (1 - 1e-14) <= fast <= slow * (1 + 1e-12)


def test_a_buffered_mechanism_is_the_toeplitz_one_it_stands_for() -> None:
    decay, scale = (0.9, 0.4), (0.3, 0.5)
    c = (1.0, *(sum(s * d**i for d, s in zip(decay, scale, strict=True)) for i in range(59)))
    for b, k in ((1, 60), (7, 3), (20, 3), (60, 1)):
        same = v.squared_sensitivity(toeplitz(c, 60, b, k))
        assert v.squared_sensitivity(blt(decay, scale, 60, b, k)) == pytest.approx(same, rel=1e-12)


@pytest.mark.parametrize("form", ["toeplitz", "blt", "tree"])
def test_a_cut_mechanism_costs_no_more(form: str) -> None:
    whole = {
        "toeplitz": toeplitz((1.0, 0.7, 0.4, 0.4), 40, 6, 5),
        "blt": blt((0.9,), (0.6,), 40, 6, 5),
        "tree": v.Matrix("tree", (), (), 40, 6, 5, 1.0),
    }[form]
    costs = [v.squared_sensitivity(whole.cut(steps)) for steps in range(1, 41)]
    assert costs == sorted(costs)
    assert costs[0] == pytest.approx(1, rel=1e-13)
    assert costs[-1] == v.squared_sensitivity(whole)


@pytest.mark.parametrize("mu", [1e-3, 0.05, 0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10, 1e-30])
def test_the_exact_gaussian_against_integration(mu: float, delta: float) -> None:
    """delta = E over the loss of (1 - e^(epsilon - loss))_+, by the trapezoidal rule; loss is N(mu^2/2, mu^2)."""
    epsilon = v.gaussian_epsilon(mu, delta)
    if epsilon == 0:
        assert mu == 1e-3
        return
    t = np.linspace((epsilon - mu * mu / 2) / mu, (epsilon - mu * mu / 2) / mu + 40, 400_001)
    loss = mu * mu / 2 + mu * t
    density = np.exp(-t * t / 2) / math.sqrt(2 * math.pi)
    found = float(np.trapezoid(-np.expm1(np.minimum(epsilon - loss, 0)) * density, t))
    assert found == pytest.approx(delta, rel=2e-6)
    assert found <= delta * (1 + 1e-6)


# Against fedlearn's accountants: another implementation, written by others from the same definitions

Pair = tuple[list[tuple[Any, int]], list[tuple[events.Event, int]]]


def pairs(kind: str, spends: int = 4) -> list[Pair]:
    """A few random spends of a kind, once in the verifier's terms and once in fedlearn's."""
    generator = np.random.default_rng(sum(kind.encode()))
    return [MAKERS[kind](generator) for _ in range(spends)]


def _poisson(g: np.random.Generator) -> tuple[Any, events.PoissonGaussian]:
    z, q = float(g.uniform(0.8, 3.0)), float(10 ** g.uniform(-3, -1))
    return v.Poisson(z, q), events.PoissonGaussian(z, q)


def _truncated(g: np.random.Generator) -> tuple[Any, events.TruncatedPoissonGaussian]:
    z, q, n = float(g.uniform(1.0, 3.0)), float(g.uniform(0.005, 0.05)), int(g.integers(200, 5000))
    cap = min(n, max(1, int(q * n * g.uniform(1.0, 1.6)) + 3))
    return v.Truncated(z, q, n, cap), events.TruncatedPoissonGaussian(z, q, n, cap)


def _fixed(g: np.random.Generator) -> tuple[Any, events.FixedSizeGaussian]:
    z, n = float(g.uniform(0.7, 3.0)), int(g.integers(200, 5000))
    m = int(g.integers(1, n // 10))
    return v.FixedSize(z, n, m), events.FixedSizeGaussian(z, n, m)


def _metric(g: np.random.Generator) -> tuple[Any, events.MetricRelease]:
    z = float(g.uniform(2.0, 20.0))
    return v.Metric(z), events.MetricRelease(z)


def _matrix(g: np.random.Generator) -> tuple[Any, events.MatrixGaussian]:
    n = int(g.integers(1, 60))
    b = int(g.integers(1, n + 1))
    k, z = int(g.integers(1, -(-n // b) + 1)), float(g.uniform(3.0, 30.0))
    form = ("toeplitz", "blt", "tree")[int(g.integers(0, 3))]
    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    made: factorization.Factorization = factorization.Tree()
    if form == "toeplitz":
        first = (1.0, *(float(value) for value in np.sort(g.random(int(g.integers(0, n))))[::-1]))
        made = factorization.Toeplitz(first)
    elif form == "blt":
        first = tuple(float(value) for value in g.uniform(0.05, 0.99, 2))
        second = tuple(float(value) for value in g.uniform(0.01, 0.49, 2))
        made = factorization.Blt(first, second)
    return v.Matrix(form, first, second, n, b, k, z), events.MatrixGaussian(made, n, b, k, z)


def _counted(make: Callable[[np.random.Generator], Any], most: int) -> Callable[[np.random.Generator], Pair]:
    def spend(g: np.random.Generator) -> Pair:
        ours, theirs = make(g)
        count = int(g.integers(1, most))
        return [(ours, count)], [(theirs, count)]

    return spend


def _mixed(*makers: Callable[[np.random.Generator], Pair]) -> Callable[[np.random.Generator], Pair]:
    def spend(g: np.random.Generator) -> Pair:
        made = [make(g) for make in makers]
        return [pair for one, _ in made for pair in one], [pair for _, one in made for pair in one]

    return spend


def _repeated(make: Callable[[np.random.Generator], Any], most: int) -> Callable[[np.random.Generator], Any]:
    def repeat(g: np.random.Generator) -> Any:
        ours, theirs = make(g)
        count, mean = int(g.integers(1, most)), float(g.uniform(1.0, 20.0))
        shape = (0.0, 0.5, 1.0, 3.0, math.inf)[int(g.integers(0, 5))]
        return v.Repeated(ours, count, mean, shape), events.RepeatAndSelect(theirs, count, mean, shape)

    return repeat


MAKERS: dict[str, Callable[[np.random.Generator], Pair]] = {
    "poisson": _counted(_poisson, 500),
    "truncated": _counted(_truncated, 200),
    "metric": _counted(_metric, 20),
    "mixed": _mixed(_counted(_poisson, 300), _counted(_metric, 5), _counted(_truncated, 50)),
    "fixed": _counted(_fixed, 500),
    "matrix": _counted(_matrix, 2),
    "matrices": _mixed(_counted(_matrix, 2), _counted(_matrix, 2), _counted(_metric, 9)),
    "repeated poisson": _counted(_repeated(_poisson, 300), 2),
    "repeated fixed": _counted(_repeated(_fixed, 300), 2),
    "repeated matrix": _mixed(_counted(_repeated(_matrix, 2), 2), _counted(_metric, 3)),
}
RELATION = {"fixed": "replace_one", "matrix": "zero_out", "matrices": "zero_out"}
RELATION |= {"repeated fixed": "replace_one", "repeated matrix": "zero_out"}
# What fedlearn adds and the verifier does not: 1e-11 per Renyi divergence; 3e-10 of a truncated cohort's chance; and
# one more cut of 1e-15 of the tail where a loss distribution is composed with itself once.
BELOW = {"fixed": 1e-7, "repeated poisson": 1e-7, "repeated fixed": 1e-7}
BELOW |= {"truncated": 2e-7, "mixed": 1e-7, "metric": 1e-7}


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_epsilon_equals_fedlearns(kind: str) -> None:
    compare(kind, {"poisson": 3, "truncated": 2, "mixed": 1, "fixed": 3, "repeated fixed": 3}.get(kind, 6), (1e-5,))


def compare(kind: str, spends: int, deltas: tuple[float, ...]) -> None:
    """The long tests run this with more spends and deltas."""
    relation = RELATION.get(kind, "add_or_remove")
    for ours, theirs in pairs(kind, spends):
        for delta in deltas:
            mine = v.epsilon_of(ours, delta, relation)
            other = accountants.epsilon(theirs, delta, neighboring_relation=NeighboringRelation(relation))
            assert mine >= other - BELOW.get(kind, 1e-9), (ours, delta)
            assert mine == pytest.approx(other, rel=1e-6, abs=1e-9), (ours, delta)


@pytest.mark.parametrize("kind", ["matrix", "matrices"])
def test_sensitivity_equals_fedlearns(kind: str) -> None:
    for ours, theirs in pairs(kind):
        for (mine, _), (other, _) in zip(ours, theirs, strict=True):
            if isinstance(other, events.MatrixGaussian):
                figures = (other.factorization, other.steps, other.min_separation, other.max_participations)
                assert v.squared_sensitivity(mine) == pytest.approx(squared_sensitivity(*figures), rel=1e-11)


@pytest.mark.parametrize("kind", sorted(kind for kind in MAKERS if kind not in ("truncated", "mixed")))
@pytest.mark.parametrize("order", [8.5, 32.0])
def test_a_renyi_filter_equals_fedlearns(kind: str, order: float) -> None:
    """What fedlearn admitted at its capacity must be admitted here, and no more than floating point on top."""
    ours = v.Gate(order, 1e-6)
    for epsilon in (3.0, 8.0):
        theirs = RdpFilter(order, epsilon, 1e-6)
        assert ours.capacity(epsilon) == pytest.approx(theirs.capacity, rel=1e-9)
        assert theirs.capacity <= ours.capacity(epsilon) * (1 + 1e-12)
        assert ours.epsilon(ours.capacity(epsilon)) == pytest.approx(epsilon, rel=1e-12)
    for mine, other in pairs(kind):
        taken = sum(theirs.cost(event, count) for event, count in other)
        assert taken * (1 - 1e-9) - BELOW.get(kind, 1e-8) <= ours.cost(tuple(mine)) <= taken * (1 + v.SLACK), (
            mine,
            order,
        )


@pytest.mark.parametrize("kind", sorted(kind for kind in MAKERS if "repeated" not in kind))
def test_the_zcdp_filter_equals_fedlearns(kind: str) -> None:
    for epsilon, delta in ((0.5, 1e-6), (3.0, 1e-10), (20.0, 1e-3)):
        ours, theirs = v.Gate(None, delta), ZcdpFilter(epsilon, delta)
        assert ours.capacity(epsilon) == pytest.approx(theirs.capacity, rel=1e-9)
        assert theirs.capacity <= ours.capacity(epsilon) * (1 + v.SLACK)
        assert ours.epsilon(ours.capacity(epsilon)) == pytest.approx(epsilon, rel=1e-9)
        for mine, other in pairs(kind):
            taken = sum(theirs.cost(event, count) for event, count in other)
            assert ours.cost(tuple(mine)) == pytest.approx(taken, rel=1e-11)


def test_a_wrong_scale_would_be_seen() -> None:
    """Negative control: a noise multiplier over 2 C taken for one over C, or one participation forgotten."""
    honest = [(v.FixedSize(2.0, 1000, 20), 100)]
    assert v.epsilon_of([(v.FixedSize(1.0, 1000, 20), 100)], 1e-5, "replace_one") > 1.5 * v.epsilon_of(
        honest, 1e-5, "replace_one"
    )
    three = v.Matrix("blt", (0.9,), (0.5,), 30, 10, 3, 5.0)
    two = replace(three, participations=2)
    assert v.epsilon_of([(three, 1)], 1e-5, "zero_out") > 1.1 * v.epsilon_of([(two, 1)], 1e-5, "zero_out")
