from __future__ import annotations

import math

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from fedlearn.errors import InvalidSpend, MissingDependency
from fedlearn.privacy import accountants, dp_library, events
from fedlearn.privacy.accountants import (
    NO_CROSS_CHECK,
    SEARCHING,
    accounting_for,
    delta_at,
    epsilon,
    epsilon_curve,
    largest_count,
    require_accountant,
)
from fedlearn.privacy.events import (
    Event,
    FixedSizeGaussian,
    MatrixGaussian,
    MetricRelease,
    NeighboringRelation,
    PoissonGaussian,
    RepeatAndSelect,
    TruncatedPoissonGaussian,
    kind_of,
)
from fedlearn.privacy.factorization import Blt
from fedlearn.privacy.gaussian import gaussian_epsilon, mu_of

EVENT = PoissonGaussian(1.0, 0.01)
TRUNCATED = TruncatedPoissonGaussian(1.0, 0.01, 1000, 20)
FIXED = FixedSizeGaussian(1.0, 1000, 10)
MATRIX = MatrixGaussian(Blt((0.9,), (0.3,)), 40, 10, 4, 5.0)
METRICS = MetricRelease(20.0)
ADD, ZERO, REPLACE = NeighboringRelation.ADD_OR_REMOVE, NeighboringRelation.ZERO_OUT, NeighboringRelation.REPLACE_ONE

ANSWERED: list[tuple[list[Event], NeighboringRelation, str]] = [
    ([EVENT], ADD, "PLD"),
    ([EVENT, METRICS], ADD, "PLD"),
    ([TRUNCATED, METRICS], ADD, "PLD"),
    ([METRICS], ADD, "PLD"),
    ([METRICS], ZERO, "exact Gaussian"),
    ([MATRIX, METRICS], ZERO, "exact Gaussian"),
    ([FIXED], REPLACE, "RDP"),
    ([EVENT, RepeatAndSelect(EVENT, 10, 5.0, 1.0)], ADD, "RDP"),
    ([METRICS, RepeatAndSelect(MATRIX, 1, 5.0, math.inf)], ZERO, "RDP"),
    ([RepeatAndSelect(FIXED, 10, 5.0, 0.0), FIXED], REPLACE, "RDP"),
]
REFUSED: list[tuple[list[Event], NeighboringRelation, str]] = [
    ([MATRIX], ADD, "matrix_gaussian"),
    ([FIXED], ADD, "fixed_size_gaussian"),
    ([EVENT], ZERO, "poisson_gaussian"),
    ([PoissonGaussian(1.0, 1.0)], ZERO, "poisson_gaussian"),
    ([TRUNCATED], ZERO, "truncated_poisson_gaussian"),
    ([FIXED], ZERO, "fixed_size_gaussian"),
    ([EVENT], REPLACE, "poisson_gaussian"),
    ([MATRIX], REPLACE, "matrix_gaussian"),
    ([METRICS], REPLACE, "metric_release"),
    ([RepeatAndSelect(EVENT, 1, 2.0, 1.0)], ZERO, "poisson_gaussian"),
    ([EVENT, MATRIX], ADD, "matrix_gaussian"),
]


def test_nothing_spent_is_zero() -> None:
    assert epsilon([], 1e-5) == 0.0
    assert epsilon([(EVENT, 0)], 1e-5) == 0.0
    assert delta_at([], 1.0) == 0.0


def test_equal_events_are_merged_in_any_order() -> None:
    other = PoissonGaussian(2.0, 0.05)
    one = epsilon([(EVENT, 10), (other, 7), (EVENT, 5)], 1e-5, discretization=SEARCHING)
    two = epsilon([(other, 7), (EVENT, 15)], 1e-5, discretization=SEARCHING)
    assert one == two
    assert one > epsilon([(EVENT, 15)], 1e-5, discretization=SEARCHING)


def test_epsilon_and_delta_at_are_inverse() -> None:
    spend = [(EVENT, 200)]
    value = epsilon(spend, 1e-5)
    assert delta_at(spend, value) == pytest.approx(1e-5, rel=1e-3)
    assert delta_at(spend, value * 1.01) < 1e-5 < delta_at(spend, value * 0.99)


def test_more_events_more_noise_and_sampling_move_epsilon_the_right_way() -> None:
    base = epsilon([(EVENT, 100)], 1e-5)
    assert epsilon([(EVENT, 101)], 1e-5) > base
    assert epsilon([(PoissonGaussian(1.1, 0.01), 100)], 1e-5) < base
    assert epsilon([(PoissonGaussian(1.0, 0.011), 100)], 1e-5) > base


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_out_of_range(delta: float) -> None:
    with pytest.raises(InvalidSpend, match="delta"):
        epsilon([(EVENT, 1)], delta)


