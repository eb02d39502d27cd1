"""The node side of a simulation: which phones a partition hosts, rebuilt from the config in any process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from fedlearn.engine.cohort import SimulatedCohort
from fedlearn.engine.population import MatchPopulation
from fedlearn.errors import CodeMismatch, DataMismatch, MalformedMessage
from fedlearn.lab.code import code_digest
from fedlearn.lab.config import CrossWozData, ExperimentConfig, to_plain
from fedlearn.lab.door import from_plain
from fedlearn.lab.prepare import Prepared, Split, prepare, splits
from fedlearn.lab.registry import build_model
from fedlearn.task import shard

code_digest()  # now: a resident node must not take code that is installed later for the code that it runs

TOLD = ("data", "features", "model")
TOLD_OF_RUNTIME = ("engine", "threads")
"""The groups of a config that nodes are told, and what of ``runtime``."""


@dataclass(frozen=True, slots=True)
class Roll:
    """The phones of a split, as all sides of a run must have them.

    Parts are strides over the list of phones. Were it another list on another node, one phone could be in two parts and
    move the sum by twice the clip norm.

    Args:
        data: the data set's digest.
        phones: how many there are.
        ids: SHA-256 (hex) over their ids in order.
    """

    data: str
    phones: int
    ids: str

    @staticmethod
    def of(prepared: Prepared, split: Split) -> Roll:
        """Return the roll of one split."""
        names = [prepared.store.devices[device] for device in split.devices]
        return Roll(prepared.dataset.digest, len(names), hashlib.sha256(json.dumps(names).encode()).hexdigest())

    def require(self, found: Roll, place: str) -> None:
        """Refuse another roll; ``place`` says where it was read, and its message quotes no id.

        Raises:
            DataMismatch: it is another.
        """
        if found != self:
            raise DataMismatch(
                f"{place}: not the run's data: {found.phones} phones of data {found.data[:12]} here, the run has "
                f"{self.phones} of data {self.data[:12]}. Put the run's files there, and install the same plug-in and "
                "libraries: parts are cut by position, so another list would put one phone into two parts."
            )


@dataclass(frozen=True, slots=True)
class ShardFactory:
    """Builds the cohort of one partition. Hashable and small, so that a runtime may send it to another process.

    Args:
        config: canonical JSON of what ``describe`` tells of the experiment.
        fold: which split the phones train on.
        roll: the phones it must have.
    """

    config: str
    fold: int
    roll: Roll

    def __call__(self, partition: int, partitions: int) -> SimulatedCohort:
        """Return the cohort; reads the memory-mapped store, which every process shares.

        Raises:
            ConfigError, DataError: the data cannot be used on this side, or are not the run's.
        """
        # what a node is not told has no part in what it does; without privacy no default can contradict the data
        config = from_plain({**json.loads(self.config), "privacy": {"mode": "none"}})
        torch.set_num_threads(config.runtime.threads)
        prepared = prepare(config.data)
        split = splits(prepared, config.data)[self.fold]
        place = "data.root" if isinstance(config.data, CrossWozData) else f"data.name={config.data.name}"
        self.roll.require(Roll.of(prepared, split), place)
        return make_cohort(config, prepared, split, shard(len(split.devices), partition, partitions))


def describe(config: ExperimentConfig, fold: int, roll: Roll) -> str:
    """Return what nodes are told about a run: canonical JSON.

    Of the config they get what decides which phones they host and how these train; its other groups name places and
    services of the submitter.
    """
    told = {
        "code": code_digest(),
        "config": _told(to_plain(config)),
        "fold": fold,
        "roll": asdict(roll),
    }
    return json.dumps(told, sort_keys=True)


def open_simulated(description: str, partition: int, partitions: int) -> SimulatedCohort:
    """Host a part of a simulated population: ``describe`` says which (``fedlearn_server.hosting.CohortHost``).

    Guarantee: whoever hosts a part of the run has the same list of phones, so that no phone is in two parts.

    Raises:
        CodeMismatch: the run was submitted by other code.
        MalformedMessage: not a description.
        ConfigError, DataError: the data cannot be used on this side.
        DataMismatch: the data on this side are not the run's.
    """
    try:
        told = json.loads(description)
        code, config, fold = told["code"], json.dumps(_told(told["config"]), sort_keys=True), int(told["fold"])
        roll = Roll(**told["roll"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedMessage(f"cohort: not a description of a simulated population ({error}).") from error
    if code != code_digest():
        raise CodeMismatch(
            f"the run was submitted by code {code[:12]}, this node runs {code_digest()[:12]}: install the same version."
        )
    return ShardFactory(config, fold, roll)(partition, partitions)


def _told(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return what nodes are told of a config."""
    runtime = {key: plain["runtime"][key] for key in TOLD_OF_RUNTIME}
    return {**{group: plain[group] for group in TOLD}, "runtime": runtime}


def make_cohort(config: ExperimentConfig, prepared: Prepared, split: Split, positions: range) -> SimulatedCohort:
    """Return the cohort that hosts the phones at ``positions`` of the split's population."""
    table = prepared.table(config.features.sources)
    devices = split.devices[np.asarray(positions, dtype=np.int64)]
    owner = prepared.device_of_row[split.train]
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], devices, side="left")
    stops = np.searchsorted(owner[order], devices, side="right")
    population = MatchPopulation(
        ids=[prepared.store.devices[device] for device in devices],
        rows=[split.train[order[start:stop]] for start, stop in zip(starts, stops, strict=True)],
        labels=prepared.labels,
        items=len(prepared.dataset.catalogue),
        source=table,
    )
    return SimulatedCohort(population, build_model(config.model, table.width), config.runtime.engine)
