"""A filter never admits runs whose tight epsilon exceeds the cap, whatever their order and mix."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.privacy.accountants import SEARCHING, epsilon
from fedlearn.privacy.events import Event, MatrixGaussian, MetricRelease, NeighboringRelation, PoissonGaussian
from fedlearn.privacy.factorization import Blt
from fedlearn.privacy.filter import RdpFilter, ZcdpFilter

CAPS = st.sampled_from([(0.5, 1e-8), (3.0, 1e-6), (10.0, 1e-5)])
POISSON = st.builds(
    PoissonGaussian,
    noise_multiplier=st.sampled_from([0.7, 1.0, 3.0]),
    sampling_probability=st.sampled_from([0.01, 0.2]),
)
METRICS = st.builds(MetricRelease, noise_multiplier=st.floats(2.0, 60.0))
SAMPLED_RUNS = st.lists(st.tuples(st.one_of(POISSON, METRICS), st.integers(1, 300)), min_size=1, max_size=6)
MATRIX = st.builds(
    lambda steps, z: MatrixGaussian(Blt((0.9,), (0.3,)), steps, 10, -(-steps // 10), z),
    st.integers(1, 100),
    st.floats(0.5, 60.0),
)
BOUNDED_RUNS = st.lists(st.tuples(st.one_of(MATRIX, METRICS), st.integers(1, 30)), min_size=1, max_size=8)


def admitted(which: ZcdpFilter | RdpFilter, runs: list[tuple[Event, int]]) -> list[tuple[Event, int]]:
    spent, kept = 0.0, []
    for event, count in runs:
        if spent + which.cost(event, count) <= which.capacity:
            spent += which.cost(event, count)
            kept.append((event, count))
    return kept


@settings(derandomize=True, max_examples=25, deadline=None)
@given(cap=CAPS, runs=SAMPLED_RUNS)
def test_sampled_runs(cap: tuple[float, float], runs: list[tuple[Event, int]]) -> None:
    for which in (ZcdpFilter(*cap), RdpFilter(RdpFilter.order_for(*cap), *cap)):
        kept = admitted(which, runs)
        assert epsilon(kept, cap[1], discretization=SEARCHING) <= cap[0]


@settings(derandomize=True, max_examples=60, deadline=None)
@given(cap=CAPS, runs=BOUNDED_RUNS)
def test_bounded_runs(cap: tuple[float, float], runs: list[tuple[Event, int]]) -> None:
    for which in (ZcdpFilter(*cap), RdpFilter(RdpFilter.order_for(*cap), *cap)):
        kept = admitted(which, runs)
        spent = epsilon(kept, cap[1], neighboring_relation=NeighboringRelation.ZERO_OUT)
        assert spent <= cap[0]


def test_a_filter_with_a_fifth_more_capacity_would_admit_too_much() -> None:
    """The bound is near enough to the truth that a wrong scale shows."""
    cap = (3.0, 1e-6)
    which = ZcdpFilter(*cap)
    event = MetricRelease(40.0)
    fits = int(which.capacity * 1.2 / which.cost(event, 1))
    assert epsilon([(event, fits)], cap[1], neighboring_relation=NeighboringRelation.ZERO_OUT) > cap[0]
    assert which.cost(event, fits) > which.capacity
