"""Schedules and candidates: shapes, coverage, uniformity, refused input."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.engine import LocalTraining, sample_candidates, schedule
from fedlearn.engine.negatives import candidates_from_uniforms
from fedlearn.errors import OutOfRange
from fedlearn.rng import simulation_rng


def _rng(key: int = 0) -> np.random.Generator:
    return simulation_rng(key, 0, "phone", "test")


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (9, 2, 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_shows_every_example_once(count: int, batch_size: int, steps: int, shuffle: bool) -> None:
    order = schedule(count, LocalTraining(3, batch_size, 0.1, shuffle), _rng())
    assert order.shape == (3 * steps, batch_size)
    for epoch in order.reshape(3, -1):
        assert sorted(epoch[epoch >= 0].tolist()) == list(range(count))
        assert (epoch[count:] == -1).all()
        assert shuffle or epoch[:count].tolist() == list(range(count))


def test_epochs_differ_and_shuffle_is_uniform() -> None:
    order = schedule(3, LocalTraining(6000, 3, 0.1), _rng())
    _, counts = np.unique(order, axis=0, return_counts=True)
    # Six orders, 1000 expected each; chi-square with 5 degrees of freedom, .999 quantile 20.5.
    assert len(counts) == 6
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("client.epochs", (0, 4, 0.1)),
        ("client.batch_size", (1, 0, 0.1)),
        ("client.learning_rate", (1, 4, 0.0)),
        ("client.learning_rate", (1, 4, float("nan"))),
        ("client.learning_rate", (1, 4, float("inf"))),
    ],
)
def test_bad_training_names_the_field(field: str, values: tuple[int, int, float]) -> None:
    with pytest.raises(OutOfRange, match=field):
        LocalTraining(*values)


def test_negative_count_is_refused() -> None:
    with pytest.raises(OutOfRange, match="n_examples"):
        schedule(-1, LocalTraining(1, 1, 0.1), _rng())


@pytest.mark.parametrize(("items", "k", "width"), [(50, 8, 8), (5, 8, 5), (1, 8, 1), (50, 1, 1), (50, 50, 50)])
def test_candidates_are_distinct_and_hold_the_positive_first(items: int, k: int, width: int) -> None:
    positive = _rng().integers(0, items, 200)
    drawn = sample_candidates(positive, items, k, _rng(1))
    assert drawn.items.shape == drawn.logq.shape == (200, width)
    assert drawn.items.dtype == drawn.label.dtype == np.int64
    assert drawn.logq.dtype == np.float32
    assert np.array_equal(drawn.items[:, 0], positive)
    assert not drawn.label.any()
    assert all(len(set(row)) == width for row in drawn.items.tolist())
    assert drawn.items.min() >= 0
    assert drawn.items.max() < items
    np.testing.assert_allclose(drawn.logq, np.log(width / items), rtol=1e-6, atol=1e-7)


def test_negatives_are_uniform_over_sets() -> None:
    """Choosing 3 of the 5 other items: ten sets, each as likely as any."""
    drawn = sample_candidates(np.full(20_000, 2), 6, 4, _rng(2))
    sets, counts = np.unique(np.sort(drawn.items[:, 1:], axis=1), axis=0, return_counts=True)
    assert len(sets) == 10
    assert not (sets == 2).any()
    # Chi-square with 9 degrees of freedom, .999 quantile 27.9.
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9


def test_a_row_does_not_depend_on_the_rows_after_it() -> None:
    positive = np.arange(10)
    whole = sample_candidates(positive, 40, 6, _rng(3))
    head = sample_candidates(positive[:4], 40, 6, _rng(3))
    assert np.array_equal(whole.items[:4], head.items)


def test_drawing_for_many_phones_at_once_changes_nothing() -> None:
    positive = np.arange(7)
    uniforms = [_rng(phone).random((count, 5)) for phone, count in enumerate((3, 4))]
    together = candidates_from_uniforms(positive, 40, np.concatenate(uniforms))
    alone = [sample_candidates(part, 40, 6, _rng(phone)) for phone, part in enumerate((positive[:3], positive[3:]))]
    assert np.array_equal(together.items, np.concatenate([part.items for part in alone]))


def test_no_examples() -> None:
    drawn = sample_candidates(np.zeros(0, np.int64), 40, 6, _rng())
    assert drawn.items.shape == (0, 6)
    assert drawn.label.shape == (0,)


def test_bad_candidates_are_refused() -> None:
    with pytest.raises(OutOfRange, match=r"client\.candidates=0"):
        sample_candidates(np.zeros(1, np.int64), 4, 0, _rng())
    with pytest.raises(OutOfRange, match=r"label=4\.\.4"):
        sample_candidates(np.array([4]), 4, 2, _rng())
    with pytest.raises(OutOfRange, match="label=-1"):
        sample_candidates(np.array([-1]), 4, 2, _rng())
    with pytest.raises(OutOfRange, match="0 items"):
        sample_candidates(np.zeros(0, np.int64), 0, 2, _rng())
