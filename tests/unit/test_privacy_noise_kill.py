"""Killed at any moment and continued at the published step, the released noise is still one run of the mechanism."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.privacy import correlated, secret_files
from fedlearn.privacy.correlated import CorrelatedMechanism
from fedlearn.privacy.recurrence import state_from_bytes

_HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("noise_town", _HERE / "noise_town.py")
town = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town
_spec.loader.exec_module(town)

STEPS, SIZE = 6, 20_000
TOO_FAR = 7.0


class Killed(BaseException):
    """The process ends here."""


def check_published(noise: np.ndarray, name: str, std: float) -> None:
    """The published rows are C^-1 Z for independent rows Z, none of which was used twice, and no other mechanism's."""
    steps = noise.shape[0]
    mixing = town.noise_map(town.EVERY[name], steps)
    assert town.misfit(noise, mixing, std) < TOO_FAR
    other = "independent" if name == "tree" else "tree"
    assert town.misfit(noise, town.noise_map(town.EVERY[other], steps), std) > TOO_FAR
    fresh = np.linalg.pinv(mixing) @ noise / std  # of the tree: the projection on the blocks that are used
    overlap = np.corrcoef(fresh) - np.eye(steps)
    assert name == "tree" or np.abs(overlap).max() < TOO_FAR / np.sqrt(noise.shape[1])
    assert len({row.tobytes() for row in np.rint(fresh * std)}) == steps


# Every durable act within one release, and the moments around it.
DRAWN = [(correlated, "rounded_normal", 0)]
SAVING = [
    (os, "write", 0),
    (os, "fsync", 0),
    (Path, "replace", 0),
    (secret_files, "sync_directory", 0),
    (os, "fsync", 1),
]
OPENING = [
    (secret_files, "sync_directory", 0),
    (os, "write", 0),
    (os, "fsync", 1),
    (Path, "unlink", 0),
]


def killed_in(owner: object, name: str, occurrence: int, *, after: bool, patch: pytest.MonkeyPatch) -> None:
    real, calls = getattr(owner, name), []

    def call(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        last = len(calls) == occurrence + 1
        if last and not after:
            raise Killed
        result = real(*arguments, **named)
        if last:
            raise Killed
        return result

    patch.setattr(owner, name, call)


@pytest.mark.parametrize("name", ["blt", "banded", "tree", "independent"])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_every_durable_step(name: str, after: bool, tmp_path: Path) -> None:
    spent = town.event(town.EVERY[name], STEPS)
    rows, slack = [], 0.0
    for step, (owner, function, occurrence) in enumerate([*DRAWN, *SAVING]):
        mechanism = town.opened(spent, tmp_path, next_step=step)
        with pytest.MonkeyPatch.context() as patch:
            killed_in(owner, function, occurrence, after=after, patch=patch)
            with pytest.raises(Killed):
                town.released_noise(mechanism)
        assert mechanism.next_step == step
        for place in OPENING:
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Killed):
                killed_in(*place, after=after, patch=patch)
                town.opened(spent, tmp_path, next_step=step)
        mechanism = town.opened(spent, tmp_path, next_step=step)
        discarded = town.released_noise(mechanism)  # durable, returned, and never published
        mechanism = town.opened(spent, tmp_path, next_step=step)
        rows.append(town.released_noise(mechanism))
        assert (rows[-1] != discarded).mean() > 0.99
        slack = mechanism.slack
    check_published(np.array(rows), name, town.scale_of(slack))


@pytest.mark.parametrize("name", ["blt", "banded"])
def test_the_state_after_an_unpublished_draw_would_be_noticed(name: str, tmp_path: Path) -> None:
    """Negative control: a step drawn again from the state after its first draw, not from the one before."""
    mechanism = town.opened(town.event(town.EVERY[name], STEPS), tmp_path)
    rows = []
    for step in range(STEPS):
        town.released_noise(mechanism)
        mechanism._next_step = step
        rows.append(town.released_noise(mechanism))
    std = town.scale_of(mechanism.slack)
    assert town.misfit(np.array(rows), town.noise_map(town.EVERY[name], STEPS), std) > TOO_FAR


def test_a_disk_that_fails_once_costs_a_draw_and_no_more(tmp_path: Path) -> None:
    mechanism = town.opened(town.event(town.BLT, STEPS), tmp_path)
    rows = []
    for step in range(STEPS):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="full"):
                town.released_noise(mechanism)
        rows.append(town.released_noise(mechanism))
        assert mechanism.next_step == step + 1
    check_published(np.array(rows), "blt", town.scale_of(mechanism.slack))


def full(handle: int) -> None:
    raise OSError("disk full")


def run_killer(tmp_path: Path, name: str, *, steps: int, size: int, kills: int, seed: int) -> int:
    """Let a run be killed; check what it published and that no secret is in its directory; return the kills."""
    state, run = tmp_path / "state", tmp_path / "run"
    run.mkdir()
    arguments = [str(state), str(run), name, *map(str, (steps, size, kills, seed))]
    done = subprocess.run(
        [sys.executable, str(_HERE / "noise_killer.py"), *arguments], capture_output=True, text=True, check=True
    )
    means = [np.frombuffer((run / f"mean-{step}").read_bytes(), "<f8") for step in range(steps)]
    noise = np.array([town.added(mean, step) for step, mean in enumerate(means)])
    ended = town.opened(town.event(town.EVERY[name], steps), state, next_step=steps, dimension=size)
    check_published(noise, name, town.scale_of(ended.slack))
    check_hidden(ended, state, run)
    return int(done.stdout)


def check_hidden(mechanism: CorrelatedMechanism, state: Path, run: Path) -> None:
    """No piece of the secret state is readable in the run's directory, nor in the state's own files."""
    rows = mechanism._state
    assert rows.any()
    pieces = town.plaintexts(rows[rows.any(axis=1)], range(0, rows.shape[1] - 4, rows.shape[1] // 50))
    for directory in (run, state):
        assert not town.files_with(pieces, directory)
    plain = run / "leak"
    plain.write_bytes(rows.astype("<i8").tobytes())
    assert town.files_with(pieces, run) == ["leak"]
    plain.unlink()
    mechanism.destroy()
    assert not list((state / "noise").iterdir())


def test_killed_by_the_operating_system(tmp_path: Path) -> None:
    assert run_killer(tmp_path, "blt", steps=16, size=20_000, kills=8, seed=1) >= 4


def test_the_state_file_holds_what_the_store_returns(tmp_path: Path) -> None:
    """``check_hidden`` searches for the right bytes: those of the state that the next process will read."""
    mechanism = town.opened(town.event(town.BLT), tmp_path, dimension=8)
    town.released_noise(mechanism, 8)
    again = town.opened(town.event(town.BLT), tmp_path, dimension=8, next_step=1)
    assert (again._state == mechanism._state).all()
    content = mechanism._store.open(1, bytes)
    assert (state_from_bytes(content, 2, 8) == mechanism._state).all()
