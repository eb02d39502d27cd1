from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.errors import InvalidSpend, NoiseStateLost, OutOfRange, PrivacyError
from fedlearn.privacy import secret_files
from fedlearn.privacy.noise_state import NoiseStateStore

MECHANISM = {"event": "ab" * 32, "l2_sensitivity": 0.5, "dimension": 3}


def store(directory: Path, run_id: str = "run", **changes: str | float) -> NoiseStateStore:
    return NoiseStateStore(run_id, {**MECHANISM, **changes}, directory)


def state_of(step: int) -> bytes:
    return b"secret-state-before-step-%d" % step * 40


def initial() -> bytes:
    return state_of(0)


def never() -> bytes:
    raise AssertionError("a run that has a state got a new one")


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A run whose states before steps 4 and 5 are on disk."""
    begun = store(tmp_path)
    assert begun.open(0, initial) == initial()
    for step in range(1, 6):
        begun.save(step, state_of(step))
    return tmp_path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "noise").iterdir())


def test_both_generations_can_be_read(kept: Path) -> None:
    assert names(kept) == ["run.0", "run.1", "run.key"]
    assert store(kept).open(5, never) == state_of(5)


def test_going_back_destroys_the_unpublished_generation(kept: Path) -> None:
    assert store(kept).open(4, never) == state_of(4)
    assert names(kept) == ["run.0", "run.key"]
    with pytest.raises(NoiseStateLost):
        store(kept).open(5, never)
    assert store(kept).open(4, never) == state_of(4)


@pytest.mark.parametrize("next_step", [0, 1, 2, 3, 6, 7, 100])
def test_any_other_step_is_lost(kept: Path, next_step: int) -> None:
    with pytest.raises(NoiseStateLost, match=r"step|not in"):
        store(kept).open(next_step, never)
    assert store(kept).open(5, never) == state_of(5)  # the refusal destroyed nothing


def test_only_the_owner_can_read(kept: Path) -> None:
    assert stat.S_IMODE((kept / "noise").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (kept / "noise").iterdir()} == {0o600}
    for path in (kept / "noise").iterdir():
        path.chmod(0o640)
        with pytest.raises(PrivacyError, match="600"):
            store(kept).open(5 if path.name != "run.0" else 4, never)
        path.chmod(0o600)


def test_nothing_is_readable_without_the_key(kept: Path) -> None:
    for path in (kept / "noise").iterdir():
        assert b"secret" not in path.read_bytes()
    (kept / "noise" / "run.key").unlink()
    with pytest.raises(NoiseStateLost, match=r"run\.key"):
        store(kept).open(5, never)
    assert names(kept) == []  # nobody can read them: they are removed, and the run has ended
    with pytest.raises(NoiseStateLost):
        store(kept).open(5, never)


def test_equal_states_never_look_equal(tmp_path: Path) -> None:
    begun = store(tmp_path)
    begun.open(0, initial)
    seen = set()
    for _ in range(5):
        begun.save(0, initial())
        seen.add((tmp_path / "noise" / "run.0").read_bytes()[-900:])
    assert len(seen) == 5


def test_directory_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path))
    NoiseStateStore("run", MECHANISM).open(0, initial)
    assert names(tmp_path) == ["run.0", "run.key"]


# --- damage, and states of others ---


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 1
    return bytes(changed)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "short head": lambda content: content[:5],
    "short header": lambda content: content[:40],
    "no nonce": lambda content: content[:-1100],
    "short": lambda content: content[:-1],
    "long": lambda content: content + b"\0",
    "zeros": lambda content: bytes(len(content)),
    "first": lambda content: flipped(content, 0),
    "length": lambda content: flipped(content, 8),
    "header": lambda content: flipped(content, 30),
    "middle": lambda content: flipped(content, len(content) // 2),
    "last": lambda content: flipped(content, -1),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_state_is_lost(kept: Path, name: str) -> None:
    path = kept / "noise" / "run.1"
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    with pytest.raises(NoiseStateLost, match="damaged"):
        store(kept).open(5, never)
    assert store(kept).open(4, never) == state_of(4)  # the other generation still serves


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, bytes(32), b"x" * 32])
def test_a_damaged_key_is_no_key(kept: Path, content: bytes) -> None:
    (kept / "noise" / "run.key").write_bytes(content)
    with pytest.raises(NoiseStateLost, match="damaged"):
        store(kept).open(5, never)


def test_a_header_cannot_be_rewritten(kept: Path) -> None:
    path = kept / "noise" / "run.0"
    content = path.read_bytes()
    assert content.count(b'"step": 4') == 1
    path.write_bytes(content.replace(b'"step": 4', b'"step": 6'))
    with pytest.raises(NoiseStateLost, match="damaged"):
        store(kept).open(6, never)


def test_states_of_others_are_refused(kept: Path) -> None:
    other = store(kept, "other")
    other.open(0, initial)
    for step in range(1, 6):
        other.save(step, state_of(step))
    directory = kept / "noise"
    (directory / "run.1").write_bytes((directory / "other.1").read_bytes())
    with pytest.raises(NoiseStateLost, match="another run"):
        store(kept).open(5, never)
    (directory / "run.key").write_bytes((directory / "other.key").read_bytes())  # with its key, even
    with pytest.raises(NoiseStateLost, match="belongs to run 'other'"):
        store(kept).open(5, never)


def test_an_older_copy_is_refused(kept: Path) -> None:
    directory = kept / "noise"
    copy = (directory / "run.1").read_bytes()
    again = store(kept)
    again.open(5, never)
    for step in (6, 7):
        again.save(step, state_of(step))
    (directory / "run.1").write_bytes(copy)
    with pytest.raises(NoiseStateLost, match="for step 5, the checkpoint continues at step 7"):
        store(kept).open(7, never)
    (directory / "run.0").write_bytes(copy)
    with pytest.raises(NoiseStateLost, match="step 5"):
        store(kept).open(6, never)


@pytest.mark.parametrize("changes", [{"l2_sensitivity": 0.25}, {"dimension": 4}, {"event": "cd" * 32}])
def test_another_mechanism_is_named(kept: Path, changes: dict[str, str | float]) -> None:
    (name,) = changes
    with pytest.raises(InvalidSpend, match=f"^{name}: changed"):
        store(kept, **changes).open(5, never)
    assert store(kept).open(5, never) == state_of(5)


def test_a_run_is_not_begun_twice(kept: Path) -> None:
    with pytest.raises(NoiseStateLost):
        store(kept).open(0, never)
    begun = store(kept, "again")
    begun.open(0, initial)
    begun.save(1, state_of(1))
    assert store(kept, "again").open(0, never) == initial()  # step 0 was never published


def test_a_store_that_is_not_open_saves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoiseStateLost, match="not open"):
        store(tmp_path).save(1, b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "a" * 129])
def test_a_run_id_cannot_leave_the_directory(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(OutOfRange, match="run id"):
        store(tmp_path, run_id)


def test_runs_with_similar_names_do_not_meet(tmp_path: Path) -> None:
    runs = ["run", "run.0", "run.key", "run.0.key"]
    for name in runs:
        begun = store(tmp_path, name)
        begun.open(0, initial)
        begun.save(1, name.encode())
    store(tmp_path, "run").destroy()
    for name in runs[1:]:
        assert store(tmp_path, name).open(1, never) == name.encode()


# --- the end of a run ---


class Killed(BaseException):
    """The process ends here."""


def killed_in(owner: object, name: str, occurrence: int, patch: pytest.MonkeyPatch) -> None:
    real, calls = getattr(owner, name), []

    def call(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) == occurrence + 1:
            raise Killed
        return real(*arguments, **named)

    patch.setattr(owner, name, call)


def test_destroyed_means_gone(kept: Path) -> None:
    open_store = store(kept)
    open_store.open(5, never)
    open_store.destroy()
    open_store.destroy()
    assert names(kept) == []
    with pytest.raises(NoiseStateLost):
        open_store.save(6, state_of(6))
    with pytest.raises(NoiseStateLost):
        store(kept).open(5, never)


def test_destroyed_files_are_overwritten_first(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sorted(path.stat().st_size for path in (kept / "noise").iterdir())
    removed: list[bytes] = []
    real = Path.unlink

    def unlink(path: Path, *arguments: object, **named: object) -> None:
        removed.append(path.read_bytes())
        real(path, *arguments, **named)

    monkeypatch.setattr(Path, "unlink", unlink)
    store(kept).destroy()
    assert sorted(map(len, removed)) == sizes
    assert not any(any(content) for content in removed)


@pytest.mark.parametrize("function", ["rename", "sync_directory", "write", "fsync", "unlink"])
@pytest.mark.parametrize("occurrence", range(6))
def test_killed_while_it_destroys(kept: Path, function: str, occurrence: int) -> None:
    """Key and states are whole or gone; the next attempt leaves nothing."""
    owner = {"rename": Path, "unlink": Path, "sync_directory": secret_files}.get(function, os)
    with pytest.MonkeyPatch.context() as patch:
        killed_in(owner, function, occurrence, patch)
        try:
            store(kept).destroy()
        except Killed:
            pass
        else:
            assert occurrence >= 3  # three files, each renamed, overwritten and unlinked once
    if (kept / "noise" / "run.key").exists():
        assert store(kept).open(5, never) == state_of(5)
    store(kept).destroy()
    assert names(kept) == []


def test_the_key_goes_first(kept: Path) -> None:
    """Killed right after it, no state can be read by anyone, whatever copies there are."""
    with pytest.MonkeyPatch.context() as patch:
        killed_in(Path, "unlink", 1, patch)
        with pytest.raises(Killed):
            store(kept).destroy()
    assert not (kept / "noise" / "run.key").exists()
    assert [name for name in names(kept) if not name.startswith(".")]


def test_what_killed_processes_left_is_cleared(kept: Path) -> None:
    for name in ("write", "replace"):
        begun = store(kept)
        begun.open(5, never)
        with pytest.MonkeyPatch.context() as patch:
            killed_in(os if name == "write" else Path, name, 0, patch)
            with pytest.raises(Killed):
                begun.save(6, state_of(6))
    assert [name for name in names(kept) if name.startswith(".")]
    assert store(kept).open(5, never) == state_of(5)
    assert names(kept) == ["run.1", "run.key"]


def test_the_header_names_what_the_state_belongs_to_and_nothing_else(kept: Path) -> None:
    content = (kept / "noise" / "run.1").read_bytes()
    size = int.from_bytes(content[8:12], "little")
    assert json.loads(content[12 : 12 + size]) == {"run_id": "run", "step": 5, "mechanism": MECHANISM}
    assert len(content) == 12 + size + 12 + len(state_of(5)) + 16
