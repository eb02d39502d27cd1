from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedlearn.errors import OutOfRange, PrivacyError, ResumeRefused
from fedlearn.privacy import secret_files
from fedlearn.privacy.sampling import KEY_BYTES
from fedlearn.privacy.secrets import SecretStore


def test_created_once_then_loaded(tmp_path: Path) -> None:
    store = SecretStore(tmp_path / "state")
    key = store.load_or_create("run-1")
    assert store.load_or_create("run-1") == key
    assert store.load("run-1") == key
    assert store.load_or_create("run-2") != key


def test_only_the_owner_can_read(tmp_path: Path) -> None:
    SecretStore(tmp_path / "state").load_or_create("run-1")
    directory = tmp_path / "state" / "sampling"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    (file,) = directory.iterdir()  # no temporary file is left
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_directory_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path))
    SecretStore().load_or_create("run-1")
    assert (tmp_path / "sampling" / "run-1.key").is_file()


def test_one_key_wins_when_several_start_at_once(tmp_path: Path) -> None:
    store = SecretStore(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: store.load_or_create("run-1"), range(32)))
    assert all(key == keys[0] for key in keys)


def test_destroyed_means_gone(tmp_path: Path) -> None:
    store = SecretStore(tmp_path)
    store.load_or_create("run-1")
    store.destroy("run-1")
    store.destroy("run-1")
    assert not list((tmp_path / "sampling").iterdir())
    with pytest.raises(ResumeRefused, match="sampling key"):
        store.load("run-1")


class Killed(BaseException):
    """The process ends here."""


def killed_in(owner: object, name: str, occurrence: int, patch: pytest.MonkeyPatch) -> None:
    """End the process at the given call, before it does anything."""
    real, calls = getattr(owner, name), []

    def call(*arguments: object, **named: object) -> object:
        calls.append(arguments)
        if len(calls) == occurrence + 1:
            raise Killed
        return real(*arguments, **named)

    patch.setattr(owner, name, call)


DESTROYING = [
    (Path, "rename", 0),
    (secret_files, "sync_directory", 0),
    (os, "write", 0),
    (os, "fsync", 1),
    (Path, "unlink", 0),
]


@pytest.mark.parametrize(("owner", "name", "occurrence"), DESTROYING)
def test_killed_while_it_destroys(tmp_path: Path, owner: object, name: str, occurrence: int) -> None:
    """The key is whole or gone, never damaged, and nothing of it stays."""
    store = SecretStore(tmp_path)
    key = store.load_or_create("run-1")
    with pytest.MonkeyPatch.context() as patch:
        killed_in(owner, name, occurrence, patch)
        with pytest.raises(Killed):
            store.destroy("run-1")
    path = tmp_path / "sampling" / "run-1.key"
    assert not path.exists() or store.load("run-1") == key
    store.destroy("run-1")
    assert not list(path.parent.iterdir())


CREATING = [(os, "write", 0), (os, "fsync", 0), (Path, "hardlink_to", 0), (Path, "unlink", 0)]


@pytest.mark.parametrize(("owner", "name", "occurrence"), CREATING)
def test_killed_while_it_creates(tmp_path: Path, owner: object, name: str, occurrence: int) -> None:
    store = SecretStore(tmp_path)
    other = store.load_or_create("run-1.key.0123456789abcdef")  # its files begin as those of run-1 do
    directory = tmp_path / "sampling"
    with pytest.MonkeyPatch.context() as patch:
        killed_in(owner, name, occurrence, patch)
        if name != "unlink":  # what a kill leaves undone, an exception would do
            patch.setattr(Path, "unlink", lambda self: None)
        with pytest.raises(Killed):
            store.load_or_create("run-1")
    assert len(list(directory.glob(".run-1.key.*"))) == 1
    before = store.load("run-1") if (directory / "run-1.key").exists() else None
    store.hold("run-1").close()
    assert not list(directory.glob(".*"))
    key = store.load_or_create("run-1")
    assert before is None or key == before  # a second name of the live key is removed, not overwritten
    assert len(key.reveal()) == KEY_BYTES
    assert store.load("run-1.key.0123456789abcdef") == other


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, bytes(32)])
def test_a_damaged_key_is_refused(tmp_path: Path, content: bytes) -> None:
    store = SecretStore(tmp_path)
    store.load_or_create("run-1")
    (tmp_path / "sampling" / "run-1.key").write_bytes(content)
    with pytest.raises(PrivacyError, match="damaged"):
        store.load_or_create("run-1")


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    store = SecretStore(tmp_path)
    store.load_or_create("run-1")
    (tmp_path / "sampling" / "run-1.key").chmod(0o644)
    with pytest.raises(PrivacyError, match="600"):
        store.load("run-1")


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", ".hidden", "a" * 129, "a\n"])
def test_a_run_id_cannot_leave_the_directory(tmp_path: Path, run_id: str) -> None:
    with pytest.raises(OutOfRange, match="run id"):
        SecretStore(tmp_path).load_or_create(run_id)
