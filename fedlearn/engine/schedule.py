"""Which examples a phone trains on, in which order: numpy, the same on a phone and in a simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fedlearn.errors import OutOfRange
from fedlearn.types import I64

PADDING = -1
"""Index that stands for no example."""


@dataclass(frozen=True, slots=True)
class LocalTraining:
    """How a phone trains on its own examples. Nothing here can touch privacy: the clip bounds what leaves.

    Args:
        epochs: passes over the phone's examples, >= 1.
        batch_size: examples per step, >= 1.
        learning_rate: of the local SGD, > 0.
        shuffle: draw a new order for each epoch.

    Raises:
        OutOfRange: names ``client.<field>``.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise OutOfRange(f"client.epochs={self.epochs}: must be >= 1, e.g. 1.")
        if self.batch_size < 1:
            raise OutOfRange(f"client.batch_size={self.batch_size}: must be >= 1, e.g. 10.")
        check_learning_rate(self.learning_rate)


def check_learning_rate(learning_rate: float) -> None:
    """Raise OutOfRange unless the local learning rate is positive and finite."""
    if not 0.0 < learning_rate < math.inf:
        raise OutOfRange(f"client.learning_rate={learning_rate}: must be > 0 and finite, e.g. 0.1.")


def schedule(n_examples: int, training: LocalTraining, rng: np.random.Generator) -> I64:
    """Return the phone's minibatches as example indices, ``PADDING`` where the last batch of an epoch is short.

    The order of an epoch is the stable argsort of ``n_examples`` uniform doubles from ``rng`` (drawn epoch by epoch;
    none without shuffle): a rule that another language can repeat, unlike ``Generator.permutation``.

    Args:
        n_examples: examples on the phone, >= 0.
        training: epochs, batch size, shuffle.
        rng: ``simulation_rng(seed, round, phone, "shuffle")``.

    Returns:
        i64[epochs * ceil(n / batch_size), batch_size]; [0, batch_size] for an empty phone.
    """
    if n_examples < 0:
        raise OutOfRange(f"n_examples={n_examples}: must be >= 0.")
    steps = -(-n_examples // training.batch_size)
    table = np.full((training.epochs, steps * training.batch_size), PADDING, np.int64)
    for epoch in range(training.epochs):
        order = np.argsort(rng.random(n_examples), kind="stable") if training.shuffle else np.arange(n_examples)
        table[epoch, :n_examples] = order
    return table.reshape(training.epochs * steps, training.batch_size)
