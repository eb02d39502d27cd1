"""The charges of a run that noise may have been drawn for, kept outside its directory, beside its key.

A ledger alone cannot tell that it is an older copy of itself. The tally can: it does not travel with the run directory.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from fedlearn.errors import LedgerLocked, PrivacyError, ResumeRefused
from fedlearn.files import sync_directory

_RECORD: Final = 32


class Tally:
    """An exclusive hold on a run's tally, from construction to ``close``.

    The file holds the sum digest of each charge (32 bytes, a blinded commitment), in order, and only grows. A charge is
    recorded after the ledger made it durable and before its noise is drawn. Hence a ledger under which every release of
    this run was made has the tally as its beginning; an older copy, or one that went its own way, has not.

    Not detected: a tally that was itself set back together with the ledger, as an image of the whole machine would.

    Args:
        path: made if absent, in an existing directory on a local disk.

    Raises:
        LedgerLocked: another process trains this run, perhaps from a copy of its directory.
        PrivacyError: the file cannot be made or locked.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync_directory(path.parent)
            self._digests = _digests(os.pread(self._handle, os.fstat(self._handle).st_size, 0))
        except BlockingIOError as error:
            os.close(self._handle)
            raise LedgerLocked(
                f"{path}: another process trains this run, perhaps from a copy of its directory; "
                "wait for it to end or stop it."
            ) from error
        except OSError as error:
            os.close(self._handle)
            raise _unusable(path, error) from error

    @property
    def digests(self) -> tuple[str, ...]:
        """Sum digests (hex) of the recorded charges, in order."""
        return self._digests

    def record(self, charged: Sequence[str]) -> None:
        """Durably record the charges that are not in the tally yet. Only after this returns may noise be drawn.

        Args:
            charged: sum digests of all charges of the ledger, in order.

        Raises:
            ResumeRefused: the ledger lacks a recorded charge; nothing is written.
            PrivacyError: the disk is full or failing; no noise may be drawn for the last charge.
        """
        known, charged = len(self._digests), tuple(charged)
        if charged[:known] != self._digests:
            raise ResumeRefused(
                f"{self._path}: {known} charges were made in this run, and its ledger does not hold them all "
                f"(it has {len(charged)}): it is an older copy, or a copy that went its own way. Its charges were "
                "spent; start a new run."
            )
        data = bytes.fromhex("".join(charged[known:]))
        if not data:
            return
        try:
            # at its place, not appended: over what an earlier write that failed may have left
            written = os.pwrite(self._handle, data, _RECORD * known)
            os.fsync(self._handle)
        except OSError as error:
            raise _unusable(self._path, error) from error
        if written != len(data):
            raise _unusable(self._path, "a short write")
        self._digests = charged

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._handle)

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _digests(content: bytes) -> tuple[str, ...]:
    """Return the whole records; one that a power cut left short or empty was never drawn for."""
    records = [content[at : at + _RECORD] for at in range(0, len(content) - _RECORD + 1, _RECORD)]
    while records and not any(records[-1]):
        records.pop()
    return tuple(record.hex() for record in records)


def _unusable(path: Path, reason: OSError | str) -> PrivacyError:
    return PrivacyError(f"{path}: cannot be used ({reason}); free space, or set FEDLEARN_STATE to a local disk.")
