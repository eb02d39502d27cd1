"""How fast a signed ledger appends, against the disk's own syncs in the same run, and how fast it is checked."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedlearn.errors import OutOfRange
from fedlearn.ledger import LEDGER_FILE, GateKind, Ledger, Planned, RunAccount, new_scope
from fedlearn.ledger.anchor import Anchor, AnchorFile, Mark
from fedlearn.ledger.entries import GENESIS, Opened, Row, to_row
from fedlearn.ledger.signing import SigningKey
from fedlearn.ledger.sqlite import SqliteStore, create_sqlite
from fedlearn.ledger.store import RowStore
from fedlearn.privacy.events import PoissonGaussian

ENTRY_BYTES = 400
_DIGEST = hashlib.sha256(b"bench").hexdigest()


@dataclass(frozen=True, slots=True)
class LedgerBench:
    """Rates of one disk in one run.

    Args:
        syncs: raw appends of 400 bytes with an fsync each, per second; median over the repeats.
        appends: signed ledger entries per second, each durable, without the anchor that a charge also writes.
        ratio: median over the repeats of (appends / syncs) of one pair of neighbouring blocks.
        anchored: the same rate over reserve, charge, commit as a training does it, with the anchor's own sync.
        anchored_ratio: of that to syncs.
        entries: entries that were checked.
        verification_seconds: to open the ledger: chain, signatures and rules of all of them.
    """

    syncs: float
    appends: float
    ratio: float
    anchored: float
    anchored_ratio: float
    entries: int
    verification_seconds: float


class _NoAnchor(AnchorFile):
    """Knows nothing: to time the ledger's own sync alone."""

    def mark(self) -> Mark | None:
        """Return None."""
        return None

    def raise_to(self, mark: Mark, contains: Callable[[Mark], bool]) -> None:
        """Do nothing."""
        del mark, contains


class _Memory:
    """Rows in memory: to make a long ledger without a sync an entry."""

    name = "memory"

    def __init__(self, first: Row) -> None:
        self._rows = [first]

    def rows(self, start: int = 0) -> list[Row]:
        return self._rows[start:]

    def begin(self, known: int, head: str) -> list[Row]:
        del known, head
        return []

    def append(self, row: Row) -> None:
        self._rows.append(row)

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


def bench_ledger(
    directory: Path | None = None, block: int = 300, repeats: int = 7, entries: int = 10_000
) -> LedgerBench:
    """Time blocks of raw syncs and of ledger entries in turns, then check a ledger of ``entries`` entries.

    Args:
        directory: on the disk to measure; by default the working directory. What is made there is removed.
        block: syncs, and entries, of one timing, >= 3.
        repeats: pairs of neighbouring blocks, >= 1, after one that is not counted.
        entries: of the ledger that is checked, >= 2.

    Raises:
        OutOfRange: a size is too small.
    """
    if block < 3 or repeats < 1 or entries < 2:
        raise OutOfRange(f"bench: block={block} must be >= 3, repeats={repeats} >= 1, entries={entries} >= 2.")
    key = SigningKey.fresh()
    first = to_row(Opened(0, 0.0, new_scope("bench", 3.0, 1e-6, key.public, gate=GateKind.PLAN)), GENESIS, key.sign)
    with tempfile.TemporaryDirectory(dir=directory or Path.cwd()) as name:
        timings = _timings(Path(name), first, key, block // 3, repeats)
        checked, verification = _verification(Path(name), first, key, entries)
    return LedgerBench(
        syncs=statistics.median(raw for raw, _, _ in timings),
        appends=statistics.median(appends for _, appends, _ in timings),
        ratio=statistics.median(appends / raw for raw, appends, _ in timings),
        anchored=statistics.median(noted for _, _, noted in timings),
        anchored_ratio=statistics.median(noted / raw for raw, _, noted in timings),
        entries=checked,
        verification_seconds=verification,
    )


def _timings(folder: Path, first: Row, key: SigningKey, rounds: int, repeats: int) -> list[tuple[float, float, float]]:
    """Return (raw syncs, appends, appends with anchor) per second of each repeat."""
    path = folder / LEDGER_FILE
    create_sqlite(path, first)
    plain = _ledger(SqliteStore(path), key, _NoAnchor("bench", folder))
    anchored = _ledger(SqliteStore(path), key, AnchorFile("bench", folder))
    found = []
    with plain, anchored:
        _open_run(plain)
        for _ in range(repeats + 1):
            raw = _syncs(folder / "raw", 3 * rounds)
            appends = _rounds(_refreshed(plain), rounds)
            found.append((raw, appends, _rounds(_refreshed(anchored), rounds)))
    return found[1:]


def _verification(folder: Path, first: Row, key: SigningKey, entries: int) -> tuple[int, float]:
    """Return how many entries were checked, and in how many seconds."""
    memory, anchor = _Memory(first), _NoAnchor("bench", folder)
    account = _open_run(_ledger(memory, key, anchor))
    _rounds(account, -(-(entries - 2) // 3))
    started = time.perf_counter()
    checked = len(_ledger(memory, key, anchor).entries())
    return checked, time.perf_counter() - started


def _ledger(store: RowStore, key: SigningKey, anchor: Anchor) -> Ledger:
    return Ledger(store, lambda _: anchor, lambda _: key)


def _open_run(ledger: Ledger) -> RunAccount:
    return ledger.open_run("bench", "bench", "once", [Planned(PoissonGaussian(50.0, 0.01), 20_000)], _DIGEST)


def _refreshed(ledger: Ledger) -> RunAccount:
    ledger.refresh()
    return ledger.run("bench")


def _syncs(path: Path, count: int) -> float:
    """Return raw synced appends per second."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        started = time.perf_counter()
        for _ in range(count):
            os.write(handle, bytes(ENTRY_BYTES))
            os.fsync(handle)
        return count / (time.perf_counter() - started)
    finally:
        os.close(handle)


def _rounds(account: RunAccount, rounds: int) -> float:
    """Return entries per second over whole rounds: reserve, charge, commit."""
    first = len(account.committed())
    started = time.perf_counter()
    for step in range(first, first + rounds):
        account.commit(account.charge(account.reserve(step, 0), _DIGEST, _DIGEST), _DIGEST)
    return 3 * rounds / (time.perf_counter() - started)
