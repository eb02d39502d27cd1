"""A small federated problem with canaries in it: softmax regression, trained through the audited pipeline.

Ordinary phones take gradient steps on their own examples. A canary is a phone whose update is a random direction,
longer than the clip norm, so that the clip is what bounds it. Each canary belongs to one round and takes part with
probability one half (Andrew et al. 2023, "One-shot empirical privacy estimation for federated learning"; the coins are
those of Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run").
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import InvalidSpend, OutOfRange
from fedlearn.lab.audit.pipeline import PhoneUpdates, Pipeline, PrivatePath, Publication
from fedlearn.privacy.calibrate import MAX_NOISE_MULTIPLIER, MIN_NOISE_MULTIPLIER
from fedlearn.rng import simulation_rng
from fedlearn.types import F64

CLASSES = 10
PHONES_PER_ROUND = 10
MOST_EXAMPLES = 20
LOCAL_STEPS = 2
LOCAL_RATE = 0.5
SERVER_RATE = 1.0
L2_CLIP_NORM = 0.75
"""Not 1, so that noise or a clip that forgets to scale with it is seen."""
CANARY_STRETCH = 10.0
"""Length of a canary's update before clipping, over the clip norm."""


@dataclass(frozen=True, slots=True)
class AuditConfig:
    """What one audit simulates.

    Args:
        noise_multiplier: of the audited releases, in [0.05, 1e6].
        delta: of every epsilon, in (0, 1).
        canaries: directions, about half of which take part; >= 2 x rounds.
        rounds: releases, >= 1.
        parameters: length of the model, a multiple of 10, >= 1000; canaries interfere less the more there are.
        seed: of data, canaries and coins. Noise has none.

    Raises:
        OutOfRange: a field is outside its range.
    """

    noise_multiplier: float
    delta: float = 1e-5
    canaries: int = 1000
    rounds: int = 50
    parameters: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not MIN_NOISE_MULTIPLIER <= self.noise_multiplier <= MAX_NOISE_MULTIPLIER:
            raise OutOfRange(
                f"noise_multiplier={self.noise_multiplier}: must be in [{MIN_NOISE_MULTIPLIER}, "
                f"{MAX_NOISE_MULTIPLIER:g}], e.g. 1.0."
            )
        if not 0 < self.delta < 1:
            raise OutOfRange(f"delta={self.delta}: must be in (0, 1), e.g. 1e-5.")
        if self.rounds < 1:
            raise OutOfRange(f"rounds={self.rounds}: must be >= 1.")
        if self.canaries < 2 * self.rounds:
            raise OutOfRange(f"canaries={self.canaries}: must be >= 2 x rounds = {2 * self.rounds}.")
        if self.parameters < 1000 or self.parameters % CLASSES:
            raise OutOfRange(f"parameters={self.parameters}: must be >= 1000 and a multiple of {CLASSES}.")

    @property
    def denominator(self) -> float:
        """Public constant of the means: the expected cohort."""
        return PHONES_PER_ROUND + self.canaries / (2 * self.rounds)


@dataclass(frozen=True, slots=True)
class Observations:
    """What the auditor sees, per canary: scores that are standard normal where a canary did not take part.

    Args:
        included: bool[m], the coins.
        round_scores: f64[m], sqrt(d) times the cosine of the canary and the mean released in its round.
        final_scores: f64[m], the same against the whole change of the model.
        rejected: contributions that the path left out.
        path: the path that was simulated, with its charges and publications.
    """

    included: NDArray[np.bool_] = field(repr=False)
    round_scores: F64 = field(repr=False)
    final_scores: F64 = field(repr=False)
    rejected: int
    path: PrivatePath = field(repr=False)


OnRound = Callable[[int], None]


def new_path(pipeline: Pipeline, config: AuditConfig) -> PrivatePath:
    """Return an unused path through the pipeline with the audit's parameters."""
    return PrivatePath(
        pipeline,
        noise_multiplier=config.noise_multiplier,
        l2_clip_norm=L2_CLIP_NORM,
        denominator=config.denominator,
        dimension=config.parameters,
    )


