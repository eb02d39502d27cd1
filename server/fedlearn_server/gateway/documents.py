"""Signed documents that a gateway hands on: the status, the ledger's checkpoint, a model release.

It judges none of them; the phone does. They are files that others replace while the gateway runs. One that cannot be
read, or is none, is told once in the log, and what was read before stays: a phone refuses what is too old by itself.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from fedlearn.errors import FedlearnError, MalformedMessage, MessageTooLarge
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.signing import SigningKey
from fedlearn.policy.canonical import parse_strict
from fedlearn.policy.dsse import MAX_BYTES, STATUS_TYPE, unverified_payload
from fedlearn.policy.status import status_from_bytes

logger = logging.getLogger(__name__)

MOST_STATUS_BYTES: Final = 48 * 1024
MOST_RELEASE_BYTES: Final = 8 * 1024
MOST_CHECKPOINT_BYTES: Final = 2 * 1024
"""Together with the largest task, 192 KiB, a reply stays below what phones read of one, 256 KiB."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Numbered:
    """A document with a number that only rises.

    Args:
        number: >= 1.
        data: as signed.
        issued: seconds since the Unix epoch, where the document says so, else 0.
    """

    number: int
    data: bytes
    issued: float = 0.0


class WatchedFile(Generic[T]):
    """A file that is read again when it was replaced; safe for many threads.

    Args:
        path: of the file; None: there is none.
        most: bytes that it may have.
        read: parses them; raises FedlearnError or ValueError for what is none.
    """

    def __init__(self, path: Path | None, most: int, read: Callable[[bytes], T]) -> None:
        self._path = path
        self._most = most
        self._read = read
        self._lock = threading.Lock()
        self._seen: tuple[int, ...] | None = None
        self._value: T | None = None

    def __call__(self) -> T | None:
        """Return what the file holds, or held when it could be read last."""
        if self._path is None:
            return None
        with self._lock:
            mark = _mark(self._path)
            if mark != self._seen:
                self._seen = mark
                try:
                    self._value = self._read(self._bytes(self._path))
                except (OSError, FedlearnError, ValueError) as error:
                    logger.warning("%s cannot be used, %s; what it held before stays", self._path.name, error)
            return self._value

    def _bytes(self, path: Path) -> bytes:
        with path.open("rb") as file:
            data = file.read(self._most + 1)
        if len(data) > self._most:
            raise MessageTooLarge(f"{path.name}: over {self._most} bytes.")
        return data


def _mark(path: Path) -> tuple[int, ...]:
    """What changes when a file is replaced."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ino, found.st_size)


class Documents:
    """What is handed to phones.

    Args:
        status: the signed status (DSSE).
        checkpoint: of the ledger, JSON; a file's, or from wherever the ledger is.
        release: the newest model release, signed (DSSE).
    """

    def __init__(
        self,
        *,
        status: Callable[[], Numbered | None] | None = None,
        checkpoint: Callable[[], bytes | None] | None = None,
        release: Callable[[], Numbered | None] | None = None,
    ) -> None:
        self._status = status
        self._checkpoint = checkpoint
        self._release = release

    @classmethod
    def in_files(cls, status: Path | None, checkpoint: Path | None, release: Path | None) -> Documents:
        """Return documents that lie in files."""
        return cls(
            status=WatchedFile(status, MOST_STATUS_BYTES, read_status),
            checkpoint=WatchedFile(checkpoint, MOST_CHECKPOINT_BYTES, read_checkpoint),
            release=WatchedFile(release, MOST_RELEASE_BYTES, read_release),
        )

    def status_issued(self) -> float:
        """Return when the status was issued, seconds since the Unix epoch; 0: there is none."""
        found = None if self._status is None else self._status()
        return 0.0 if found is None else found.issued

    def status(self, newer_than: int) -> bytes:
        """Return the status if its version is above ``newer_than``, else nothing."""
        return _newer(self._status, newer_than)

    def release(self, newer_than: int) -> bytes:
        """Return the release if its number is above ``newer_than``, else nothing."""
        return _newer(self._release, newer_than)

    def checkpoint(self) -> bytes:
        """Return the ledger's newest checkpoint, or nothing."""
        found = None if self._checkpoint is None else self._checkpoint()
        return found or b""


def read_status(data: bytes) -> Numbered:
    """Return a signed status with its version; nobody's signature is checked."""
    kind, payload = unverified_payload(data)
    if kind != STATUS_TYPE:
        raise MalformedMessage("status: an envelope of something else.")
    status = status_from_bytes(payload)
    return Numbered(status.version, data, status.issued_at)


def read_release(data: bytes) -> Numbered:
    """Return a signed release with its number, the payload's field ``number``; nobody's signature is checked."""
    _, payload = unverified_payload(data)
    body: Any = parse_strict(payload, MAX_BYTES, "release")
    number = body.get("number") if isinstance(body, dict) else None
    if type(number) is not int or not 1 <= number < 2**63:
        raise MalformedMessage("release.number: must be a whole number >= 1.")
    return Numbered(number, data)


def attested(data: bytes, key: SigningKey) -> bytes:
    """Return a ledger's checkpoint signed by the operator's task key, the one that phones know by their policy.

    The ledger's own signature came with the question, over a connection that SuperLink vouches for.

    Raises:
        LedgerDamaged: not a checkpoint.
    """
    if not data:
        return b""
    found = LedgerCheckpoint.from_json(data.decode("ascii", "replace"))
    signed = LedgerCheckpoint.signed(key, found.ledger_id, found.length, found.hash, found.time)
    return signed.to_json().encode("ascii")


def read_checkpoint(data: bytes) -> bytes:
    """Return a checkpoint's JSON, if it is one; nobody's signature is checked."""
    text = data.decode("ascii").strip()
    LedgerCheckpoint.from_json(text)
    return text.encode("ascii")


def _newer(source: Callable[[], Numbered | None] | None, than: int) -> bytes:
    found = None if source is None else source()
    return b"" if found is None or found.number <= than else found.data
