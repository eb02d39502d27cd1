"""A staged step is published, these very bytes, whatever happens in between."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import PrivacyError
from fedlearn_server import publication
from fedlearn_server.checkpoint import CHECKPOINT_FILE, Checkpoint, load_checkpoint
from fedlearn_server.publication import complete_publication, forget_publication, publish

RUN = "run-1"


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


def state(step: int, weight: float = 0.0) -> Checkpoint:
    return Checkpoint(step, {"w": np.full(3, weight, np.float32)}, {}, {}, charge_id=step)


def published(directory: Path) -> bytes:
    return (directory / CHECKPOINT_FILE).read_bytes()


def test_a_crash_after_staging_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    publish(directory, RUN, state(1), private=True)

    def killed(self: Checkpoint, directory: Path) -> str:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "publish", killed)
        with pytest.raises(OSError, match="killed"):
            publish(directory, RUN, state(2, 0.25), private=True)
    complete_publication(directory, RUN)
    assert published(directory) == state(2, 0.25).to_bytes()


def test_a_copy_made_before_the_publication_gets_the_same_bytes(tmp_path: Path) -> None:
    directory, copy = tmp_path / "run", tmp_path / "copy"
    directory.mkdir()
    publish(directory, RUN, state(1), private=True)
    shutil.copytree(directory, copy)
    publish(directory, RUN, state(2, 0.5), private=True)
    complete_publication(copy, RUN)
    assert published(copy) == published(directory)


def test_only_the_next_step_is_completed(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    for step in (1, 2, 3):
        publish(directory, RUN, state(step), private=True)
    state(1).publish(directory)
    complete_publication(directory, RUN)
    assert published(directory) == state(1).to_bytes(), "two steps back: for tally and ledger to refuse"
    state(3).publish(directory)
    complete_publication(directory, RUN)
    assert published(directory) == state(3).to_bytes()


def test_the_first_step_is_completed_too(tmp_path: Path) -> None:
    publish_there = tmp_path / "run"
    publish_there.mkdir()
    publish(publish_there, RUN, state(1), private=True)
    (publish_there / CHECKPOINT_FILE).unlink()
    complete_publication(publish_there, RUN)
    assert load_checkpoint(publish_there) is not None


def test_without_privacy_nothing_is_staged_and_an_ended_run_leaves_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    publish(directory, RUN, state(1), private=False)
    assert not (tmp_path / "state").exists()
    publish(directory, RUN, state(2), private=True)
    forget_publication(RUN)
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []
    complete_publication(directory, RUN)


def test_what_others_can_read_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    publish(directory, RUN, state(1), private=True)
    (directory / CHECKPOINT_FILE).unlink()
    publication._staged(RUN).chmod(0o644)
    with pytest.raises(PrivacyError, match="must be 600"):
        complete_publication(directory, RUN)
