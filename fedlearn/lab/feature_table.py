"""Match features of stored sessions, made on the fly and kept while they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.engine.population import FeatureSource
from fedlearn.features import FEATURES, CatalogueIndex, Query, feature_mask, match_all
from fedlearn.types import I64

CACHE_BYTES = 1 << 30
QueryOf = Callable[[int], Query]


class FeatureTable:
    """Row of the store -> f32[N, d], for the columns that the enabled sources allow.

    Args:
        query_of: returns the Query of a row; a control may return another user's.
        index: the catalogue's index.
        sources: enabled sources.
        cache_bytes: most memory to keep features in; beyond it they are made again when asked for.
    """

    def __init__(
        self, query_of: QueryOf, index: CatalogueIndex, sources: Iterable[str], cache_bytes: int = CACHE_BYTES
    ) -> None:
        self._query_of = query_of
        self._index = index
        self._columns = np.flatnonzero(feature_mask(tuple(sources)))
        self.specs = tuple(FEATURES[column] for column in self._columns)
        self._kept: dict[int, NDArray[np.float32]] = {}
        self._room = cache_bytes // max(4 * index.n * len(self._columns), 1)

    @property
    def width(self) -> int:
        """d, the number of columns."""
        return len(self._columns)

    def features(self, row: int) -> NDArray[np.float32]:
        """Return f32[N, d] of one session."""
        found = self._kept.get(row)
        if found is None:
            found = np.ascontiguousarray(match_all(self._query_of(row), self._index)[:, self._columns])
            if len(self._kept) < self._room:
                self._kept[row] = found
        return found


@dataclass(frozen=True)
class AveragedTable:
    """A table in which what one source says is replaced by what it says on average.

    It holds what that source tells about everybody and nothing about anyone: the baseline of a placebo.

    Args:
        table: the table to average.
        columns: bool[d], columns of the source.
        mean: f32[N, columns], their mean.
    """

    table: FeatureTable
    columns: NDArray[np.bool_]
    mean: NDArray[np.float32]

    @staticmethod
    def over(table: FeatureTable, source: str, rows: I64) -> AveragedTable:
        """Average the columns that need ``source`` over ``rows``, at least one."""
        columns = np.array([source in spec.needs for spec in table.specs])
        total = np.zeros((len(table.features(int(rows[0]))), int(columns.sum())))
        for row in rows:
            total += table.features(int(row))[:, columns]
        return AveragedTable(table, columns, (total / len(rows)).astype(np.float32))

    @property
    def width(self) -> int:
        """d, the number of columns."""
        return self.table.width

    def features(self, row: int) -> NDArray[np.float32]:
        """Return f32[N, d] of one session."""
        features = self.table.features(row).copy()
        features[:, self.columns] = self.mean
        return features


def block(source: FeatureSource, rows: Iterable[int]) -> NDArray[np.float32]:
    """Return f32[n, N, d] of several sessions."""
    return np.stack([source.features(int(row)) for row in rows])
