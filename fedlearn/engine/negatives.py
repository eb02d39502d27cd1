"""Candidates of the sampled softmax, from a public distribution: numpy, the same on a phone and in a simulation."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import OutOfRange
from fedlearn.types import F64, I64


class Candidates(NamedTuple):
    """Candidate lists of n examples.

    ``items`` i64[n, K] catalogue positions, distinct in a row; ``label`` i64[n] where the chosen item stands (always
    0); ``logq`` f32[n, K] log of how often an item is a candidate.
    """

    items: I64
    label: I64
    logq: NDArray[np.float32]


def sample_candidates(positive: I64, catalogue_size: int, k: int, rng: np.random.Generator) -> Candidates:
    """Draw K - 1 negatives for each example, uniformly without replacement from all items but the chosen one.

    Args:
        positive: i64[n], chosen items, 0 <= positive < catalogue_size.
        catalogue_size: number of items N, >= 1.
        k: candidates wanted, the chosen item included, >= 1; K = min(k, N).
        rng: ``simulation_rng(seed, round, phone, "negatives")``; gives n rows of K - 1 doubles.

    Raises:
        OutOfRange: k < 1, an empty catalogue, or a chosen item outside it.
    """
    if k < 1:
        raise OutOfRange(f"client.candidates={k}: must be >= 1, e.g. 64.")
    width = max(min(k, catalogue_size), 1)
    return candidates_from_uniforms(positive, catalogue_size, rng.random((len(positive), width - 1)))


def candidates_from_uniforms(positive: I64, catalogue_size: int, uniforms: F64) -> Candidates:
    """Make the candidates of many phones at once from their own draws.

    The distribution depends on the catalogue's size alone, never on what users chose. The chosen item stands at
    position 0: a softmax over the candidates is a function of their set and of which one was chosen, and no model is
    shown positions, so a fixed place tells it nothing. Ranking never uses these lists, so ties are not affected.

    Rule (Floyd's sampling, Bentley & Floyd 1987), for another language to repeat: for j = 0 .. K - 2 let
    top = N - K + j and t = floor(uniforms[:, j] * (top + 1)); take t, or ``top`` if t was already taken; at the end,
    add 1 to every value >= the chosen item.

    ``logq`` is the constant log(K / N), which cancels in the softmax: with uniform negatives the loss over the
    candidates is consistent for the loss over the catalogue (McFadden 1978, uniform conditioning).

    Args:
        positive: i64[n], chosen items, 0 <= positive < catalogue_size.
        catalogue_size: number of items N, >= 1.
        uniforms: f64[n, K - 1] in [0, 1), K <= N.

    Raises:
        OutOfRange: a chosen item outside the catalogue, or more candidates than items.
    """
    width = uniforms.shape[1] + 1
    if width > catalogue_size:
        raise OutOfRange(f"client.candidates={width}: the catalogue has {catalogue_size} items.")
    if len(positive) and (positive.min() < 0 or positive.max() >= catalogue_size):
        raise OutOfRange(f"label={positive.min()}..{positive.max()}: must lie in 0..{catalogue_size - 1}.")
    # One row per candidate position, so that the search for duplicates runs along memory.
    taken = np.empty((width, len(positive)), np.int64)
    taken[0] = positive
    for j in range(width - 1):
        top = catalogue_size - width + j
        drawn = (uniforms[:, j] * (top + 1)).astype(np.int64)
        duplicate = (taken[1 : j + 1] == drawn).any(axis=0)
        taken[j + 1] = np.where(duplicate, top, drawn)
    taken[1:] += taken[1:] >= positive
    logq = np.full((len(positive), width), np.log(width / catalogue_size), np.float32)
    return Candidates(np.ascontiguousarray(taken.T), np.zeros(len(positive), np.int64), logq)
