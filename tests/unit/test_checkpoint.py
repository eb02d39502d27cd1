"""The published state: all or nothing on disk, and everything comes back to the bit."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from fedlearn import files
from fedlearn.engine.optimizers import IterateAverage, ServerOptimizer
from fedlearn.errors import ResumeRefused
from fedlearn.files import write_durably
from fedlearn.report.rounds import write_rounds
from fedlearn_server.checkpoint import (
    CHECKPOINT_FILE,
    Checkpoint,
    load_checkpoint,
    load_model,
    published_digest,
    write_model,
)


def example(step: int = 3) -> Checkpoint:
    rng = np.random.default_rng(step)
    parameters = {"b": rng.standard_normal((2, 3)).astype(np.float32), "a/x": np.float32([1e-40, -0.0, np.inf])}
    return Checkpoint(
        step,
        parameters,
        {"master": rng.standard_normal(9), "slot:momentum_buffer": rng.standard_normal(9)},
        {"sum": rng.standard_normal(9), "count": np.array(2, np.int64)},
        17,
    )


def assert_same(left: Checkpoint, right: Checkpoint) -> None:
    assert (left.step, left.charge_id) == (right.step, right.charge_id)
    for group in ("parameters", "optimizer", "average"):
        one, two = getattr(left, group), getattr(right, group)
        assert sorted(one) == sorted(two)
        for name in one:
            assert (one[name].dtype, one[name].shape) == (two[name].dtype, two[name].shape)
            assert one[name].tobytes() == two[name].tobytes()


def test_round_trip(tmp_path: Path) -> None:
    digest = example().publish(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert_same(loaded, example())
    content = (tmp_path / CHECKPOINT_FILE).read_bytes()
    assert digest == hashlib.sha256(content).hexdigest() == published_digest(tmp_path)
    assert loaded.publish(tmp_path) == digest, "equal states must have equal bytes"


def test_none_before_the_first(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path) is None


def test_before_any_step(tmp_path: Path) -> None:
    Checkpoint(0, {"w": np.zeros(2, np.float32)}, {}, {}, None).publish(tmp_path)
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert (loaded.optimizer, loaded.average, loaded.charge_id) == ({}, {}, None)


def test_a_crash_while_writing_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example(3).publish(tmp_path)

    def crash(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        example(4).publish(tmp_path)
    monkeypatch.undo()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert_same(loaded, example(3))
    example(5).publish(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]


def test_a_crash_while_the_round_log_is_rewritten_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run rewrites it; the records of published steps exist nowhere else."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("records of published steps\n")

    def crash(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        write_rounds(path, [])
    assert path.read_text() == "records of published steps\n"


def test_written_before_renamed_and_renamed_before_the_folder_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = files.os.fsync

    def record(handle: int) -> None:
        seen.append((tmp_path / "file").exists())
        real(handle)

    monkeypatch.setattr(files.os, "fsync", record)
    write_durably(tmp_path / "file", b"x")
    assert seen == [False, True]


def test_a_full_disk_is_said_by_the_name_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/file'$") as refused:
        write_durably(tmp_path / "file", b"x")
    assert (refused.value.errno, refused.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:8] + b"}" + data[9:],
        lambda data: b"\xff" * len(data),
        lambda data: save({"parameters/w": np.zeros(1, np.float32)}),
        lambda data: save({"parameters/w": np.zeros(1, np.float32)}, metadata={"state": "[]"}),
        lambda data: save({"parameters/w": np.zeros(1, np.float32)}, metadata={"state": '{"version": 1}'}),
        lambda data: save(
            {"other/w": np.zeros(1, np.float32)},
            metadata={"state": json.dumps({"version": 1, "step": 1, "charge_id": None})},
        ),
    ],
)
def test_damage_is_refused(tmp_path: Path, damage) -> None:
    example().publish(tmp_path)
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ResumeRefused, match="start a new run"):
        load_checkpoint(tmp_path)


def test_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(save({}, metadata={"state": json.dumps({"version": 2, "step": 0, "charge_id": None})}))
    with pytest.raises(ResumeRefused, match="version 2"):
        load_checkpoint(tmp_path)


def test_model(tmp_path: Path) -> None:
    with pytest.raises(ResumeRefused, match="no finished model"):
        load_model(tmp_path)
    model = {"b": np.float32([[1, 2]]), "a": np.float32([3])}
    write_model(tmp_path, model, {"steps": "3"})
    loaded = load_model(tmp_path)
    assert list(loaded) == ["a", "b"]
    assert all(loaded[name].tobytes() == model[name].tobytes() for name in model)


@pytest.mark.parametrize("options", [("sgd", {"momentum": 0.9}), ("adam", {}), ("sgd", {})])
def test_optimizer_and_average_go_on_to_the_bit(tmp_path: Path, options: tuple[str, dict]) -> None:
    name, extra = options
    rng = np.random.default_rng(0)
    means = rng.standard_normal((6, 4))

    def fresh() -> tuple[ServerOptimizer, IterateAverage]:
        return ServerOptimizer(name, 0.3, extra), IterateAverage(0.5, 6)

    def steps(optimizer, average, parameters, chosen):
        for step in chosen:
            parameters = optimizer.step(parameters, means[step])
            average.add(step, parameters)
        return parameters

    start = {"w": np.zeros(4, np.float32)}
    whole = fresh()
    expected = steps(*whole, start, range(6))
    for cut in range(7):
        before = fresh()
        halfway = steps(*before, start, range(cut))
        Checkpoint(cut, halfway, before[0].state_dict(), before[1].state_dict(), None).publish(tmp_path)
        loaded = load_checkpoint(tmp_path)
        after = fresh()
        after[0].load_state_dict(loaded.optimizer)
        after[1].load_state_dict(loaded.average)
        found = steps(*after, loaded.parameters, range(cut, 6))
        assert found["w"].tobytes() == expected["w"].tobytes()
        assert after[1].value(found)["w"].tobytes() == whole[1].value(expected)["w"].tobytes()
