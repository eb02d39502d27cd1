"""The node side of a simulation: which phones a partition hosts, rebuilt from the config in any process."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch

from fedlearn.engine.cohort import SimulatedCohort
from fedlearn.engine.population import MatchPopulation
from fedlearn.errors import CodeMismatch, MalformedMessage
from fedlearn.lab.code import code_digest
from fedlearn.lab.config import ExperimentConfig, to_plain
from fedlearn.lab.door import from_plain
from fedlearn.lab.prepare import Prepared, Split, prepare, splits
from fedlearn.lab.registry import build_model
from fedlearn.task import shard

code_digest()  # now: a resident node must not take code that is installed later for the code that it runs


@dataclass(frozen=True, slots=True)
class ShardFactory:
    """Builds the cohort of one partition. Hashable and small, so that a runtime may send it to another process.

    Args:
        config: canonical JSON of the experiment.
        fold: which split the phones train on.
    """

    config: str
    fold: int

    @staticmethod
    def of(config: ExperimentConfig, fold: int) -> ShardFactory:
        """Return the factory for one fold of an experiment."""
        return ShardFactory(json.dumps(to_plain(config), sort_keys=True), fold)

    def __call__(self, partition: int, partitions: int) -> SimulatedCohort:
        """Return the cohort; reads the memory-mapped store, which every process shares."""
        config = from_plain(json.loads(self.config))
        torch.set_num_threads(config.runtime.threads)
        prepared = prepare(config.data)
        split = splits(prepared, config.data)[self.fold]
        return make_cohort(config, prepared, split, shard(len(split.devices), partition, partitions))


def describe(config: ExperimentConfig, fold: int) -> str:
    """Return what nodes are told about a run: canonical JSON of its config, its fold and the code that made it."""
    return json.dumps({"code": code_digest(), "config": to_plain(config), "fold": fold}, sort_keys=True)


def open_simulated(description: str, partition: int, partitions: int) -> SimulatedCohort:
    """Host a part of a simulated population: ``describe`` says which (``fedlearn_server.hosting.CohortHost``).

    Raises:
        CodeMismatch: the run was submitted by other code.
        MalformedMessage: not a description.
        ConfigError, DataError: the data cannot be used on this side.
    """
    try:
        told = json.loads(description)
        code, config, fold = told["code"], json.dumps(told["config"], sort_keys=True), int(told["fold"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedMessage(f"cohort: not a description of a simulated population ({error}).") from error
    if code != code_digest():
        raise CodeMismatch(
            f"the run was submitted by code {code[:12]}, this node runs {code_digest()[:12]}: install the same version."
        )
    return ShardFactory(config, fold)(partition, partitions)


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
