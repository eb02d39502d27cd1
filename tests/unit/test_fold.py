"""The fold: each rejection alone, in the middle of good contributions, and what the sum would be without the check."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fedlearn.codec import codec_by_name
from fedlearn.errors import (
    ContributionRejected,
    MalformedMessage,
    MessageTooLarge,
    OutOfRange,
    Reason,
    RoundFailed,
    VersionUnsupported,
)
from fedlearn.fold import COHORT_NORM_SLACK, Fold, FoldTerms, checked
from fedlearn.types import Contribution, Level
from fedlearn.wire import decode_contribution, encode_contribution

DIGEST = bytes(32)
CLIP = 1.0
STEP = 2.0**-30
DIM = 3
NONCES = itertools.count(1)

PHONE_GRID = FoldTerms(DIGEST, DIM, CLIP, STEP, Level.PHONE)
PHONE_F64 = FoldTerms(DIGEST, DIM, CLIP, None, Level.PHONE)
COHORT_GRID = FoldTerms(DIGEST, DIM, CLIP, STEP, Level.COHORT)
COHORT_F64 = FoldTerms(DIGEST, DIM, CLIP, None, Level.COHORT)
RESERVED = 10


def nonce() -> bytes:
    return next(NONCES).to_bytes(16, "big")


def contribution(terms: FoldTerms, values: list[float] | None = None, count: int | None = None) -> Contribution:
    """Return a good contribution of these model units (or grid steps)."""
    grid = terms.grid_step is not None
    phones = (1 if terms.level is Level.PHONE else 4) if count is None else count
    if values is None:
        values = [2**28, -(2**27), 3] if grid else [0.25, -0.125, 1e-9]
    return Contribution(
        codec="grid64" if grid else "f64",
        scale=terms.grid_step or 1.0,
        level=terms.level,
        count=phones,
        l2_bound=phones * CLIP,
        task_digest=DIGEST,
        nonce=nonce(),
        values=np.array(values, "<i8" if grid else "<f8"),
    )


def offer(fold: Fold, made: Contribution) -> Contribution | None:
    return fold.offer(lambda: made, RESERVED)


ALL_TERMS = pytest.mark.parametrize(
    "terms", [PHONE_GRID, PHONE_F64, COHORT_GRID, COHORT_F64], ids=["phone-grid", "phone-f64", "cohort-grid", "cohort"]
)


@ALL_TERMS
def test_sum_equals_the_oracle(terms: FoldTerms) -> None:
    rng = np.random.default_rng(5)
    fold, exact, phones = Fold(terms), [Fraction(0)] * DIM, 0
    for _ in range(50):
        values = rng.uniform(-0.5, 0.5, DIM)
        made = contribution(terms, (np.trunc(values / STEP) if terms.grid_step else values).tolist())
        assert offer(fold, made) is made
        scale = Fraction(made.scale)
        exact = [total + scale * Fraction(v) for total, v in zip(exact, made.values.tolist(), strict=True)]
        phones += made.count
    bounded = fold.bounded_sum(7, CLIP)
    assert (bounded.step, bounded.count, bounded.l2_sensitivity) == (7, phones, CLIP)
    assert bounded.grid_step == terms.grid_step
    if terms.grid_step is None:
        np.testing.assert_allclose(bounded.values, [float(v) for v in exact], rtol=0, atol=1e-12)
    else:
        assert [Fraction(v) for v in bounded.values.tolist()] == exact


def test_f32_phones_enter_an_f64_sum() -> None:
    fold = Fold(PHONE_F64)
    made = replace(contribution(PHONE_F64), codec="f32", values=np.array([0.5, 2.0**-40, 0.0], "<f4"))
    assert offer(fold, made) is made
    assert offer(fold, replace(made, nonce=nonce(), values=np.array([0.5, 1.0e-3, 0.0], "<f4"))) is not None
    assert fold.bounded_sum(0, CLIP).values[1] == 2.0**-40 + float(np.float32(1.0e-3))


def poisoned(terms: FoldTerms) -> list[tuple[Reason, Contribution]]:
    """One contribution for each reason that a fold of these terms can find in a decoded message."""
    grid = terms.grid_step is not None
    good = contribution(terms)
    other_level = Level.COHORT if terms.level is Level.PHONE else Level.PHONE
    found = [
        (Reason.WRONG_LEVEL, replace(good, level=other_level, nonce=nonce())),
        (Reason.WRONG_TASK, replace(good, task_digest=b"\x01" * 32, nonce=nonce())),
        (Reason.WRONG_SHAPE, replace(good, values=np.append(good.values, good.values[:1]), nonce=nonce())),
        (Reason.WRONG_SHAPE, replace(good, values=good.values[:-1], nonce=nonce())),
        (Reason.WRONG_SHAPE, replace(good, values=good.values.reshape(1, -1), nonce=nonce())),
        (Reason.WRONG_DTYPE, replace(good, codec="f64" if grid else "grid64", nonce=nonce())),
        (Reason.WRONG_DTYPE, replace(good, codec="ring64", nonce=nonce())),
        (Reason.WRONG_DTYPE, replace(good, scale=2 * good.scale, nonce=nonce())),
        (Reason.WRONG_DTYPE, replace(good, scale=math.nan, nonce=nonce())),
        (Reason.WRONG_DTYPE, replace(good, values=good.values.astype("<f4"), nonce=nonce())),
        (Reason.OVER_COUNT, replace(good, count=RESERVED + 1, nonce=nonce())),
        (Reason.OVER_COUNT, replace(good, count=2**63, nonce=nonce())),
        (Reason.OVER_NORM, replace(good, l2_bound=good.count * CLIP * 1.001, nonce=nonce())),
        (Reason.OVER_NORM, replace(good, l2_bound=math.nan, nonce=nonce())),
    ]
    if terms.level is Level.PHONE:
        found += [(Reason.OVER_COUNT, replace(good, count=count, nonce=nonce())) for count in (0, 2)]
    if grid:
        huge = np.array([2**62, -(2**62), -(2**63)], "<i8")
        return [*found, (Reason.OVER_NORM, replace(good, values=huge, nonce=nonce()))]
    for bad, reason in (
        (math.nan, Reason.NOT_FINITE),
        (math.inf, Reason.NOT_FINITE),
        (-math.inf, Reason.NOT_FINITE),
        (1e308, Reason.OVER_NORM),
        (1e200, Reason.OVER_NORM),
    ):
        found.append((reason, replace(good, values=np.array([bad, bad, 0.0]), nonce=nonce())))
    return found


@ALL_TERMS
def test_each_bad_contribution_is_counted_and_the_rest_is_summed(terms: FoldTerms) -> None:
    good = [contribution(terms) for _ in range(3)]
    for reason, bad in poisoned(terms):
        fold = Fold(terms)
        assert [offer(fold, made) is not None for made in (good[0], bad, good[1], good[2])] == [True, False, True, True]
        assert fold.rejected == {reason: 1}, bad
        assert fold.accepted == 3
        assert fold.count == 3 * good[0].count
        expected = 3 * codec_by_name(good[0].codec).decode(good[0].values, good[0].scale)
        np.testing.assert_allclose(fold.bounded_sum(0, CLIP).values, expected, rtol=1e-15)


@ALL_TERMS
def test_without_the_check_the_sum_would_be_poisoned(terms: FoldTerms) -> None:
    """The negative control: added blindly, each bad value changes the sum, the count, or breaks it altogether."""
    good = contribution(terms)
    codec = codec_by_name(good.codec)
    for reason, bad in poisoned(terms):
        if reason in {Reason.WRONG_SHAPE, Reason.WRONG_DTYPE}:
            continue
        total = codec.add(np.array(good.values), bad.values)
        assert not np.array_equal(total, good.values) or bad.count != good.count


def test_duplicate_nonce() -> None:
    fold, made = Fold(COHORT_GRID), contribution(COHORT_GRID)
    assert offer(fold, made) is made
    assert offer(fold, made) is None
    assert offer(fold, replace(made, values=2 * made.values)) is None
    assert fold.rejected == {Reason.DUPLICATE: 2}
    np.testing.assert_array_equal(fold.bounded_sum(0, CLIP).values, made.values * STEP)


def test_a_rejected_contribution_does_not_burn_its_nonce() -> None:
    """Otherwise a bad copy, sent first, would keep the good one out."""
    fold, made = Fold(COHORT_GRID), contribution(COHORT_GRID)
    assert offer(fold, replace(made, task_digest=b"\x01" * 32)) is None
    assert offer(fold, made) is made


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MalformedMessage("x"), Reason.MALFORMED),
        (VersionUnsupported("x"), Reason.MALFORMED),
        (MessageTooLarge("x"), Reason.OVERSIZE),
        (ContributionRejected(Reason.FAILED, "x"), Reason.FAILED),
    ],
)
def test_what_cannot_be_decoded(error: Exception, reason: Reason) -> None:
    fold = Fold(COHORT_GRID)

    def decode() -> Contribution:
        raise error

    assert fold.offer(decode) is None
    assert fold.rejected == {reason: 1}


def test_bytes_over_the_cap() -> None:
    big = contribution(COHORT_GRID, [0] * 10_000)
    frame = encode_contribution(big)
    assert len(frame) > COHORT_GRID.max_bytes
    fold = Fold(COHORT_GRID)
    assert fold.offer(lambda: decode_contribution(frame, COHORT_GRID.max_bytes), RESERVED) is None
    assert fold.rejected == {Reason.OVERSIZE: 1}


def test_a_good_message_fits_the_cap() -> None:
    for terms in (PHONE_GRID, PHONE_F64, COHORT_GRID, COHORT_F64):
        assert len(encode_contribution(contribution(terms))) < terms.max_bytes


def test_nothing_accepted() -> None:
    with pytest.raises(RoundFailed, match="no reply arrived"):
        Fold(COHORT_GRID).bounded_sum(4, CLIP)
    fold = Fold(COHORT_GRID)
    offer(fold, replace(contribution(COHORT_GRID), task_digest=b"\x01" * 32))
    with pytest.raises(RoundFailed, match=r"step 4.*wrong_task_digest: 1"):
        fold.bounded_sum(4, CLIP)


def test_an_empty_cohort_is_an_answer() -> None:
    for terms in (COHORT_GRID, COHORT_F64):
        fold = Fold(terms)
        assert offer(fold, contribution(terms, [0, 0, 0], count=0)) is not None
        assert fold.bounded_sum(0, CLIP).count == 0
        assert offer(fold, contribution(terms, [1, 0, 0], count=0)) is None
        assert fold.rejected == {Reason.OVER_NORM: 1}


def accepted(terms: FoldTerms, values: list[float], count: int | None = None) -> bool:
    fold = Fold(terms)
    return offer(fold, contribution(terms, values, count)) is not None


UNITS = 2**30


@pytest.mark.parametrize(("terms", "count"), [(PHONE_GRID, 1), (COHORT_GRID, 1), (COHORT_GRID, 9)])
def test_bound_to_the_grid_unit(terms: FoldTerms, count: int) -> None:
    edge = count * UNITS
    assert accepted(terms, [edge, 0, 0], count)
    assert not accepted(terms, [edge + 1, 0, 0], count)
    assert not accepted(terms, [0, -edge - 1, 0], count)
    # one unit beside the bound: the norm is over by 5e-19 of it, far below what f64 resolves
    assert not accepted(terms, [edge, 1, 0], count)
    assert accepted(terms, [edge - 1, 1, 0], count)


def test_a_vector_exactly_on_the_sphere() -> None:
    third = 3 * UNITS
    assert accepted(COHORT_GRID, [2 * third, 2 * third, third], 9)
    assert not accepted(COHORT_GRID, [2 * third, 2 * third, third + 1], 9)


def test_bound_to_the_ulp() -> None:
    over = math.nextafter(1.0, 2.0)
    assert accepted(PHONE_F64, [1.0, 0.0, 0.0])
    assert not accepted(PHONE_F64, [over, 0.0, 0.0])
    assert not accepted(PHONE_F64, [0.0, 0.0, -over])
    # 0.36 + 0.64 = 1 in decimals; in binary 0.6 is below and 0.8 above, and the exact sum decides
    exact = Fraction(0.6) ** 2 + Fraction(0.8) ** 2
    assert accepted(PHONE_F64, [0.6, 0.8, 0.0]) is (exact <= 1)
    assert not accepted(PHONE_F64, [0.6, math.nextafter(0.8, 1.0), 0.0])
    # adding 2^-60 squared is invisible to f64, not to the check
    assert not accepted(PHONE_F64, [1.0, 2.0**-60, 0.0])


def test_f32_bound_to_the_ulp() -> None:
    for value, good in ((np.float32(1.0), True), (np.nextafter(np.float32(1.0), np.float32(2.0)), False)):
        made = replace(contribution(PHONE_F64), codec="f32", values=np.array([value, 0, 0], "<f4"))
        assert (offer(Fold(PHONE_F64), made) is not None) is good


def test_f64_cohorts_have_slack_for_rounding_only() -> None:
    assert accepted(COHORT_F64, [4.0 * (1.0 + 0.5 * COHORT_NORM_SLACK), 0.0, 0.0], 4)
    assert not accepted(COHORT_F64, [4.0 * (1.0 + 2.0 * COHORT_NORM_SLACK), 0.0, 0.0], 4)


def test_a_signalling_nan_is_only_a_nan() -> None:
    """Converting one raises the processor's invalid flag, which must not become a warning or an error."""
    values = np.frombuffer(b"\x01\x00\xa0\x7f" + bytes(8), "<f4")
    made = replace(contribution(PHONE_F64), codec="f32", values=values)
    fold = Fold(PHONE_F64)
    assert offer(fold, made) is None
    assert fold.rejected == {Reason.NOT_FINITE: 1}