@pytest.mark.parametrize("count", [-1, 1.5, True])
def test_count_out_of_range(count: object) -> None:
    with pytest.raises(InvalidSpend, match="count"):
        epsilon([(EVENT, count)], 1e-5)  # type: ignore[list-item]


@pytest.mark.parametrize("target", [-1.0, math.nan])
def test_epsilon_of_delta_at_out_of_range(target: float) -> None:
    with pytest.raises(InvalidSpend, match="epsilon"):
        delta_at([(EVENT, 1)], target)


def test_delta_below_floating_point_is_refused_not_rounded() -> None:
    with pytest.raises(InvalidSpend, match="too small to certify"):
        epsilon([(EVENT, 100_000)], 1e-12)


def test_unknown_accountant() -> None:
    require_accountant("pld")
    with pytest.raises(InvalidSpend, match="unknown"):
        require_accountant("moments")


def test_wide_losses_are_coarsened_upwards_not_refused() -> None:
    # The exact Gaussian's closed form (Balle and Wang 2018, theorem 8), sensitivity over std = 20, solved for epsilon.
    def excess(value: float) -> float:
        return float(norm.cdf(10 - value / 20) - math.exp(value + norm.logcdf(-10 - value / 20))) - 1e-5

    exact = brentq(excess, 0, 400, xtol=1e-12)
    coarse = epsilon([(PoissonGaussian(0.05, 1.0), 1)], 1e-5, discretization=SEARCHING)
    assert exact <= coarse <= exact * (1 + 1e-5)


def test_curve_is_a_monotone_upper_bound_that_ends_at_the_reported_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountants, "_MAX_ANCHORS", 10)
    counts = range(31)
    curve = epsilon_curve(EVENT, counts, 1e-5)
    assert curve[0] == 0.0
    assert list(curve) == sorted(curve)
    assert curve[-1] == epsilon([(EVENT, 30)], 1e-5)
    for count in (1, 2, 17, 29):
        exact = epsilon([(EVENT, count)], 1e-5)
        assert exact <= curve[count] <= epsilon([(EVENT, count + 4)], 1e-5, discretization=SEARCHING)


def test_curve_keeps_the_order_of_its_counts() -> None:
    assert epsilon_curve(EVENT, [], 1e-5) == ()
    up = epsilon_curve(EVENT, [1, 10, 20], 1e-5)
    assert epsilon_curve(EVENT, [20, 1, 10, 10], 1e-5) == (up[2], up[0], up[1], up[1])


def test_largest_count_is_the_last_that_fits() -> None:
    n = largest_count(EVENT, 1.0, 1e-5)
    assert epsilon([(EVENT, n)], 1e-5) <= 1.0 < epsilon([(EVENT, n + 1)], 1e-5)
    assert largest_count(EVENT, 1.0, 1e-5, spent=[(EVENT, n - 4)]) == 4
    assert largest_count(EVENT, 1.0, 1e-5, spent=[(EVENT, n + 4)]) == 0
    assert largest_count(EVENT, 1.0, 1e-5, at_most=5) == 5
    assert largest_count(PoissonGaussian(0.5, 1.0), 1.0, 1e-5) == 0


def test_missing_library_prints_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise dp_library.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(dp_library.importlib.metadata, "version", absent)
    with pytest.raises(MissingDependency, match=r"pip install 'fedlearn\[privacy\]'"):
        dp_library.accounting_version()


@pytest.mark.parametrize(("kinds", "relation", "accountant"), ANSWERED)
def test_each_relation_has_its_accountant(kinds: list[Event], relation: NeighboringRelation, accountant: str) -> None:
    spend = [(event, 2) for event in kinds]
    words = accounting_for(spend, relation)
    assert words.accountant.startswith(accountant)
    assert words.conversion
    assert words.cross_check
    once = epsilon(spend, 1e-5, discretization=SEARCHING, neighboring_relation=relation)
    more = [(event, 3) for event in kinds]
    assert 0 < once < epsilon(more, 1e-5, discretization=SEARCHING, neighboring_relation=relation) < math.inf
    back = delta_at(spend, once, discretization=SEARCHING, neighboring_relation=relation)
    assert back == pytest.approx(1e-5, rel=2e-3)


@pytest.mark.parametrize(("kinds", "relation", "named"), REFUSED)
def test_no_event_is_converted_to_another_relation(
    kinds: list[Event], relation: NeighboringRelation, named: str
) -> None:
    spend = [(event, 1) for event in kinds]
    for call in (
        lambda: epsilon(spend, 1e-5, neighboring_relation=relation),
        lambda: delta_at(spend, 1.0, neighboring_relation=relation),
        lambda: accounting_for(spend, relation),
        lambda: largest_count(kinds[-1], 1.0, 1e-5, neighboring_relation=relation),
    ):
        with pytest.raises(InvalidSpend, match=f"{relation.value}.*{named}.*never converted"):
            call()


