from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from fedlearn.errors import OutOfRange, PrivacyError
from fedlearn.privacy.sampling import RoundKey, SamplingKey, included

KEY = SamplingKey(bytes(range(32)))
Q = 0.1
ROUNDS, DEVICES = 300, 1500
IDS = [f"device-{number}" for number in range(DEVICES)]


def suspicion(cohorts: NDArray[np.bool_], q: float) -> float:
    """Return the smallest p-value over frequency and pairwise-independence tests of bool[rounds, devices].

    Independence over devices shows in the variance of cohort sizes (positive covariance of any pairs inflates it);
    independence over rounds in the variance of how often each device joins, and in the overlap of consecutive rounds.
    """
    rounds, devices = cohorts.shape
    variance = q * (1 - q)
    frequency = (cohorts.sum() - rounds * devices * q) / math.sqrt(rounds * devices * variance)
    sizes = ((cohorts.sum(1) - devices * q) ** 2).sum() / (devices * variance)
    joins = ((cohorts.sum(0) - rounds * q) ** 2).sum() / (rounds * variance)
    overlap = (cohorts[1:] & cohorts[:-1]).sum()
    pairs = (rounds - 1) * devices
    overlap_z = (overlap - pairs * q * q) / math.sqrt(pairs * q * q * (1 - q * q) + 2 * pairs * q**3 * (1 - q))
    two_sided = [2 * norm.sf(abs(z)) for z in (frequency, overlap_z)]
    for statistic, degrees in ((sizes, rounds), (joins, devices)):
        two_sided.append(2 * min(chi2.sf(statistic, degrees), chi2.cdf(statistic, degrees)))
    return float(min(two_sided))


def draw(q: float = Q) -> NDArray[np.bool_]:
    return np.stack([included(KEY.round_key(step, 0), IDS, q) for step in range(ROUNDS)])


def test_inclusion_is_frequent_as_stated_and_pairwise_independent() -> None:
    assert suspicion(draw(), Q) > 1e-3


def test_a_biased_draw_fails_the_same_test() -> None:
    assert suspicion(draw(q=1.05 * Q), Q) < 1e-6


def test_a_draw_shared_by_two_devices_fails_the_same_test() -> None:
    half = draw()[:, : DEVICES // 2]
    assert suspicion(np.concatenate([half, half], axis=1), Q) < 1e-6


def test_a_key_reused_over_two_rounds_fails_the_same_test() -> None:
    assert suspicion(np.repeat(draw()[: ROUNDS // 2], 2, axis=0), Q) < 1e-6


def test_a_capped_cohort_fails_the_same_test() -> None:
    cohorts = draw()
    over = cohorts.cumsum(axis=1) > int(Q * DEVICES)
    assert suspicion(cohorts & ~over, Q) < 1e-6


@pytest.mark.parametrize("shards", [1, 3, 7])
def test_layout_does_not_change_who_is_included(shards: int) -> None:
    key = KEY.round_key(4, 0)
    whole = dict(zip(IDS, included(key, IDS, Q), strict=True))
    for shard in range(shards):
        mine = IDS[shard::shards][::-1]
        assert [whole[name] for name in mine] == included(key, mine, Q).tolist()


def test_a_retry_repeats_the_cohort_and_a_new_attempt_does_not() -> None:
    again = SamplingKey(KEY.reveal())
    first = included(KEY.round_key(4, 0), IDS, Q)
    assert (included(again.round_key(4, 0), IDS, Q) == first).all()
    assert (included(KEY.round_key(4, 1), IDS, Q) != first).any()
    assert (included(KEY.round_key(5, 0), IDS, Q) != first).any()


def test_frozen_draws() -> None:
    # Any port must reproduce these: BLAKE2b-64 keyed by the round key, personalised, over the id's UTF-8.
    assert KEY.round_key(0, 0).reveal().hex()[:16] == "7dd5a107fc5bc6bb"
    assert np.flatnonzero(included(KEY.round_key(0, 0), [str(n) for n in range(40)], 0.25)).tolist() == [
        8,
        14,
        25,
        32,
        35,
        37,
        39,
    ]


def test_extremes() -> None:
    key = KEY.round_key(0, 0)
    assert included(key, IDS, 1.0).all()
    assert not included(key, IDS, 1e-300).any()
    assert included(key, [], 0.5).shape == (0,)
    assert included(key, IDS, math.nextafter(1.0, 0.0)).all()


@pytest.mark.parametrize("q", [0.0, -0.1, 1.1, math.nan])
def test_q_out_of_range(q: float) -> None:
    with pytest.raises(OutOfRange, match="sampling_probability"):
        included(KEY.round_key(0, 0), IDS, q)


@pytest.mark.parametrize("key", [KEY, KEY.round_key(1, 0)])
def test_keys_do_not_leak(key: SamplingKey | RoundKey) -> None:
    secret = key.reveal()
    for text in (repr(key), str(key), f"{key}", f"{[key]}"):
        assert secret.hex() not in text
        assert "hidden" in text
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(PrivacyError, match="cannot be pickled"):
            leak(key)
    with pytest.raises(TypeError, match="unhashable"):
        hash(key)
    with pytest.raises(AttributeError):
        key.note = "x"  # type: ignore[union-attr]


def test_a_round_key_is_not_a_sampling_key() -> None:
    assert RoundKey(bytes(range(32))) != KEY
    assert SamplingKey(bytes(range(32))) == KEY
    assert SamplingKey.fresh() != SamplingKey.fresh()


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33), "x" * 32])
def test_key_length(content: bytes) -> None:
    with pytest.raises(OutOfRange, match="32 bytes"):
        SamplingKey(content)


@pytest.mark.parametrize(("step", "attempt"), [(-1, 0), (0, -1)])
def test_step_and_attempt_out_of_range(step: int, attempt: int) -> None:
    with pytest.raises(OutOfRange, match="must be >= 0"):
        KEY.round_key(step, attempt)
