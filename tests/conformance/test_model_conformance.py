"""The built-in models, and three broken ones that the conformance class must catch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from torch import Tensor

from fedlearn.engine.conformance import ModelConformance
from fedlearn.models import ClientExamples, MatchModel, Model
from fedlearn.models.two_tower import TwoTowerModel


def _match_examples(rng: np.random.Generator) -> ClientExamples:
    return ClientExamples(
        {
            "features": rng.standard_normal((6, 5, 3)).astype(np.float32),
            "label": rng.integers(0, 5, 6),
            "logq": rng.standard_normal((6, 5)).astype(np.float32),
        }
    )


class TestMatch(ModelConformance):
    def model(self) -> Model:
        return MatchModel(3)

    def examples(self, rng: np.random.Generator) -> ClientExamples:
        return _match_examples(rng)


class TestMatchRidge(TestMatch):
    def model(self) -> Model:
        return MatchModel(3, l2=0.01)


class TestTwoTower(ModelConformance):
    def model(self) -> Model:
        return TwoTowerModel(terms=11, items=13, width=4, hidden=5)

    def examples(self, rng: np.random.Generator) -> ClientExamples:
        return ClientExamples(
            {
                "terms": rng.integers(0, 11, (6, 3)),
                "term_weight": rng.integers(0, 2, (6, 3)).astype(np.float32),
                "items": rng.integers(0, 13, (6, 4)),
                "label": rng.integers(0, 4, 6),
                "logq": np.zeros((6, 4), np.float32),
            }
        )

    def query(self, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 11, 3)


class _IgnoresMask(MatchModel):
    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        return super().loss(parameters, batch, mask | True)


class _Sums(MatchModel):
    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        return super().loss(parameters, batch, mask) * mask.sum()


class _ReadsOtherRows(TwoTowerModel):
    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        return super().loss(parameters, batch, mask) + parameters["item_rows"].square().sum()


def _with(base: type[ModelConformance], model: Model) -> ModelConformance:
    return type("Broken", (base,), {"model": lambda self: model})()


@pytest.mark.parametrize(
    ("suite", "method"),
    [
        (_with(TestMatch, _IgnoresMask(3)), "test_empty_mask_gives_exactly_zero"),
        (_with(TestMatch, _IgnoresMask(3)), "test_padded_rows_do_not_matter"),
        (_with(TestMatch, _Sums(3)), "test_loss_is_a_mean"),
        (_with(TestTwoTower, _ReadsOtherRows(11, 13, 4, 5)), "test_vmap_equals_loop"),
    ],
)
def test_broken_models_are_caught(suite: ModelConformance, method: str) -> None:
    with pytest.raises(AssertionError):
        getattr(suite, method)()
