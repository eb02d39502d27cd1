"""The default model: a conditional logit over match features, tens of weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import OutOfRange
from fedlearn.models.base import Parameters, masked_mean
from fedlearn.types import F64

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class MatchModel:
    """Conditional logit: the chosen item's utility is ``features @ weights`` (McFadden 1974).

    Batch columns: ``features`` f32[n, K, d] of the K candidates, ``label`` i64[n] the chosen candidate's position,
    ``logq`` f32[n, K] the log of how often the sampler puts an item among the candidates. ``logq`` is subtracted from
    the logits, so that the loss estimates the softmax over the whole catalogue (Bengio & Senecal 2008). A uniform
    sampler's ``logq`` is constant and cancels, which is McFadden's (1978) uniform conditioning property.

    Args:
        width: number of features d, >= 1.
        l2: weight of the ridge penalty ``l2 / 2 * ||weights||^2`` in every minibatch, >= 0.
    """

    width: int
    l2: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1:
            raise OutOfRange(f"model.width={self.width}: must be >= 1, the number of match features.")
        if not 0.0 <= self.l2 < float("inf"):
            raise OutOfRange(f"model.l2={self.l2}: must be >= 0 and finite, e.g. 0.001.")

    @property
    def name(self) -> str:
        """``match``."""
        return "match"

    @property
    def row_columns(self) -> Mapping[str, tuple[str, ...]]:
        """Nothing: the model is dense."""
        return {}

    def initial(self, seed: int) -> Parameters:
        """Return zero weights, f32[d]: the loss is convex, so no seed is needed."""
        del seed
        return {"weights": np.zeros(self.width, np.float32)}

    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return the mean cross-entropy of the chosen candidate, plus the ridge penalty if any row counts."""
        weights = parameters["weights"]
        logits = batch["features"] @ weights - batch["logq"]
        chosen = logits.gather(-1, batch["label"].unsqueeze(-1)).squeeze(-1)
        mean = masked_mean(logits.logsumexp(-1) - chosen, mask)
        if self.l2 == 0.0:
            return mean
        return mean + 0.5 * self.l2 * weights.square().sum() * mask.any().to(weights.dtype)

    def scores(self, parameters: Parameters, query: NDArray[Any]) -> F64:
        """Return utilities f64[...] of feature rows f32[..., d].

        Each row is summed by itself, not by a matrix product, whose result for a row depends on the row's position:
        equal rows must tie exactly.
        """
        products = query.astype(np.float64) * parameters["weights"].astype(np.float64)
        return np.asarray(products.sum(axis=-1), dtype=np.float64)
