"""Ranks, metrics and intervals against slow definitions and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import UnknownSetting
from fedlearn.lab.evaluation import UserBootstrap, hit_rate, ndcg, ranks, reciprocal_rank
from fedlearn.lab.registry import build_metric


def slow_rank(scores: list[float], label: int) -> int:
    """Definition: one more than the number of other items that are not strictly worse."""
    return 1 + sum(1 for item, score in enumerate(scores) if item != label and not score < scores[label])


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_ranks_equal_the_definition_with_ties_against_the_positive(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 12))
    row = st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, math.nan]), min_size=items, max_size=items)
    rows = data.draw(st.lists(row, min_size=1, max_size=5))
    labels = [data.draw(st.integers(0, items - 1)) for _ in rows]
    expected = [slow_rank(scores, label) for scores, label in zip(rows, labels, strict=True)]
    assert ranks(np.array(rows), np.array(labels)).tolist() == expected


def test_a_model_that_scores_everything_alike_ranks_last() -> None:
    assert ranks(np.zeros((2, 951)), np.array([0, 950])).tolist() == [951, 951]


def test_metrics_at_known_ranks() -> None:
    at = np.array([1, 2, 10, 11])
    assert hit_rate(10)(at).tolist() == [1.0, 1.0, 1.0, 0.0]
    # Järvelin & Kekäläinen (2002): gain 1 discounted by log2(rank + 1)
    assert ndcg(10)(at) == pytest.approx([1.0, 1 / math.log2(3), 1 / math.log2(11), 0.0])
    assert reciprocal_rank(None)(at) == pytest.approx([1.0, 0.5, 0.1, 1 / 11])
    assert reciprocal_rank(10)(at)[3] == 0.0


@pytest.mark.parametrize("name", ["HR", "NDCG", "HR@0", "HR@x", "AUC@3", "hr@10"])
def test_a_metric_that_does_not_exist_is_named(name: str) -> None:
    with pytest.raises(UnknownSetting, match=r"evaluation\.metrics"):
        build_metric(name)


def test_bootstrap_interval_covers_the_normal_one_when_each_user_has_one_session() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 400)
    low, high = UserBootstrap(np.arange(400), 4000).interval(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)


def test_bootstrap_resamples_users_not_sessions() -> None:
    """Ten copies of each user's session carry no more information than one."""
    values = np.random.default_rng(1).normal(size=60)
    once = UserBootstrap(np.arange(60), 2000).interval(values)
    tenfold = UserBootstrap(np.repeat(np.arange(60), 10), 2000).interval(np.repeat(values, 10))
    assert tenfold == pytest.approx(once, abs=1e-12)


def test_bootstrap_of_sessions_would_be_too_narrow() -> None:
    """Negative control for the test above: treating every copy as a user shrinks the interval by sqrt(10)."""
    values = np.random.default_rng(1).normal(size=60)
    users = UserBootstrap(np.repeat(np.arange(60), 10), 2000).interval(np.repeat(values, 10))
    sessions = UserBootstrap(np.arange(600), 2000).interval(np.repeat(values, 10))
    assert (users[1] - users[0]) > 2.5 * (sessions[1] - sessions[0])
