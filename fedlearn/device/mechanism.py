"""The terms of a private training that a phone must know to recompute what it costs."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.privacy.factorization import Factorization


@dataclass(frozen=True, slots=True)
class MechanismTerms:
    """Clip, noise and participation bounds of one run.

    Args:
        kind: gaussian, independent, blt, banded or tree: the name the policy allows.
        factorization: strategy matrix C; ``INDEPENDENT`` for independent noise.
        noise_multiplier: std of the i.i.d. noise Z over the clip, > 0.
        l2_clip_norm: bound on one phone's update, > 0.
        grid_step: spacing of the integer grid, a power of two.
        steps: n, mechanism steps of the whole run, >= 1.
        min_separation: b >= 1: steps x < y of one phone satisfy y - x >= b.
        max_participations: k >= 1.
    """

    kind: str
    factorization: Factorization
    noise_multiplier: float
    l2_clip_norm: float
    grid_step: float
    steps: int
    min_separation: int
    max_participations: int
