"""An embedding model for large populations, and the fixture on which the engines are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from fedlearn.errors import OutOfRange
from fedlearn.models.base import Parameters, masked_mean
from fedlearn.types import F64


@dataclass(frozen=True, slots=True)
class TwoTowerModel:
    """User terms through a small tower, items by their own rows, sampled softmax over the candidates.

    Batch columns: ``terms`` i64[n, T] term ids, ``term_weight`` f32[n, T] (0 pads), ``items`` i64[n, K] candidate
    ids, ``label`` i64[n] the position of the chosen one, ``logq`` f32[n, K] as in ``MatchModel``. The defaults have
    44,112 weights.

    A phone reads only the rows its ids name, and an engine may exploit that; the update that leaves the phone is dense
    over all rows, so that its shape and index set are the same for every phone. With few phones the noise of a private
    round covers far more weights than a phone has signal for: use ``match`` there.

    Args:
        terms: rows of the term table, >= 1.
        items: rows of the item table, >= 1.
        width: embedding width, >= 1.
        hidden: width of the tower's hidden layer, >= 1.
    """

    terms: int = 1024
    items: int = 1600
    width: int = 16
    hidden: int = 64

    def __post_init__(self) -> None:
        for name in ("terms", "items", "width", "hidden"):
            if getattr(self, name) < 1:
                raise OutOfRange(f"model.{name}={getattr(self, name)}: must be >= 1.")

    @property
    def name(self) -> str:
        """``two_tower``."""
        return "two_tower"

    @property
    def row_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The two embedding tables."""
        return {"item_rows": ("items",), "term_rows": ("terms",)}

    def initial(self, seed: int) -> Parameters:
        """Return normal weights of std 1/sqrt(fan-in) and zero biases, f32, a pure function of ``seed``."""
        rng = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, 0], np.uint64)))
        shapes = {
            "hidden_bias": (self.hidden,),
            "hidden_weight": (self.width, self.hidden),
            "item_rows": (self.items, self.width),
            "output_bias": (self.width,),
            "output_weight": (self.hidden, self.width),
            "term_rows": (self.terms, self.width),
        }
        fan_in = {"hidden_weight": self.width, "output_weight": self.hidden}
        return {
            name: np.zeros(shape, np.float32)
            if name.endswith("bias")
            else (rng.standard_normal(shape) / np.sqrt(fan_in.get(name, self.width))).astype(np.float32)
            for name, shape in shapes.items()
        }

    def loss(self, parameters: Mapping[str, Tensor], batch: Mapping[str, Tensor], mask: Tensor) -> Tensor:
        """Return the mean cross-entropy of the chosen item among its candidates."""
        weight = batch["term_weight"].unsqueeze(-1)
        rows = embedding(batch["terms"], parameters["term_rows"])
        mean = (rows * weight).sum(-2) / weight.sum(-2).clamp(min=1e-6)
        hidden = (mean @ parameters["hidden_weight"] + parameters["hidden_bias"]).relu()
        user = hidden @ parameters["output_weight"] + parameters["output_bias"]
        items = embedding(batch["items"], parameters["item_rows"])
        logits = (items * user.unsqueeze(-2)).sum(-1) - batch["logq"]
        chosen = logits.gather(-1, batch["label"].unsqueeze(-1)).squeeze(-1)
        return masked_mean(logits.logsumexp(-1) - chosen, mask)

    def scores(self, parameters: Parameters, query: NDArray[Any]) -> F64:
        """Return the score of every item, f64[items], for the term ids i64[T] of one occasion (T may be 0)."""
        wide = {name: array.astype(np.float64) for name, array in parameters.items()}
        mean = wide["term_rows"][query].sum(axis=0) / max(len(query), 1)
        hidden = np.maximum(mean @ wide["hidden_weight"] + wide["hidden_bias"], 0.0)
        user = hidden @ wide["output_weight"] + wide["output_bias"]
        return np.asarray((wide["item_rows"] * user).sum(axis=1), dtype=np.float64)
