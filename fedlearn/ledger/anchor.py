"""What this machine knows of a ledger from outside it: its head at the last charge, or closing, that was made here.

A ledger alone cannot tell that it is an older copy of itself. Its anchor can: it lies beside the keys and does not
travel with the ledger. ``privacy.tally`` stays beside it: it keeps a second process out of one run and knows of a run
whose ledger was removed; the anchor covers all runs of a ledger, and their plans, for a recovery.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from fedlearn.errors import LedgerDamaged, LedgerRestored, PrivacyError
from fedlearn.files import state_directory, sync_directory
from fedlearn.ledger.entries import GENESIS, Row, RunOpened, from_row, to_row

_SLOT: Final = 4096
"""Bytes between the two copies of a mark: a torn write damages one of them."""
_RECORD: Final = struct.Struct("<q32s")
_CHECK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """A ledger's head at some time: ``hash`` (hex) of entry ``length - 1``."""

    length: int
    hash: str


class Anchor(Protocol):
    """Keeps one ledger's mark, and the runs that were charged from this machine."""

    def mark(self) -> Mark | None:
        """Return the mark; None if nothing was charged from here."""
        ...

    def raise_to(self, mark: Mark, contains: Callable[[Mark], bool]) -> None:
        """Durably note that a charge was made under ``mark``. Only after this returns may noise be drawn.

        Args:
            mark: the ledger's head with the charge in it; a longer one that is held stays.
            contains: says whether the ledger has a mark's entry.

        Raises:
            LedgerRestored: the ledger does not contain the mark that is held.
            PrivacyError: it cannot be written.
        """
        ...

    def reset(self, mark: Mark) -> None:
        """Replace the mark, by a shorter one too: after a recovery."""
        ...

    def keep(self, run: RunOpened) -> None:
        """Durably note a run, before its first charge; does nothing if it is noted."""
        ...

    def runs(self) -> tuple[RunOpened, ...]:
        """Return the runs that were noted."""
        ...


class AnchorFile:
    """An anchor in $FEDLEARN_STATE/anchors: the mark in one file, the runs in another; shared by processes.

    Not detected: a state directory that was set back together with the ledger, as an image of the whole machine would.

    Args:
        ledger_id: names the files.
        directory: of the secret state; by default $FEDLEARN_STATE, else the user's state directory.
    """

    def __init__(self, ledger_id: str, directory: Path | None = None) -> None:
        base = (state_directory() if directory is None else directory) / "anchors"
        self._path = base / ledger_id
        self._runs_path = base / f"{ledger_id}.runs"
        self._noted: set[str] = set()

    def mark(self) -> Mark | None:
        """See ``Anchor``; raises PrivacyError if the file cannot be read or is damaged."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from error
        return self._newest(content)[0]

    def raise_to(self, mark: Mark, contains: Callable[[Mark], bool]) -> None:
        """See ``Anchor``."""
        with self._locked() as handle:
            held, slot = self._newest(os.pread(handle, 2 * _SLOT, 0))
            if held is not None and not contains(held):
                raise restored(str(self._path), held)
            if held is None or held.length < mark.length:
                self._write(handle, mark, slot)

    def reset(self, mark: Mark) -> None:
        """See ``Anchor``."""
        with self._locked() as handle:
            slot = self._newest(os.pread(handle, 2 * _SLOT, 0))[1]
            self._write(handle, mark, slot)
            os.pwrite(handle, bytes(_RECORD.size + _CHECK_BYTES), _SLOT * (1 - slot))  # the longer one before it
            os.fsync(handle)

    def keep(self, run: RunOpened) -> None:
        """See ``Anchor``."""
        if run.run in self._noted:
            return
        with self._locked():
            if run not in self.runs():
                row = to_row(run, GENESIS, _unsigned)
                self._append(f"{row.hash} {row.body}\n".encode("ascii"))
        self._noted.add(run.run)

    def runs(self) -> tuple[RunOpened, ...]:
        """See ``Anchor``; raises PrivacyError if the file is damaged."""
        try:
            lines = self._runs_path.read_bytes().split(b"\n")[:-1]  # one that a power cut left short was never charged
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unusable(error) from error
        return tuple(self._run(line) for line in lines)

    def _run(self, line: bytes) -> RunOpened:
        try:
            digest, _, body = line.decode("ascii").partition(" ")
            entry = from_row(Row(json.loads(body)["sequence"], "run_opened", body, digest, ""), GENESIS)
        except (ValueError, KeyError, TypeError, LedgerDamaged) as error:
            raise self._unusable(error) from error
        if not isinstance(entry, RunOpened):
            raise self._unusable("not a run")
        return entry

    def _append(self, line: bytes) -> None:
        try:
            handle = os.open(self._runs_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                content = os.pread(handle, os.fstat(handle).st_size, 0)
                whole = content.rfind(b"\n") + 1
                os.ftruncate(handle, whole)
                if os.pwrite(handle, line, whole) != len(line):
                    raise self._unusable("a short write")
                os.fsync(handle)
            finally:
                os.close(handle)
            sync_directory(self._runs_path.parent)
        except OSError as error:
            raise self._unusable(error) from error

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Hold the mark's file, made if absent, against other processes."""
        try:
            if not self._path.parent.is_dir():
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = not self._path.exists()
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise self._unusable(error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if made:
                os.ftruncate(handle, 2 * _SLOT)
                os.fsync(handle)
                sync_directory(self._path.parent)
            yield handle
        except OSError as error:
            raise self._unusable(error) from error
        finally:
            os.close(handle)

    def _write(self, handle: int, mark: Mark, slot: int) -> None:
        record = _RECORD.pack(mark.length, bytes.fromhex(mark.hash))
        data = record + _check(record)
        if os.pwrite(handle, data, _SLOT * slot) != len(data):
            raise self._unusable("a short write")
        os.fsync(handle)

    def _newest(self, content: bytes) -> tuple[Mark | None, int]:
        """Return the mark and the slot to write the next one to."""
        found = [_mark(content[_SLOT * slot : _SLOT * slot + _RECORD.size + _CHECK_BYTES]) for slot in (0, 1)]
        whole = [(mark.length, slot) for slot, mark in enumerate(found) if mark is not None]
        if not whole:
            if any(content):
                raise self._unusable("damaged")
            return None, 0
        newest = max(whole)[1]
        return found[newest], 1 - newest

    def _unusable(self, reason: Exception | str) -> PrivacyError:
        return PrivacyError(f"{self._path}: cannot be used ({reason}); free space, or set FEDLEARN_STATE.")


def _unsigned(_: bytes) -> str:
    return ""


def restored(name: str, mark: Mark) -> LedgerRestored:
    """Return the error for a ledger that does not contain ``mark``."""
    return LedgerRestored(
        f"{name}: a charge was made when the ledger had {mark.length} entries, the last with hash "
        f"{mark.hash[:16]}..., and it does not contain that entry: it is an older copy, or a copy that went its own "
        "way. Bring the newest copy back, or `fedlearn ledger recover` it; without an authority, start a new run."
    )


def _check(record: bytes) -> bytes:
    return hashlib.sha256(b"fedlearn anchor\n" + record).digest()[:_CHECK_BYTES]


def _mark(data: bytes) -> Mark | None:
    record, check = data[: _RECORD.size], data[_RECORD.size :]
    if len(data) < _RECORD.size + _CHECK_BYTES or check != _check(record):
        return None
    length, digest = _RECORD.unpack(record)
    return Mark(length, digest.hex())
