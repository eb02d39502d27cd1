"""Where a run's secret state lives: outside the run directory, readable by its owner alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fedlearn.errors import OutOfRange, PrivacyError, ResumeRefused
from fedlearn.files import state_directory
from fedlearn.privacy.sampling import KEY_BYTES, SamplingKey
from fedlearn.privacy.secret_files import (
    clear_leftovers,
    create_private,
    destroy_private,
    make_private_directory,
    read_private,
)
from fedlearn.privacy.tally import Tally

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
        make_private_directory(self._directory)
        tally = Tally(path)
        try:
            clear_leftovers(self._path(run_id, "key"))
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
            make_private_directory(self._directory)
            create_private(path, SamplingKey.fresh().reveal())
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
        next ``hold`` or ``destroy`` clears.
        """
        destroy_private(self._path(run_id, "key"))

    def _path(self, run_id: str, suffix: str) -> Path:
        return self._directory / f"{require_run_id(run_id)}.{suffix}"

    def _read(self, path: Path) -> SamplingKey:
        content = read_private(path)
        if len(content) != KEY_BYTES or content == bytes(KEY_BYTES):
            raise PrivacyError(f"{path}: damaged sampling key; remove it and start a new run.")
        return SamplingKey(content)


def require_run_id(run_id: str) -> str:
    """Return a run id that can name a file.

    Raises:
        OutOfRange: it cannot.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise OutOfRange(f"run id {run_id!r}: use 1-128 letters, digits, dots, dashes and underscores.")
    return run_id
