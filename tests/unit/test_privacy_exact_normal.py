from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare, kstest, norm

from fedlearn.errors import InvalidSpend, PrivacyError
from fedlearn.privacy import exact_normal
from fedlearn.privacy.exact_normal import LARGEST_SCALE, CsprngStream, rounded_normal
from fedlearn.privacy.exact_scalar import (
    ByteSource,
    LazyUniform,
    cumulative_bounds,
    exp_bounds,
    rounded_deviate,
)

ALPHA = 1e-6
"""Of tests whose randomness is the operating system's: one false alarm in a million runs."""

WIDE = Fraction(3, 7) * 2**34


def fixed_bytes(seed: int = 7) -> ByteSource:
    return np.random.Generator(np.random.Philox(key=seed)).bytes


def listed(*words: int) -> ByteSource:
    """Return the given 64-bit words, then fail."""
    content: Iterator[bytes] = iter([word.to_bytes(8, "little") for word in words])
    return lambda count: b"".join(next(content) for _ in range(count // 8))


# --- distribution ---


def test_the_operating_systems_noise_is_normal_and_one_percent_off_is_noticed() -> None:
    values = np.sort(rounded_normal(4_000_000, WIDE, CsprngStream()) / float(WIDE))
    assert kstest(values, "norm").pvalue > ALPHA
    for wrong in (0.99, 1.01):
        assert kstest(values * wrong, "norm").pvalue < ALPHA


@pytest.mark.parametrize("scale", [0.2, 0.7, 3.0, 12.5])
def test_small_scales_have_the_exact_probabilities(scale: float) -> None:
    values = rounded_normal(1_000_000, scale, CsprngStream())
    assert fit(values, rounded_probability(scale)) > ALPHA
    for wrong in (0.99, 1.01):
        assert fit(values, rounded_probability(scale * wrong)) < ALPHA
    if scale < 1:  # beyond, the two are too alike for a million draws
        assert fit(values, discrete_gaussian(scale)) < ALPHA


REACH = np.arange(-120, 121)


def rounded_probability(scale: float) -> NDArray[np.float64]:
    """P(round(scale g) = k) from the tails, which keep their relative precision."""
    upper = norm.sf((np.abs(REACH) - 0.5) / scale) - norm.sf((np.abs(REACH) + 0.5) / scale)
    return np.where(REACH == 0, 1 - 2 * norm.sf(0.5 / scale), upper)


def discrete_gaussian(scale: float) -> NDArray[np.float64]:
    """P(k) proportional to exp(-k^2 / (2 scale^2)): another mechanism (Canonne, Kamath and Steinke 2020)."""
    weight = np.exp(-((REACH / scale) ** 2) / 2)
    return weight / weight.sum()


def fit(values: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """Return the p-value of a chi-square test, rare values pooled."""
    expected = probability * values.size
    observed = np.bincount(values - REACH[0], minlength=REACH.size)
    kept = expected >= 10
    rest = max(values.size - expected[kept].sum(), 1e-9)
    return float(
        chisquare(
            np.append(observed[kept], values.size - observed[kept].sum()),
            np.append(expected[kept], rest) * values.size / (expected[kept].sum() + rest),
        ).pvalue
    )


def test_draws_are_uncorrelated_and_their_squares_too() -> None:
    values = rounded_normal(1_000_000, WIDE, CsprngStream()) / float(WIDE)
    for shift in (1, 2, 3, 1 << 15):
        for series in (values, values**2 - 1, np.sign(values)):
            product = series[shift:] * series[:-shift]
            assert abs(product.mean()) < 6 * product.std() / math.sqrt(product.size)


def test_signs_are_even_in_every_magnitude() -> None:
    values = rounded_normal(1_000_000, 1.0, CsprngStream())
    for magnitude in (1, 2, 3):
        positive, negative = (values == magnitude).sum(), (values == -magnitude).sum()
        assert abs(positive - negative) < 6 * math.sqrt(positive + negative)


# --- the fast path against the slow one, and both against an oracle of other means ---


@pytest.mark.parametrize("scale", [Fraction(7, 10), Fraction(3), WIDE, Fraction(2**44 + 1, 3), Fraction(LARGEST_SCALE)])
def test_same_bytes_same_noise_on_both_paths(scale: Fraction, monkeypatch: pytest.MonkeyPatch) -> None:
    slow: list[object] = []

    def counted(*arguments: LazyUniform, negative: bool, scale: Fraction) -> int | None:
        slow.append(arguments)
        return rounded_deviate(*arguments, negative=negative, scale=scale)

    monkeypatch.setattr(exact_normal, "rounded_deviate", counted)
    count = 1_000 if scale == LARGEST_SCALE else 6_000
    plain = rounded_normal(count, scale, fixed_bytes())
    few = len(slow)
    slow.clear()
    widened = rounded_normal(count, scale, fixed_bytes(), _widen=0.05)
    assert len(slow) >= 0.1 * count
    assert few < 0.01 * count or scale > 2**40
    assert (widened == plain).all()
    slow.clear()
    exact = rounded_normal(count, scale, fixed_bytes(), _widen=1.0)
    assert len(slow) >= 1.3 * count  # every attempt
    assert (exact == plain).all()


@pytest.mark.parametrize("scale", [Fraction(7, 10), WIDE])
def test_same_bytes_same_noise_as_in_decimal_arithmetic(scale: Fraction) -> None:
    count = 2_000
    fast = rounded_normal(count, scale, fixed_bytes())
    attempts = math.ceil(1.42 * count) + 16
    words = np.frombuffer(fixed_bytes()(24 * attempts), dtype="<u8").reshape(3, attempts).tolist()
    expected = [value for value in map(decimal_deviate, *words, [scale] * attempts) if value is not None]
    shared = min(count, len(expected))
    assert shared > 0.95 * count
    assert fast[:shared].tolist() == expected[:shared]


def decimal_deviate(head: int, position: int, acceptance: int, scale: Fraction) -> int | None:
    """The recipe in 60 decimal digits, for words that decide everything by themselves."""
    with localcontext() as context:
        context.prec = 60
        weights = [(Decimal(-k * k) / 2).exp() for k in range(20)]
        uniform = (Decimal(head >> 1) + Decimal("0.5")) / 2**63 * sum(weights)
        whole = next(k for k in range(20) if uniform < sum(weights[: k + 1]))
        x = (Decimal(position) + Decimal("0.5")) / 2**64
        if (Decimal(acceptance) + Decimal("0.5")) / 2**64 >= (-x * (2 * whole + x) / 2).exp():
            return None
        magnitude = math.floor(scale * (whole + Fraction(x)) + Fraction(1, 2))
        return -magnitude if head & 1 else magnitude


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.fractions(min_value=0, max_value=400, max_denominator=1 << 70), st.sampled_from([1, 64, 150, 400]))
def test_exp_bounds_hold_and_are_tight(exponent: Fraction, bits: int) -> None:
    low, high = exp_bounds(exponent, bits)
    with localcontext() as context:
        context.prec = 400
        value = (-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp() * 2**bits
        assert low <= value <= high
    assert high - low <= 3


def test_cumulative_bounds_hold_and_are_tight() -> None:
    with localcontext() as context:
        context.prec = 200
        weights = [(Decimal(-k * k) / 2).exp() for k in range(60)]
        for whole in (0, 1, 5, 9, 17):
            low, high = cumulative_bounds(whole, 300)
            assert low <= sum(weights[: whole + 1]) / sum(weights) * 2**300 <= high
            assert high - low <= 3


def test_the_proven_error_of_the_fast_exponential_holds() -> None:
    rng = np.random.Generator(np.random.Philox(key=3))
    edge = np.concatenate([2.0 ** -np.arange(1, 54), 1 - 2.0 ** -np.arange(1, 54), [0.0]])
    whole = np.repeat(np.arange(10.0), 300)
    x = np.concatenate([np.append(edge, rng.random(300 - edge.size)) for _ in range(10)])
    computed = exact_normal._acceptance_probability(whole, x)
    worst = 0.0
    for k, start, probability in zip(whole, x, computed, strict=True):
        for end in (0, Fraction(1, 2**53)):  # the uniform lies anywhere between
            at = Fraction(start) + end
            low, high = exp_bounds(at * (2 * int(k) + at) / 2, 120)
            worst = max(worst, *(abs(float(Fraction(probability) - Fraction(bound, 2**120))) for bound in (low, high)))
    assert worst < 2.0**-36  # proven; the guard is 2^-30
    assert worst > 2.0**-40  # what the polynomial leaves out is seen at all


# --- tails and edges, by crafted bytes ---

ONES = 2**64 - 1


@pytest.mark.parametrize(("extensions", "whole"), [(1, 13), (2, 16), (4, 21)])
def test_no_tail_is_cut(extensions: int, whole: int) -> None:
    """A uniform within 2^-(63 + 64 n) of one names the k whose tail is that small: P(k > 13) is about 2^-145."""
    source = listed(*[ONES] * extensions, 0)
    choice = LazyUniform(2**63 - 1, 63, source)
    value = rounded_deviate(
        choice, LazyUniform(0, 64, source), LazyUniform(0, 64, source), negative=True, scale=Fraction(1000)
    )
    assert value == -1000 * whole
    assert choice.bits == 63 + 64 * (extensions + 1)


def test_the_vectorised_path_reaches_beyond_the_table() -> None:
    attempts = math.ceil(1.42) + 16
    words = [ONES] * attempts + [0] * attempts + [0] * attempts  # sign and k, x, acceptance
    beyond = [word for _ in range(attempts) for word in (ONES, 0)]
    assert rounded_normal(1, Fraction(1000), listed(*words, *beyond)).tolist() == [-13_000]


def test_a_boundary_of_k_is_decided_by_further_bits() -> None:
    low, _ = cumulative_bounds(0, 63 + 64)
    cell, further = low >> 64, low & ONES
    for extension, whole in ((further - 1, 0), (further + 1, 1)):
        source = listed(extension)
        choice = LazyUniform(cell, 63, source)
        half = [LazyUniform(bits, 64, source) for bits in (2**62, 0)]  # x = 1/4, surely accepted
        assert rounded_deviate(choice, *half, negative=False, scale=Fraction(4)) == 4 * whole + 1


def test_a_boundary_of_the_rounding_is_decided_by_further_bits() -> None:
    """3 x = 1/2 at x = 1/6, whose binary digits are 0x2AAA... and then 0xAAAA..."""
    for extension, rounded in ((0, 0), (0xAAAAAAAAAAAAAAA9, 0), (0xAAAAAAAAAAAAAAAB, 1), (ONES, 1)):
        source = listed(extension)
        choice, acceptance = LazyUniform(0, 63, source), LazyUniform(0, 64, source)
        x = LazyUniform(0x2AAAAAAAAAAAAAAA, 64, source)
        assert rounded_deviate(choice, x, acceptance, negative=False, scale=Fraction(3)) == rounded


def test_an_acceptance_too_close_to_call_is_decided_by_further_bits() -> None:
    low, _ = exp_bounds(Fraction(1, 8), 128)  # k = 0, x = 1/2
    for delta, kept in ((-(2**20), True), (2**20, False)):
        acceptance = (low + delta) >> 64
        source = listed(0, (low + delta) & ONES)
        deviate = rounded_deviate(
            LazyUniform(0, 63, source),
            LazyUniform(2**63, 64, source),
            LazyUniform(acceptance, 64, source),
            negative=False,
            scale=Fraction(10),
        )
        assert (deviate == 5) is kept
        assert (deviate is None) is not kept


def test_a_source_that_repeats_itself_is_refused() -> None:
    with pytest.raises(PrivacyError, match="source"):
        rounded_normal(1, 1.0, lambda count: b"\xff" * count)


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, Fraction(0), LARGEST_SCALE + 1, Fraction(2) ** 2000])
def test_scales_out_of_range(bad: Fraction | float) -> None:
    with pytest.raises(InvalidSpend, match="2\\^50"):
        rounded_normal(1, bad, CsprngStream())


def test_counts() -> None:
    assert rounded_normal(0, 1.0, CsprngStream()).shape == (0,)
    assert rounded_normal((1 << 15) + 7, 1.0, CsprngStream()).shape == ((1 << 15) + 7,)
    assert rounded_normal(5, 1e-300, CsprngStream()).tolist() == [0] * 5
    with pytest.raises(InvalidSpend, match="count"):
        rounded_normal(-1, 1.0, CsprngStream())


# --- the stream ---


def test_streams_share_nothing_and_show_nothing() -> None:
    one, two = CsprngStream(), CsprngStream()
    first = one(64)
    assert first != two(64)
    assert first != one(64)
    assert repr(one) == "CsprngStream(<hidden>)"
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError, match="secret"):
            leak(one)
    assert not hasattr(one, "__dict__")


def test_a_stream_ends_before_it_repeats() -> None:
    stream = CsprngStream()
    stream._left = 10
    assert len(stream(10)) == 10
    with pytest.raises(PrivacyError, match="random bytes"):
        stream(1)
