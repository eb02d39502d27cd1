"""Where a simulated shard finds its phones' examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedlearn.engine.negatives import candidates_from_uniforms
from fedlearn.models.base import ClientExamples
from fedlearn.rng import simulation_rng
from fedlearn.task import RoundTask
from fedlearn.types import I64


class FeatureSource(Protocol):
    """Match features of stored sessions."""

    @property
    def width(self) -> int:
        """d, the number of features."""
        ...

    def features(self, row: int) -> NDArray[np.float32]:
        """Return f32[N, d]: every rankable item's features in the session at ``row``."""
        ...


class Population(Protocol):
    """The phones of one shard."""

    @property
    def ids(self) -> Sequence[str]:
        """Device ids, by position in the shard."""
        ...

    def examples(self, positions: Sequence[int], task: RoundTask) -> list[ClientExamples]:
        """Return what each phone at ``positions`` trains on in this step."""
        ...


@dataclass(frozen=True)
class MatchPopulation:
    """Phones whose sessions become conditional-choice examples: K candidates, one of them chosen.

    Args:
        ids: device ids, by position.
        rows: per device, the rows of its training sessions in the store; may be empty.
        labels: i64[rows in the store], the chosen item of every session.
        items: N, size of the ranked catalogue.
        source: match features by row.
    """

    ids: Sequence[str]
    rows: Sequence[I64] = field(repr=False)
    labels: I64 = field(repr=False)
    items: int
    source: FeatureSource = field(repr=False)

    def examples(self, positions: Sequence[int], task: RoundTask) -> list[ClientExamples]:
        """Draw each phone's negatives for this step and gather the candidates' features.

        A phone's draws are keyed by (seed, step, phone): they do not depend on the shard it is in.
        """
        return self.draw(positions, task.training.candidates, task.seed, task.step)

    def draw(self, positions: Sequence[int], candidates: int, seed: int, step: int) -> list[ClientExamples]:
        """Return ``examples`` for given candidates a session, seed and step."""
        rows = [self.rows[position] for position in positions]
        positives = np.concatenate([self.labels[part] for part in rows]) if rows else np.zeros(0, np.int64)
        width = min(candidates, self.items)
        uniforms = [
            simulation_rng(seed, step, self.ids[position], "negatives").random((len(part), width - 1))
            for position, part in zip(positions, rows, strict=True)
        ]
        drawn = candidates_from_uniforms(
            positives, self.items, np.concatenate(uniforms) if uniforms else np.zeros((0, width - 1))
        )
        clients = []
        start = 0
        for part in rows:
            stop = start + len(part)
            clients.append(self._client(part, drawn.items[start:stop], drawn.logq[start:stop]))
            start = stop
        return clients

    def _client(self, rows: I64, candidates: I64, logq: NDArray[np.float32]) -> ClientExamples:
        gathered = [self.source.features(int(row))[items] for row, items in zip(rows, candidates, strict=True)]
        features = np.stack(gathered) if gathered else np.zeros((0, logq.shape[1], self.source.width), np.float32)
        return ClientExamples({"features": features, "label": np.zeros(len(rows), np.int64), "logq": logq})
