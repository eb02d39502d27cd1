from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fedlearn.errors import OutOfRange, PrivacyError, ResumeRefused
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
