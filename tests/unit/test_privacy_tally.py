from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.errors import LedgerLocked, OutOfRange, PrivacyError, ResumeRefused
from fedlearn.privacy import tally as module
from fedlearn.privacy.secrets import SecretStore
from fedlearn.privacy.tally import Tally

A, B, C = (f"{number:064x}" for number in (10, 11, 12))


def kept(path: Path) -> tuple[str, ...]:
    with Tally(path) as tally:
        return tally.digests


def test_it_grows_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "run.charges"
    with Tally(path) as tally:
        assert tally.digests == ()
        tally.record([])
        tally.record([A])
        tally.record([A])
    with Tally(path) as tally:
        tally.record([A, B, C])  # two at once: the charge before was made by a process that died before it recorded it
    assert kept(path) == (A, B, C)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == 96


@pytest.mark.parametrize("ledger", [[], [A], [B, A], [A, C], [A, C, B]])
def test_a_ledger_without_a_recorded_charge_is_refused(tmp_path: Path, ledger: list[str]) -> None:
    path = tmp_path / "run.charges"
    with Tally(path) as tally:
        tally.record([A, B])
        with pytest.raises(ResumeRefused, match=r"2 charges were made.*older copy.*start a new run"):
            tally.record(ledger)
    assert kept(path) == (A, B)


@pytest.mark.parametrize("torn", [1, 31, 32, 33, 64])
def test_a_record_that_a_power_cut_left_torn_or_empty(tmp_path: Path, torn: int) -> None:
    """No noise was drawn for it, as it was not durable; a later record takes its place."""
    path = tmp_path / "run.charges"
    with Tally(path) as tally:
        tally.record([A])
    with path.open("ab") as file:
        file.write(bytes(torn))
    with Tally(path) as tally:
        assert tally.digests == (A,)
        tally.record([A, B])
    assert kept(path)[:2] == (A, B)


def test_a_failed_write_is_not_taken_for_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.charges"
    with Tally(path) as tally:
        tally.record([A])

        def full(handle: int) -> None:
            raise OSError("No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(module.os, "fsync", full)
            with pytest.raises(PrivacyError, match="No space left"):
                tally.record([A, B])
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "pwrite", lambda handle, data, at: len(data) - 1)
            with pytest.raises(PrivacyError, match="short write"):
                tally.record([A, B])
        assert tally.digests == (A,)
        tally.record([A, B])
    assert kept(path) == (A, B)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = SecretStore(tmp_path)
    with store.hold("run-1"):
        with pytest.raises(LedgerLocked, match="copy of its directory"):
            store.hold("run-1")
        store.hold("run-2").close()
        code = (
            "import pathlib, sys\n"
            "from fedlearn.errors import LedgerLocked\n"
            "from fedlearn.privacy.secrets import SecretStore\n"
            "try:\n    SecretStore(pathlib.Path(sys.argv[1])).hold('run-1')\n"
            "except LedgerLocked:\n    sys.exit(7)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
        assert done.returncode == 7
    store.hold("run-1").close()


def test_what_cannot_be_locked_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sampling").mkdir()
    (tmp_path / "sampling" / "run-1.charges").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PrivacyError, match="FEDLEARN_STATE"):
        SecretStore(tmp_path).hold("run-1")
    assert not (tmp_path / "elsewhere").exists()
    with pytest.raises(OutOfRange, match="run id"):
        SecretStore(tmp_path).hold("../run-1")


def test_a_hold_that_fails_is_given_back(tmp_path: Path) -> None:
    store = SecretStore(tmp_path)
    store.load_or_create("run-1")
    left = tmp_path / "sampling" / f".run-1.key.{'0' * 16}"
    left.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        store.hold("run-1")
    left.unlink()
    store.hold("run-1").close()
