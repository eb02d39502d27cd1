"""A node's work: cohorts are opened once, a part and a task lead to its answer, failures are raised by kind."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from flwr.app import RecordDict

from fedlearn.errors import CodeMismatch, ConfigError, DataMismatch, DataMissing, MalformedMessage, UnknownSetting
from fedlearn.lab import compose
from fedlearn.lab import prepare as preparing
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.prepare import prepare, splits
from fedlearn.lab.shards import Roll, describe
from fedlearn.privacy.sampling import RoundKey
from fedlearn.task import CohortReply, RoundTask
from fedlearn.wire import decode_reply, encode_task
from fedlearn_server.hosting import SIMULATED, answer, host_named
from fedlearn_server.message import Question, pack_question, unpack_answer
from fedlearn_server.node_answers import LocalData
from fedlearn_server.round import TrainingState, make_task


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


town = load("round_town_of_hosting", Path(__file__).with_name("round_town.py"))
CHALLENGE = bytes(range(16))


@dataclass(eq=False)
class Host:
    """A cohort host that remembers what it was asked to open."""

    behaviour: Callable[[RoundTask], CohortReply] = town.good
    opened: list[tuple[str, int, int]] = field(default_factory=list)

    def __call__(self, description: str, partition: int, partitions: int) -> Callable[[RoundTask], CohortReply]:
        self.opened.append((description, partition, partitions))
        return self.behaviour


def task(step: int = 0) -> bytes:
    """An encoded task of the three-weight model."""
    job = town.make_job(Path("unused"), private=False)
    state = TrainingState(step, {"weights": np.zeros(3, np.float32)}, optimizer=None, average=None)
    return encode_task(make_task(job, state, 0, RoundKey(bytes(32)), None))


def asked(partition: int = 0, *, cohort: str = "{}", step: int = 0) -> RecordDict:
    """A question."""
    return pack_question(Question(cohort, task(step), partition, 4, CHALLENGE))


def test_a_question_is_answered_with_its_challenge() -> None:
    reply = decode_reply(unpack_answer(answer(Host(), asked()), CHALLENGE))
    assert reply.contribution.count == town.PHONES


def test_a_cohort_stays_open_from_round_to_round_and_parts_are_apart() -> None:
    host = Host()
    for step in range(3):
        answer(host, asked(1, step=step))
    answer(host, asked(2))
    answer(host, asked(1, cohort='{"other": 1}'))
    assert host.opened == [("{}", 1, 4), ("{}", 2, 4), ('{"other": 1}', 1, 4)]


def test_a_cohort_that_could_not_be_opened_is_tried_again() -> None:
    tries = []

    def host(description: str, partition: int, partitions: int) -> Callable[[RoundTask], CohortReply]:
        tries.append(partition)
        if len(tries) == 1:
            raise DataMissing("not mounted yet")
        return town.good

    with pytest.raises(DataMissing):
        answer(host, asked())
    answer(host, asked())
    assert len(tries) == 2


def test_what_a_cohort_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        answer(Host(town.failing), asked())


def test_a_task_that_is_none_is_refused() -> None:
    content = pack_question(Question("{}", b"not a task", 0, 4, CHALLENGE))
    with pytest.raises(MalformedMessage):
        answer(Host(), content)


def test_hosts_are_found_by_name() -> None:
    assert callable(host_named(SIMULATED))
    with pytest.raises(UnknownSetting, match="simulated"):
        host_named("nobody")


# --- a simulated population -----------------------------------------------------------------------------------------

ROLL = Roll("0" * 64, 60, "0" * 64)


def told_of(config: ExperimentConfig) -> str:
    """What nodes are told where this machine's data are the run's."""
    prepared = prepare(config.data)
    return describe(config, 0, Roll.of(prepared, splits(prepared, config.data)[0]))


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "_PREPARED", {})


def workers(root: Path, numbers: range) -> Path:
    """A small CrossWOZ of these workers, two dialogues each."""
    release = load("crosswoz_of_hosting", Path(__file__).with_name("test_crosswoz.py"))
    dialogues = {
        f"{day}{worker}": {"sys-usr": [1, worker], "messages": release.DIALOGUE} for worker in numbers for day in (1, 2)
    }
    made: Path = release.release(root, **dialogues)
    return made


@pytest.mark.usefixtures("_own_cache")
def test_nodes_with_other_data_host_nothing_so_that_no_phone_is_in_two_parts(tmp_path: Path) -> None:
    """Parts are strides over a list: without its first worker, one node's list is shifted against the other's."""
    whole, shifted = workers(tmp_path / "whole", range(20, 32)), workers(tmp_path / "shifted", range(21, 32))
    config = compose(
        ["experiment=crosswoz_restaurants", f"data.root={whole}", "data.fold_by=last_session", "data.folds=1"]
    )
    description, simulated = told_of(config), host_named(SIMULATED)
    parts = [LocalData(simulated, whole)(description, part, 2).population.ids for part in (0, 1)]
    assert len({*parts[0], *parts[1]}) == len(parts[0]) + len(parts[1]) == 12
    with pytest.raises(DataMismatch, match=r"^data\.root: not the run's data: 11 phones .* has 12 "):
        LocalData(simulated, shifted)(description, 1, 2)


@pytest.mark.usefixtures("_own_cache")
def test_another_order_of_phones_is_other_data_though_the_data_set_says_it_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a plug-in of another version, or another library below it, may."""
    config = compose(["experiment=city_quick", "data.devices=60"])
    description, found = told_of(config), prepare(config.data)
    host_named(SIMULATED)(description, 0, 2)
    names = found.store.devices
    monkeypatch.setitem(found.store.__dict__, "devices", (*names[1:], names[0]))
    with pytest.raises(DataMismatch, match=r"60 phones .* has 60 "):
        host_named(SIMULATED)(description, 0, 2)


