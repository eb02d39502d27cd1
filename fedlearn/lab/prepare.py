"""From a config to what trainings share: the Query store, the catalogue's index, and the splits."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fedlearn.errors import DataError, EmptyPopulation
from fedlearn.features import CatalogueIndex, make_query
from fedlearn.features.store import QueryStore, QueryStoreWriter
from fedlearn.files import cache_directory
from fedlearn.lab.code import code_digest
from fedlearn.lab.config import CityData, DataConfig
from fedlearn.lab.dataset import SessionDataset
from fedlearn.lab.feature_table import FeatureTable
from fedlearn.lab.registry import build_dataset
from fedlearn.rng import simulation_rng
from fedlearn.types import I64

SPLIT_SEED = 0
"""Splits are part of the protocol: the same for every training seed."""


@dataclass(frozen=True)
class Prepared:
    """A data set whose text is gone: Queries in a memory-mapped store, and the public catalogue's index."""

    dataset: SessionDataset
    index: CatalogueIndex
    store: QueryStore = field(repr=False)
    _tables: dict[tuple[str, ...], FeatureTable] = field(default_factory=dict, repr=False)

    def table(self, sources: tuple[str, ...]) -> FeatureTable:
        """Return the match features of the store for these sources; everything in a process shares one cache."""
        key = tuple(sorted(sources))
        if key not in self._tables:
            self._tables[key] = FeatureTable(self.store.query, self.index, key)
        return self._tables[key]

    @cached_property
    def labels(self) -> I64:
        """i64[rows], the chosen item of each session."""
        return np.asarray(self.store.labels, dtype=np.int64)

    @cached_property
    def device_of_row(self) -> I64:
        """i64[rows], position of each session's device."""
        sizes = [len(self.store.rows(device)) for device in range(len(self.store.devices))]
        return np.repeat(np.arange(len(sizes)), sizes)


@dataclass(frozen=True, slots=True)
class Split:
    """One fold: the phones that train, what they train on, and what is tested.

    Args:
        fold: 0-based.
        devices: positions of the phones of the training population.
        train: i64[...], rows trained on, ascending.
        test: i64[...], rows tested, ascending.
    """

    fold: int
    devices: I64 = field(repr=False)
    train: I64 = field(repr=False)
    test: I64 = field(repr=False)


_PREPARED: dict[str, Prepared] = {}


def prepare(data: DataConfig) -> Prepared:
    """Return the prepared data set; the store is made once and reused by every later run on the same data.

    A process keeps the last data set it prepared: the trainings of a study share it.
    """
    key = json.dumps(asdict(data), sort_keys=True)
    if key not in _PREPARED:
        _PREPARED.clear()
        _PREPARED[key] = prepare_dataset(build_dataset(data))
    return _PREPARED[key]


def prepare_dataset(dataset: SessionDataset) -> Prepared:
    """Return a data set's index and Query store, writing the store if it is not in the cache.

    Raises:
        EmptyPopulation: there is no session.
        DataError: what the data set raises.
    """
    index = CatalogueIndex.build(dataset.catalogue)
    # the code is in the name too: a Query made by other code is another Query
    name = hashlib.sha256(f"{dataset.digest}/{index.digest}/{code_digest()}".encode()).hexdigest()[:32]
    folder = cache_directory() / "populations" / name
    try:
        store = QueryStore.open(folder, index)
    except DataError:
        _write_store(folder, dataset, index)
        store = QueryStore.open(folder, index)
    if len(store) == 0:
        raise EmptyPopulation("the data set has no session: nothing to train on; choose another split file or domain.")
    return Prepared(dataset, index, store)


def splits(prepared: Prepared, data: DataConfig) -> tuple[Split, ...]:
    """Return the folds of the data set's protocol.

    Raises:
        EmptyPopulation: a fold has nothing to train on, or nothing to test.
    """
    if isinstance(data, CityData) or data.fold_by == "last_session":
        found: tuple[Split, ...] = (_last_session(prepared),)
    elif data.fold_by == "user":
        found = _folds(prepared, [prepared.store.devices[device] for device in prepared.device_of_row], data.folds)
    else:
        found = _folds(prepared, list(prepared.store.groups), data.folds)
    for split in found:
        if not len(split.train) or not len(split.test):
            missing = "train on" if not len(split.train) else "test"
            raise EmptyPopulation(
                f"fold {split.fold} has no session to {missing}: the last session of a phone is tested, so phones need "
                "two, e.g. data.sessions_max=4; or use fewer data.folds."
            )
    return found


def limit_test_users(split: Split, owner: I64, users: int) -> Split:
    """Return the split with at most ``users`` tested users, drawn once for all trainings."""
    tested = np.unique(owner[split.test])
    if len(tested) <= users:
        return split
    kept = simulation_rng(0, -1, "", "evaluation").choice(tested, size=users, replace=False)
    return replace(split, test=split.test[np.isin(owner[split.test], kept)])


def _folds(prepared: Prepared, keys: Sequence[str], folds: int) -> tuple[Split, ...]:
    distinct = sorted(set(keys))
    if len(distinct) < folds:
        raise EmptyPopulation(f"data.folds={folds}: only {len(distinct)} to split; use fewer folds.")
    order = simulation_rng(SPLIT_SEED, -1, "", "folds").permutation(len(distinct))
    fold_of = {distinct[position]: place % folds for place, position in enumerate(order)}
    fold_of_row = np.array([fold_of[key] for key in keys])
    found = []
    for fold in range(folds):
        train = np.flatnonzero(fold_of_row != fold)
        test = np.flatnonzero(fold_of_row == fold)
        found.append(Split(fold, np.unique(prepared.device_of_row[train]), train, test))
    return tuple(found)


def _last_session(prepared: Prepared) -> Split:
    rows = [prepared.store.rows(device) for device in range(len(prepared.store.devices))]
    test = np.array([part[-1] for part in rows if len(part)], dtype=np.int64)
    train = np.setdiff1d(np.arange(len(prepared.store)), test)
    return Split(0, np.arange(len(rows)), train, test)


def _write_store(folder: Path, dataset: SessionDataset, index: CatalogueIndex) -> None:
    """Write beside, then rename: two runs that start at once both end with a whole store."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".store-", dir=folder.parent))
    try:
        with QueryStoreWriter(partial, index) as writer:
            for device in dataset.devices():
                writer.add(
                    device.id,
                    [make_query(session, index) for session in device.sessions],
                    [session.chosen for session in device.sessions],
                    [session.group for session in device.sessions],
                )
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
