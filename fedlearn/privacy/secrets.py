"""Where a run's secret state lives: outside the run directory, readable by its owner alone."""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final

from fedlearn.errors import OutOfRange, PrivacyError, ResumeRefused
from fedlearn.files import state_directory, sync_directory
from fedlearn.privacy.sampling import KEY_BYTES, SamplingKey
from fedlearn.privacy.tally import Tally

_SUFFIX_DIGITS: Final = 16
_RUN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class SecretStore:
    """Keeps one sampling key and one tally per run: directory 0700, files 0600, created atomically, durable before use.

    The tally is not secret and stays when the key is destroyed: a run that ended is not begun again under its id.

    Args:
        directory: where; by default $FEDLEARN_STATE, else the user's state directory.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = (state_directory() if directory is None else directory) / "sampling"

    def hold(self, run_id: str) -> Tally:
        """Keep other processes out of this run and return its tally; clear what a killed process left of its keys.

        Args:
            run_id: 1-128 letters, digits, dots, dashes and underscores.

        Raises:
            OutOfRange: the run id cannot name a file.
            LedgerLocked: another process trains this run.
            PrivacyError: the tally cannot be made or locked.
        """
        path = self._path(run_id, "charges")
        self._make_directory()
        tally = Tally(path)
        try:
            self._clear(run_id)
        except BaseException:
            tally.close()
            raise
        return tally

    def load_or_create(self, run_id: str) -> SamplingKey:
        """Return the run's key, made from OS randomness and durable on disk if the run has none yet.

        Args:
            run_id: 1-128 letters, digits, dots, dashes and underscores.

        Raises:
            OutOfRange: the run id cannot name a file.
            PrivacyError: the file is damaged or others can read it.
        """
        path = self._path(run_id, "key")
        if not path.exists():
            self._create(path)
        return self._read(path)

    def load(self, run_id: str) -> SamplingKey:
        """Return the key of a run that goes on.

        Raises:
            ResumeRefused: the run has no key here: an open cohort could not be drawn again as it was.
            PrivacyError: the file is damaged or others can read it.
        """
        path = self._path(run_id, "key")
        if not path.exists():
            raise ResumeRefused(f"run {run_id!r}: its sampling key is not in {self._directory}; start a new run.")
        return self._read(path)

    def destroy(self, run_id: str) -> None:
        """Overwrite and remove the run's key; does nothing if there is none.

        Killed inside, it leaves the key either whole or gone, never a damaged one; what is left under another name, the
        next ``hold`` or ``destroy`` clears. A journaling file system or an SSD may keep older copies of the block;
        encrypt the disk against that.
        """
        path = self._path(run_id, "key")
        if path.exists():
            path.rename(_other_name(path))
            sync_directory(self._directory)
        self._clear(run_id)

    def _clear(self, run_id: str) -> None:
        """Overwrite and remove keys of this run under other names: being made or being destroyed when it was killed."""
        for left in self._directory.glob(f".{run_id}.key.{'[0-9a-f]' * _SUFFIX_DIGITS}"):
            handle = os.open(left, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                if os.fstat(handle).st_nlink == 1:  # else it is the key itself, linked and not yet unlinked
                    os.write(handle, bytes(KEY_BYTES))
                    os.fsync(handle)
            finally:
                os.close(handle)
            left.unlink(missing_ok=True)
            sync_directory(self._directory)

    def _make_directory(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory.chmod(0o700)

    def _path(self, run_id: str, suffix: str) -> Path:
        if not _RUN_ID.fullmatch(run_id):
            raise OutOfRange(f"run id {run_id!r}: use 1-128 letters, digits, dots, dashes and underscores.")
        return self._directory / f"{run_id}.{suffix}"

    def _create(self, path: Path) -> None:
        self._make_directory()
        temporary = _other_name(path)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, SamplingKey.fresh().reveal())
            os.fsync(handle)
        finally:
            os.close(handle)
        try:
            # A hard link fails if the name exists: of two processes that start at once, one key wins for both.
            path.hardlink_to(temporary)
        except FileExistsError:
            pass
        except OSError as error:
            raise PrivacyError(f"{path}: cannot be made ({error}); set FEDLEARN_STATE to a local disk.") from error
        finally:
            temporary.unlink()
        sync_directory(self._directory)

    def _read(self, path: Path) -> SamplingKey:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            content = os.read(handle, KEY_BYTES + 1)
        finally:
            os.close(handle)
        if mode & 0o077:
            raise PrivacyError(f"{path}: mode {mode:o} lets others read the sampling key; it must be 600.")
        if len(content) != KEY_BYTES or content == bytes(KEY_BYTES):
            raise PrivacyError(f"{path}: damaged sampling key; remove it and start a new run.")
        return SamplingKey(content)


def _other_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(_SUFFIX_DIGITS // 2)}")