def test_every_kind_has_an_accountant_under_some_relation() -> None:
    answered = {kind_of(event) for kinds, _, _ in ANSWERED for event in kinds}
    assert answered == set(events._KINDS)


def test_truncated_cohorts_do_not_compose_with_repeat_and_select() -> None:
    for spend in (
        [(TRUNCATED, 1), (RepeatAndSelect(EVENT, 1, 2.0, 1.0), 1)],
        [(RepeatAndSelect(TRUNCATED, 1, 2, 1), 1)],
    ):
        with pytest.raises(InvalidSpend, match="Renyi divergences, which truncated_poisson_gaussian does not have"):
            epsilon(spend, 1e-5)


@pytest.mark.parametrize("relation", ["add_or_remove", "nonsense", None])
def test_a_relation_is_one_of_the_three(relation: object) -> None:
    with pytest.raises(InvalidSpend, match="neighboring_relation"):
        epsilon([(EVENT, 1)], 1e-5, neighboring_relation=relation)  # type: ignore[arg-type]


def test_cross_checks_are_named_or_denied() -> None:
    assert "Opacus PRV" in accounting_for([(EVENT, 1)], ADD).cross_check
    assert accounting_for([(MATRIX, 1)], ZERO).cross_check == "PLD of the same Gaussian"
    assert accounting_for([(TRUNCATED, 1)], ADD).cross_check == NO_CROSS_CHECK
    assert accounting_for([(FIXED, 1)], REPLACE).cross_check == NO_CROSS_CHECK


def test_the_exact_gaussian_passes_its_cross_check() -> None:
    spend = [(MATRIX, 1), (METRICS, 7)]
    exact = epsilon(spend, 1e-6, neighboring_relation=ZERO)
    mu = math.hypot(mu_of(MATRIX), math.sqrt(7) * mu_of(METRICS))
    assert exact == pytest.approx(gaussian_epsilon(mu, 1e-6), rel=1e-9)
    assert exact <= epsilon([(MetricRelease(1 / mu), 1)], 1e-6) <= exact * (1 + 1e-6)


def test_repeat_and_select_with_one_repetition_costs_no_less_than_the_training() -> None:
    tuned = epsilon([(RepeatAndSelect(EVENT, 1000, 1.0, 1.0), 1)], 1e-5)
    assert epsilon([(EVENT, 1000)], 1e-5) < tuned
    assert tuned < epsilon([(RepeatAndSelect(EVENT, 1000, 10.0, 1.0), 1)], 1e-5) < epsilon([(EVENT, 10_000)], 1e-5)


def test_curve_and_largest_count_under_other_relations() -> None:
    up = epsilon_curve(FIXED, [1, 5, 20], 1e-5, neighboring_relation=REPLACE)
    assert list(up) == sorted(up)
    assert up[-1] == epsilon([(FIXED, 20)], 1e-5, neighboring_relation=REPLACE)
    n = largest_count(METRICS, 1.0, 1e-5, neighboring_relation=ZERO)
    at = [epsilon([(METRICS, count)], 1e-5, neighboring_relation=ZERO) for count in (n, n + 1)]
    assert at[0] <= 1.0 < at[1]


@pytest.mark.parametrize("value", [math.nan, -1.0])
def test_a_figure_that_is_no_number_is_an_error(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accountants, "loss_epsilon", lambda *_: value)
    monkeypatch.setattr(accountants, "loss_delta", lambda *_: value)
    event = PoissonGaussian(1.2345, 0.0123)
    with pytest.raises(InvalidSpend, match="no number"):
        epsilon([(event, 1)], 1.5e-5)
    with pytest.raises(InvalidSpend, match="no number"):
        delta_at([(event, 1)], 1.0)


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, math.nan])
@pytest.mark.parametrize(("spend", "relation"), [([(MATRIX, 1)], ZERO), ([(FIXED, 1)], REPLACE)])
def test_delta_out_of_range_under_other_relations(
    delta: float, spend: list[tuple[Event, int]], relation: NeighboringRelation
) -> None:
    with pytest.raises(InvalidSpend, match="delta"):
        epsilon(spend, delta, neighboring_relation=relation)


@pytest.mark.parametrize(
    "extreme", [PoissonGaussian(1e-3, 0.5), PoissonGaussian(1e9, 1e-9), PoissonGaussian(0.02, 1e-6)]
)
def test_extreme_parameters_give_a_number_or_an_error(extreme: PoissonGaussian) -> None:
    for spend in ([(extreme, 3)], [(RepeatAndSelect(extreme, 3, 2.0, 1.0), 1)]):
        try:
            value = epsilon(spend, 1e-5, discretization=SEARCHING)
        except InvalidSpend:
            continue
        assert value >= 0