@pytest.mark.usefixtures("_own_cache")
def test_nodes_are_told_nothing_but_what_they_need() -> None:
    places = (
        "tracking=mlflow",
        "tracking.uri=https://mlflow.example",
        "runtime=superlink",
        "runtime.address=superlink.example:8000",
        "runtime.ca=/submitter/ca.crt",
        "runtime.token=/submitter/operator.token",
        "run.dir=/submitter/run",
        "ledger.where=/submitter/ledger",
    )
    told = json.loads(describe(compose(["experiment=city_quick", "data.devices=60", *places]), 0, ROLL))
    assert set(told) == {"code", "config", "fold", "roll"}
    assert set(told["config"]) == {"data", "features", "model", "runtime"}
    assert set(told["config"]["runtime"]) == {"engine", "threads"}
    assert not [word for word in ("submitter", "example", "mlflow") if word in json.dumps(told)]


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("data", "language", "${oc.env:SECRET_OF_THE_NODE}"),
        ("data", "seed", "${oc.env:SECRET_OF_THE_NODE}"),
        ("features", "sources", ["chat", "${oc.env:SECRET_OF_THE_NODE}"]),
        ("model", "options", {"l2": "${oc.env:SECRET_OF_THE_NODE}"}),
    ],
)
def test_a_node_resolves_nothing_that_it_is_told(
    group: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_OF_THE_NODE", "4711")
    told = json.loads(describe(compose(["experiment=city_quick", "data.devices=60"]), 0, ROLL))
    told["config"][group][key] = value
    with pytest.raises(ConfigError, match=rf"^{group}\.{key}[\w.]*: holds \$") as refused:
        host_named(SIMULATED)(json.dumps(told), 0, 1)
    assert "4711" not in str(refused.value)


def test_a_run_of_other_code_is_refused() -> None:
    config = compose(["experiment=city_quick", "data.devices=60"])
    told = {**json.loads(describe(config, 0, ROLL)), "code": "0" * 64}
    with pytest.raises(CodeMismatch, match="000000000000"):
        host_named(SIMULATED)(json.dumps(told), 0, 1)


@pytest.mark.parametrize("description", ["", "[]", "{}", '{"code": "1", "config": {}}', "not json"])
def test_what_describes_nothing_is_refused(description: str) -> None:
    with pytest.raises(MalformedMessage, match="not a description"):
        host_named(SIMULATED)(description, 0, 1)


def test_a_node_without_the_data_says_so(tmp_path: Path) -> None:
    config = compose(["experiment=crosswoz_restaurants", f"data.root={tmp_path}"])
    with pytest.raises(DataMissing):
        host_named(SIMULATED)(describe(config, 0, ROLL), 0, 1)
