"""Nodes that fail in a whole training: the run ends, the record counts them, and the next command goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from fedlearn.errors import Reason, RoundFailed
from fedlearn.lab.shards import ShardFactory
from fedlearn.ledger import LEDGER_FILE, Charged, Ledger, Voided
from fedlearn.task import CohortReply, RoundTask
from fedlearn_server.hosting import NodeFunction

if TYPE_CHECKING:
    from small_city import SmallCity

Spoil = Callable[[CohortReply], CohortReply]


def raising(reply: CohortReply) -> CohortReply:
    raise MemoryError("no room for this cohort")


def over_norm(reply: CohortReply) -> CohortReply:
    values = np.full_like(reply.contribution.values, 2**50)
    return replace(reply, contribution=replace(reply.contribution, values=values))


def spoilt(monkeypatch: pytest.MonkeyPatch, partitions: set[int], spoil: Spoil) -> None:
    """Let these partitions answer otherwise."""
    real = ShardFactory.__call__

    def build(factory: ShardFactory, partition: int, count: int) -> NodeFunction:
        node = real(factory, partition, count)

        def answer(task: RoundTask) -> CohortReply:
            return spoil(node(task)) if partition in partitions else node(task)

        return answer

    monkeypatch.setattr(ShardFactory, "__call__", build)


@pytest.mark.usefixtures("fresh_nodes")
@pytest.mark.parametrize(("spoil", "reason"), [(raising, Reason.FAILED), (over_norm, Reason.OVER_NORM)])
def test_the_run_ends_and_counts_them(
    small_city: SmallCity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, reason: Reason
) -> None:
    spoilt(monkeypatch, {1}, spoil)
    small_city.train(tmp_path / "run", "cohort.rounds=3", "runtime.shards=3")
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [record["rejected"] for record in records] == [{reason.value: 1}] * 3
    assert all(0 < record["cohort"] <= 40 for record in records)


def test_no_node_is_left(
    small_city: SmallCity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli, fresh_nodes
) -> None:
    directory = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoilt(patch, {0, 1}, raising)
        with pytest.raises(RoundFailed, match="MemoryError") as failed:
            small_city.train(directory, "cohort.rounds=3", "runtime.shards=2")
    assert failed.value.code == "FL703"
    entries = Ledger.read(directory / LEDGER_FILE)
    assert any(isinstance(entry, Voided) for entry in entries)
    assert not any(isinstance(entry, Charged) for entry in entries)
    fresh_nodes()
    status, output = cli(["resume", str(directory)])
    assert status == 0, output
    assert small_city.steps(directory) == [0, 1, 2]


@pytest.fixture
def fresh_nodes() -> Callable[[], None]:
    """Forget the nodes that this process has built."""
    from fedlearn_server import hosting

    hosting._opened.cache_clear()
    return hosting._opened.cache_clear
