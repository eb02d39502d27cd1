"""A population whose update norms are known, and the rounds that adapt a clip to it: what the tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fedlearn.clip import clip_rows, joint_bound
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings, append_fit
from fedlearn.privacy.grid import from_grid, grid_step, to_grid
from fedlearn.privacy.mechanisms import GaussianMechanism
from fedlearn.privacy.sampling import RoundKey, included
from fedlearn.rng import simulation_rng
from fedlearn.types import BoundedSum, Charge

POPULATION = 5000
COHORT = 1000
WIDTH = 3
NOISE_MULTIPLIER = 1.0

Step = Callable[[AdaptiveClipSettings, float, float, float], float]
"""(settings, clip, released coordinate, count scale) -> the next clip."""


def updates(seed: int) -> NDArray[np.float64]:
    """Return f64[POPULATION, WIDTH]: log-normal norms with a spread of one, every direction."""
    rng = simulation_rng(seed, -1, "", "population")
    directions = rng.standard_normal((POPULATION, WIDTH))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return directions * np.exp(rng.standard_normal(POPULATION))[:, None]


def adapt(
    rows: NDArray[np.float64],
    settings: AdaptiveClipSettings,
    rounds: int,
    step: Step = AdaptiveClipSettings.next_clip,
    seed: int = 0,
) -> list[float]:
    """Return the clips of ``rounds`` rounds and of the one after: sampled, clipped, on the grid, released."""
    ids = [str(place) for place in range(len(rows))]
    mechanism = GaussianMechanism(NOISE_MULTIPLIER, COHORT)
    clips = [settings.initial]
    for number in range(rounds):
        clip = clips[-1]
        scale = clip * settings.ratio(NOISE_MULTIPLIER)
        bound = joint_bound(clip, scale)
        key = RoundKey(simulation_rng(seed, number, "", "cohort").bytes(32))
        cohort = clip_rows(rows[included(key, ids, COHORT / POPULATION)], clip)
        spacing = grid_step(bound)
        vectors = append_fit(cohort, np.ones(len(cohort.values), bool), scale)
        values = from_grid(to_grid(vectors, spacing).sum(axis=0), spacing)
        bounded = BoundedSum(values, bound, spacing, number, len(vectors))
        mean = mechanism.release(bounded, Charge(number, number, NOISE_MULTIPLIER, bounded.digest))
        clips.append(step(settings, clip, float(mean.values[-1]), scale))
    return clips
