"""Tests that every model must pass; subclass in a test file, pytest collects the methods. ::

class TestMine(ModelConformance):
    def model(self) -> Model: ...
    def examples(self, rng: np.random.Generator) -> ClientExamples: ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedlearn.engine.base import to_tensor
from fedlearn.engine.registry import make_engine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.models.base import ClientExamples, Model, Parameters, flatten, unflatten

RELATIVE_TOLERANCE = 1e-12
LEARNING_RATE = 0.1


class ModelConformance:
    """What the engines rely on. Override ``model`` and ``examples``; ``query`` too unless a column is ``features``."""

    def model(self) -> Model:
        """Return the model under test."""
        raise NotImplementedError

    def examples(self, rng: np.random.Generator) -> ClientExamples:
        """Return the examples of one phone, at least 4, drawn from ``rng``; each call has the same column shapes."""
        raise NotImplementedError

    def query(self, rng: np.random.Generator) -> NDArray[Any]:
        """Return what ``Model.scores`` ranks for: by default the features of one example."""
        return np.asarray(self.examples(rng).columns["features"][0])

    def parameters(self) -> Parameters:
        """Return the initial weights plus noise: at a symmetric starting point much holds by accident."""
        rng = _rng(1)
        return {
            name: (array + 0.1 * rng.standard_normal(array.shape)).astype(np.float32)
            for name, array in self.model().initial(0).items()
        }

    def test_initial_is_sorted_f32_and_repeatable(self) -> None:
        """Names sorted, dtype f32, finite, equal bits for equal seeds."""
        first, second = self.model().initial(0), self.model().initial(0)
        _require(list(first) == sorted(first), "initial: names must be in sorted order.")
        for name, array in first.items():
            _require(array.dtype == np.float32, f"initial[{name!r}]: dtype {array.dtype}, must be float32.")
            _require(bool(np.isfinite(array).all()), f"initial[{name!r}]: must be finite.")
            _require(np.array_equal(array, second[name]), f"initial[{name!r}]: differs between two calls.")

    def test_loss_is_a_finite_scalar(self) -> None:
        """The loss of a minibatch is one finite number."""
        loss = self.model().loss(*self._minibatch(np.ones(4, bool)))
        _require(loss.shape == (), f"loss: shape {tuple(loss.shape)}, must be a scalar.")
        _require(bool(torch.isfinite(loss)), f"loss: {float(loss)}, must be finite.")

    def test_loss_is_a_mean(self) -> None:
        """Showing every row twice changes neither loss nor gradient, so the learning rate fits any batch size."""
        parameters, batch, mask = self._minibatch(np.ones(4, bool))
        doubled = {name: torch.cat([column, column]) for name, column in batch.items()}
        once = _gradient(self.model(), parameters, batch, mask)
        twice = _gradient(self.model(), parameters, doubled, torch.cat([mask, mask]))
        _require(_distance(once, twice) <= RELATIVE_TOLERANCE, "loss: must be the mean over the rows, not their sum.")

    def test_empty_mask_gives_exactly_zero(self) -> None:
        """With no true row in the mask, loss and gradient are exactly 0."""
        parameters, batch, mask = self._minibatch(np.zeros(4, bool))
        _require(float(self.model().loss(parameters, batch, mask)) == 0.0, "loss: must be 0 when the mask is empty.")
        gradient = _gradient(self.model(), parameters, batch, mask)
        _require(not gradient.any(), "loss: gradient must be exactly 0 when the mask is empty.")

    def test_padded_rows_do_not_matter(self) -> None:
        """Rows that the mask hides may be anything, in any order, and may be absent."""
        parameters, batch, mask = self._minibatch(np.array([True, True, False, False]))
        shown = _gradient(self.model(), parameters, {name: column[:2] for name, column in batch.items()}, mask[:2])
        for order in ([0, 1, 2, 3], [0, 1, 3, 2], [0, 1, 0, 0]):
            moved = {name: column[order] for name, column in batch.items()}
            hidden = _gradient(self.model(), parameters, moved, mask)
            _require(_distance(shown, hidden) <= RELATIVE_TOLERANCE, "loss: reads rows that the mask hides.")

    def test_vmap_equals_loop(self) -> None:
        """Both engines give the same update, for ragged, one-example and empty phones."""
        full = [self.examples(_rng(10 + phone)) for phone in range(4)]
        clients = [_head(client, count) for client, count in zip(full, (4, 3, 1, 0), strict=True)]
        training = LocalTraining(epochs=2, batch_size=2, learning_rate=LEARNING_RATE)
        orders = [schedule(client.count, training, _rng(20 + phone)) for phone, client in enumerate(clients)]
        loop, vmap = (
            make_engine(name, self.model(), learning_rate=LEARNING_RATE, dtype="float64").updates(
                self.parameters(), clients, orders
            )
            for name in ("loop", "vmap")
        )
        for phone in range(4):
            _require(
                _distance(loop.deltas[phone], vmap.deltas[phone]) <= RELATIVE_TOLERANCE,
                f"vmap: phone {phone} differs from the loop; is row_columns complete, and loss free of state?",
            )
        _require(bool(np.allclose(loop.losses, vmap.losses, rtol=1e-9)), "vmap: losses differ from the loop.")

    def test_training_lowers_the_loss(self) -> None:
        """Enough small steps on one phone lower its own loss."""
        client = self.examples(_rng(3))
        training = LocalTraining(epochs=20, batch_size=client.count, learning_rate=0.01)
        engine = make_engine("loop", self.model(), learning_rate=training.learning_rate, dtype="float64")
        order = schedule(client.count, training, _rng(4))
        parameters = self.parameters()
        before = engine.updates(parameters, [client], [order])
        moved = unflatten(flatten(parameters, np.float64) + before.deltas[0], parameters)
        after = engine.updates(moved, [client], [order])
        _require(bool(after.losses[0] < before.losses[0]), "loss: 20 steps at rate 0.01 do not lower it.")

    def test_scores_are_deterministic(self) -> None:
        """Scores are a finite f64 vector, bit-equal from call to call."""
        first, second = (self.model().scores(self.parameters(), self.query(_rng(5))) for _ in range(2))
        _require(first.ndim == 1 and first.dtype == np.float64, "scores: must be f64[N].")
        _require(bool(np.isfinite(first).all()), "scores: must be finite.")
        _require(np.array_equal(first, second), "scores: differ between two calls.")

    def test_scores_of_several_occasions(self) -> None:
        """Feature rows of two occasions, [2, N, d], score as each does alone; for models of match features."""
        first, second = self.query(_rng(6)), self.query(_rng(7))
        if first.ndim != 2:
            return
        alone = [self.model().scores(self.parameters(), query) for query in (first, second)]
        together = self.model().scores(self.parameters(), np.stack([first, second]))
        _require(np.array_equal(together, np.stack(alone)), "scores: of [2, N, d] differ from those of each [N, d].")

    def _minibatch(self, mask: NDArray[np.bool_]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return f64 weights, four examples, and the mask."""
        client = _head(self.examples(_rng(2)), 4)
        _require(client.count == 4, "examples: return at least 4.")
        parameters = {name: to_tensor(array, torch.float64) for name, array in self.parameters().items()}
        batch = {name: to_tensor(column, torch.float64) for name, column in client.columns.items()}
        return parameters, batch, torch.from_numpy(mask)


def _rng(key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([key, 0], np.uint64)))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _head(client: ClientExamples, count: int) -> ClientExamples:
    return ClientExamples({name: column[:count] for name, column in client.columns.items()})


def _gradient(model: Model, parameters: dict[str, Tensor], batch: dict[str, Tensor], mask: Tensor) -> NDArray[Any]:
    gradients = torch.func.grad(model.loss)(parameters, batch, mask)
    return flatten({name: gradient.numpy() for name, gradient in gradients.items()}, np.float64)


def _distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    scale = float(np.linalg.norm(first))
    return float(np.linalg.norm(first - second)) / (scale if scale > 0.0 else 1.0)
