"""A disk that is full at the server: a clear error, nothing charged is lost, and the run goes on when there is room."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedlearn.errors import LedgerError, PrivacyError
from fedlearn.ledger import LEDGER_FILE, Charged, Committed, Ledger, verifier
from fedlearn_server.checkpoint import load_checkpoint, load_model

_spec = importlib.util.spec_from_file_location("round_town", Path(__file__).with_name("round_town.py"))
town = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
if not hasattr(town, "train"):
    _spec.loader.exec_module(town)

ROUNDS = 3
SIZE = 512 * 1024
FREE = (0, 4, 12, 36, 84)
"""Kilobytes that are free when the training begins: it gets to another point with each."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "disk"
    made.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(made)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield made
    subprocess.run(["umount", "-l", str(made)], check=True)


def fill(disk: Path, free: int) -> Path:
    """Leave only that many bytes free."""
    found = os.statvfs(disk)
    path = disk / "filler"
    path.write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - free)))
    return path


def entries(directory: Path, kind: type) -> list:
    return [entry for entry in Ledger.read(directory / LEDGER_FILE) if isinstance(entry, kind)]


@pytest.mark.parametrize("full", ["run", "state"])
def test_the_training_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    said: list[str] = []
    for kilobytes in FREE:
        places = {name: (small_disk if name == full else tmp_path) / f"{name}-{kilobytes}" for name in ("run", "state")}
        monkeypatch.setenv("FEDLEARN_STATE", str(places["state"]))
        directory = places["run"]
        directory.mkdir()
        job = town.make_job(directory)
        filler = fill(small_disk, 1024 * kilobytes)
        try:
            town.train(job, town.Nodes([town.good] * 4))
        except (LedgerError, PrivacyError, OSError) as problem:
            said.append(str(problem))
        charged = len(entries(directory, Charged)) if (directory / LEDGER_FILE).exists() else 0
        filler.unlink()
        if not (directory / "model.safetensors").exists():
            town.train(job, town.Nodes([town.good] * 4))
        assert load_model(directory)
        charges, commits = entries(directory, Charged), entries(directory, Committed)
        assert charged <= len(charges) <= ROUNDS
        assert len({commit.charge for commit in commits}) == len(commits) == load_checkpoint(directory).step
        verifier.check_record_at(directory / LEDGER_FILE, verifier.Pins())
        shutil.rmtree(places["run"])
        shutil.rmtree(places["state"])
    assert len(said) >= 3, "the disk was hardly ever full"
    assert all(any(word in words for word in ("space", "full", "disk")) for words in said), said
