"""The same model trained in one place without privacy, and on each phone alone: controls, never releases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fedlearn.engine.negatives import sample_candidates
from fedlearn.models.base import Model, Parameters
from fedlearn.rng import simulation_rng
from fedlearn.types import F64, I64

DENSE_BYTES = 64 * 2**20
"""Above this size of all candidates' features, the central fit samples candidates instead."""

RIDGE = 1e-4
ITERATIONS = 100


def fit(model: Model, features: NDArray[np.float32], labels: I64, start: Parameters | None = None) -> Parameters:
    """Return the model that minimises the mean loss over the examples plus a small ridge, by L-BFGS.

    Args:
        model: any model over match features.
        features: f32[n, K, d], n >= 0; with n = 0 the start is returned.
        labels: i64[n], position of the chosen candidate.
        start: where to begin; the model's initial point by default.
    """
    begin = model.initial(0) if start is None else start
    if len(labels) == 0:
        return begin
    parameters = {name: torch.tensor(array, requires_grad=True) for name, array in sorted(begin.items())}
    batch = {
        "features": torch.from_numpy(features),
        "label": torch.from_numpy(labels),
        "logq": torch.zeros(features.shape[:2]),
    }
    mask = torch.ones(len(labels), dtype=torch.bool)
    optimizer = torch.optim.LBFGS(list(parameters.values()), max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        penalty = torch.stack([value.square().sum() for value in parameters.values()]).sum()
        loss = model.loss(parameters, batch, mask) + RIDGE * penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return {name: value.detach().numpy().astype(np.float32) for name, value in parameters.items()}


def sampled_positions(labels: I64, items: int, width: int, seed: int) -> I64:
    """Return candidate positions i64[n, K] with the chosen item first, drawn once for a central fit."""
    rng = simulation_rng(seed, -1, "", "central")
    return sample_candidates(labels, items, width, rng).items


def candidates_that_fit(rows: int, items: int, width: int) -> int:
    """Return how many candidates an example may have so that all features together stay below ``DENSE_BYTES``."""
    return int(min(items, max(2, DENSE_BYTES // max(4 * rows * width, 1))))


def popularity(labels: I64, items: int) -> F64:
    """Return f64[N]: how often each item was chosen in the training rows. Made from users: a non-private control."""
    return np.bincount(labels, minlength=items).astype(np.float64)


def per_device(owner: I64) -> Sequence[tuple[int, I64]]:
    """Return (device, positions in ``owner``) for each device that owns a row."""
    if not len(owner):
        return []
    order = np.argsort(owner, kind="stable")
    devices, starts = np.unique(owner[order], return_index=True)
    return [(int(device), part) for device, part in zip(devices, np.split(order, starts[1:]), strict=True)]
