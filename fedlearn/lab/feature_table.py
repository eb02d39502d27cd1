"""Match features of stored sessions, made on the fly and kept while they fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from fedlearn.engine.population import FeatureSource
from fedlearn.features import CatalogueIndex, Query, feature_mask, match_all

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


def block(source: FeatureSource, rows: Iterable[int]) -> NDArray[np.float32]:
    """Return f32[n, N, d] of several sessions."""
    return np.stack([source.features(int(row)) for row in rows])