@pytest.mark.parametrize("clip", [1e-280, 3.0e-5, 1.0, 7.3, 1e30])
def test_any_clip_norm(clip: float) -> None:
    terms = FoldTerms(DIGEST, DIM, clip, None, Level.PHONE)
    made = replace(contribution(PHONE_F64), l2_bound=clip, values=np.array([clip, 0.0, 0.0]))
    assert offer(Fold(terms), made) is made
    over = replace(made, values=np.array([math.nextafter(clip, math.inf), 0.0, 0.0]))
    assert offer(Fold(terms), over) is None


def test_the_sum_is_kept_whatever_callers_do_to_their_arrays() -> None:
    fold, made = Fold(COHORT_GRID), contribution(COHORT_GRID)
    before = made.values.copy()
    offer(fold, made)
    made.values[:] = 0
    first = fold.bounded_sum(0, CLIP)
    first.values[:] = 0.0
    np.testing.assert_array_equal(fold.bounded_sum(0, CLIP).values, before * STEP)


def test_a_sum_that_f64_would_round_is_refused() -> None:
    """One grid unit above 2^53 would come out as none: a phone could move the released sum by more than its clip."""
    phones = 2**23 + 8
    for units, exact in ((2**53, True), (2**53 + 1, False), (-(2**53) - 1, False)):
        fold = Fold(COHORT_GRID)
        made = contribution(COHORT_GRID, [units, 0, 0], phones)
        assert fold.offer(lambda made=made: made, phones) is made
        if exact:
            assert fold.bounded_sum(0, CLIP).values[0] == 2.0**23
        else:
            with pytest.raises(OutOfRange, match=r"2\^53"):
                fold.bounded_sum(0, CLIP)


def test_int64_never_wraps() -> None:
    """Three vectors within their bounds whose sum is past 2^63; added blindly, it comes out negative."""
    units, phones = 3 * 2**60, 3 * 2**30
    fold = Fold(COHORT_GRID)
    made = [contribution(COHORT_GRID, [units, 0, 0], phones) for _ in range(3)]
    added = [fold.offer(lambda one=one: one, phones) is not None for one in made]
    assert added == [True, False, False]
    assert fold.rejected == {Reason.OVER_COUNT: 2}
    codec = codec_by_name("grid64")
    assert codec.add(codec.add(made[0].values, made[1].values), made[2].values)[0] < 0


@ALL_TERMS
def test_one_contribution_is_checked_as_the_fold_checks_it(terms: FoldTerms) -> None:
    good = contribution(terms)
    assert checked(lambda: good, terms, RESERVED) is good
    for bad in (replace(good, task_digest=bytes([1]) * 32), replace(good, values=good.values[:1])):
        fold = Fold(terms)
        assert fold.offer(lambda bad=bad: bad, RESERVED) is None
        with pytest.raises(ContributionRejected) as rejected:
            checked(lambda bad=bad: bad, terms, RESERVED)
        assert list(fold.rejected) == [rejected.value.reason]
