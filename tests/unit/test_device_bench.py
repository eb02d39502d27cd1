"""The device benchmark measures every quantity that has a limit, and says how; its figures are not tested."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.errors import OutOfRange, TransportFailed
from fedlearn.features import FEATURES
from fedlearn.lab.bench.device import DeviceSizes
from fedlearn.lab.bench.device_figures import closure, figure, figures_table
from fedlearn.lab.bench.device_phone import FORBIDDEN, Phone, forbidden, status_mebibytes
from fedlearn.lab.bench.device_trainer import bench_differences
from fedlearn.lab.bench.device_world import APP, LARGE, TERMS, World, bench_policy
from fedlearn.models import MatchModel
from fedlearn.models.base import parameter_count
from fedlearn.policy.document import DataType
from fedlearn_client.hooks import Role


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("bench") / "keys", bench_policy(), 500, 120, float(int(time.time())))


def test_a_daemon_starts_serves_and_loads_nothing_forbidden(world: World) -> None:
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        phone = Phone(Path(folder), world.documents.root)
        with phone.life("system", Role.SYSTEM, imports=True) as life:
            assert life.serving_s > 0.0
            assert 10.0 < life.mebibytes() <= life.mebibytes("VmHWM")
            assert life.workers() == []
            assert life.call("Runtime/Status").version
            with pytest.raises(TransportFailed, match="PERMISSION_DENIED"):
                life.call("Consent/List")
        assert "grpc" in phone.loaded()
        assert forbidden(phone.loaded()) == []


def test_a_daemon_that_cannot_start_says_why(world: World, tmp_path: Path) -> None:
    phone = Phone(tmp_path, "not a key")
    with pytest.raises(TransportFailed, match="root_keys"), phone.life("system", Role.SYSTEM):
        pass


def test_differences_of_every_model_and_kind_are_within_the_limit(world: World) -> None:
    found = bench_differences(world, steps=20)
    assert [one.name for one in found] == [
        *("difference, match", "difference, match, private steps"),
        *("difference, two_tower", "difference, two_tower, private steps"),
    ]
    assert all(one.is_met for one in found)


def test_steps_and_examples_are_what_a_round_says(world: World) -> None:
    one = world.round(MatchModel(len(FEATURES)), TERMS, 12)
    assert len(one.request.occasions) == 12
    assert one.plan.training.batch_size == 16
    assert one.plan.training.candidates == 64
    assert one.request.catalogue == catalogue_bytes(world.catalogue)


def test_a_limit_is_a_ceiling_or_a_floor() -> None:
    assert figure("a", "s", [1.0, 3.0, 2.0], "", limit=2.0).is_met
    assert not figure("a", "s", [1.0, 3.0, 2.5], "", limit=2.0).is_met
    assert figure("a", "1/s", [1.0, 3.0, 2.0], "", limit=2.0, at_least=True).is_met
    assert not figure("a", "1/s", [1.0, 3.0, 1.5], "", limit=2.0, at_least=True).is_met
    assert figure("a", "s", [1.0], "").is_met is None
    with pytest.raises(OutOfRange, match="not measured once"):
        figure("a", "s", [], "")


def test_the_table_marks_what_misses_its_limit() -> None:
    table = figures_table([figure("slow", "s", [3.0], "", limit=2.0), figure("quick", "s", [1.0], "", limit=2.0)])
    assert [*table.columns[4].cells] == ["NO", "yes"]


def test_closure_follows_what_is_needed() -> None:
    names = closure("fedlearn-client")
    assert {"fedlearn-client", "fedlearn", "numpy", "onnxruntime", "sqlcipher3", "protobuf"} <= names
    assert "torch" not in names


def test_forbidden_modules_are_found_by_whole_names() -> None:
    assert forbidden(frozenset({"numpy.linalg", "torch", "torchlight", "fedlearn.label", "fedlearn.lab.city"})) == [
        "fedlearn.lab.city", "numpy.linalg", "torch",
    ]  # fmt: skip
    assert "fedlearn.lab" in FORBIDDEN


def test_memory_of_a_process_that_is_gone_is_nothing() -> None:
    assert status_mebibytes(2**22 + 1, "VmRSS") == 0.0


def test_the_world_is_what_the_limits_speak_of(tmp_path: Path) -> None:
    policy = bench_policy()
    assert {one.data_type for one in policy.sources if one.app == APP} == set(DataType)
    assert parameter_count(LARGE.initial(0)) > 150_000
    world = World(tmp_path / "keys", policy, 500, 3, 1_800_000_000.0)
    assert len(world.catalogue.items) == 500
    with pytest.raises(OutOfRange, match="raise phones"):
        world.occasions(1000)
    assert all(occasion.chosen and occasion.earlier for occasion in world.occasions(5))


@pytest.mark.parametrize("changes", [{"messages": 1500}, {"messages": 0}, {"repeats": 0}, {"rankings": 0}])
def test_sizes_that_measure_nothing_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(OutOfRange, match="bench"):
        DeviceSizes(**changes)  # type: ignore[arg-type]