def simulate(config: AuditConfig, pipeline: Pipeline, on_round: OnRound | None = None) -> Observations:
    """Train through the pipeline and score every canary.

    Args:
        config: what is simulated.
        pipeline: what is audited.
        on_round: called with the number of finished rounds.

    Raises:
        InvalidSpend: NaN or infinity was released.
        FedlearnError: a stage of the pipeline refused to go on.
    """
    path, phones = new_path(pipeline, config), SoftmaxPhones(config)
    coins = simulation_rng(config.seed, -1, "", "coins").integers(0, 2, config.canaries).astype(np.bool_)
    parameters = np.zeros(config.parameters)
    round_scores = np.empty(config.canaries)
    for number in range(config.rounds):
        mine = slice(number, None, config.rounds)
        directions = canary_directions(config, number)
        updates = _with_canaries(phones.updates(parameters, number), directions[coins[mine]])
        mean = released_mean(path.run_round(updates))
        if not np.isfinite(mean).all():
            raise InvalidSpend(f"round {number}: what was released is not finite.")
        round_scores[mine] = _scores(directions, mean)
        parameters = parameters + SERVER_RATE * mean
        if on_round is not None:
            on_round(number + 1)
    final_scores = np.empty(config.canaries)
    for number in range(config.rounds):
        final_scores[number :: config.rounds] = _scores(canary_directions(config, number), parameters)
    return Observations(coins, round_scores, final_scores, path.rejected, path)


def canary_directions(config: AuditConfig, number: int) -> F64:
    """Return the unit directions, f64[n, d], of the canaries of one round: every ``rounds``-th canary."""
    count = len(range(number, config.canaries, config.rounds))
    drawn = simulation_rng(config.seed, number, "", "canary").standard_normal((count, config.parameters))
    drawn /= np.sqrt(np.einsum("ij,ij->i", drawn, drawn))[:, None]
    return drawn


def released_mean(publication: Publication) -> F64:
    """Return the vector that a round published."""
    return publication["mean"].value


def _with_canaries(ordinary: PhoneUpdates, directions: F64) -> PhoneUpdates:
    canaries = CANARY_STRETCH * L2_CLIP_NORM * directions
    # A canary says it has as many examples as a phone may have: a path that weighs by that number is seen.
    examples = np.full(len(canaries), MOST_EXAMPLES, dtype=np.int64)
    return PhoneUpdates(np.concatenate([ordinary.values, canaries]), np.concatenate([ordinary.examples, examples]))


def _scores(directions: F64, released: F64) -> F64:
    """sqrt(d) times the cosine: for a random direction of its own nearly N(0, 1), whatever was released."""
    length = float(np.linalg.norm(released))
    if length == 0.0:
        return np.zeros(len(directions))
    scores: F64 = directions @ released * (math.sqrt(released.size) / length)
    return scores


class SoftmaxPhones:
    """Ordinary phones, new ones each round, that learn a common softmax regression from few examples each."""

    def __init__(self, config: AuditConfig) -> None:
        self._seed = config.seed
        self._features = config.parameters // CLASSES
        rng = simulation_rng(config.seed, -1, "", "truth")
        self._truth = rng.standard_normal((self._features, CLASSES))

    def updates(self, parameters: F64, number: int) -> PhoneUpdates:
        """Return the local updates of one round's phones."""
        trained = [self._train(parameters, number, phone) for phone in range(PHONES_PER_ROUND)]
        return PhoneUpdates(
            np.stack([values for values, _ in trained]), np.array([count for _, count in trained], dtype=np.int64)
        )

    def _train(self, parameters: F64, number: int, phone: int) -> tuple[F64, int]:
        rng = simulation_rng(self._seed, number, str(phone), "examples")
        count = int(rng.integers(1, MOST_EXAMPLES + 1))
        features = rng.standard_normal((count, self._features)) / math.sqrt(self._features)
        labels = (features @ self._truth).argmax(axis=1)
        start = parameters.reshape(self._features, CLASSES)
        weights = start.copy()
        for _ in range(LOCAL_STEPS):
            scores = features @ weights
            chances = np.exp(scores - scores.max(axis=1, keepdims=True))
            chances /= chances.sum(axis=1, keepdims=True)
            chances[np.arange(count), labels] -= 1.0
            weights -= LOCAL_RATE * (features.T @ chances)
        return (weights - start).ravel(), count
