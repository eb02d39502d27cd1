"""One phone without its encryption: a plain SQLite store, a KeyStore that can fail, a clock, and tasks for it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.task import DeviceTask
from fedlearn.errors import StoreFailed
from fedlearn.policy.document import DeviceCaps
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn_client.fakes import FakeClock, FakeKeyStore
from fedlearn_client.participation import Admission, Participations

NOW = 1_800_000_000.0
SCHEMA = (Path(__file__).parents[2] / "clients" / "fedlearn_client" / "store" / "schema.sql").read_text("utf-8")
CAPS = DeviceCaps(
    epsilon=1e9,
    delta=1e-6,
    max_upload_bytes=2_000_000,
    max_catalogue_bytes=5_000_000,
    max_training_seconds=585,
    max_rounds_per_day=24,
)


def _empty() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    return connection.serialize()


EMPTY = _empty()


class PlainStore:
    """What ``Database`` is to its users, in memory; ``image`` is the whole disk."""

    def __init__(self, image: bytes = EMPTY) -> None:
        self._connection = sqlite3.connect(":memory:", isolation_level=None)
        self._connection.deserialize(image)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def rows(self, sql: str, args: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, tuple(args)).fetchall()

    def image(self) -> bytes:
        return self._connection.serialize()

    def close(self) -> None:
        self._connection.close()


class FaultyKeyStore(FakeKeyStore):
    """Writes no anchor while ``fails``."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.written = 0

    def write_anchor(self, data: bytes) -> None:
        if self.fails:
            raise StoreFailed("no power")
        self.written += 1
        super().write_anchor(data)


class Phone:
    """Store, KeyStore and clock, and the ledger over them; ``start`` is a new process."""

    def __init__(self, image: bytes = EMPTY) -> None:
        self.keystore = FaultyKeyStore()
        self.clock = FakeClock(NOW)
        self.store = PlainStore(image)
        self.start()

    def start(self, image: bytes | None = None) -> None:
        """A new process, over ``image`` if one is given."""
        if image is not None:
            self.store.close()
            self.store = PlainStore(image)
        self.ledger = Participations(self.store, self.keystore, self.clock)

    def admit(self, task: DeviceTask, caps: DeviceCaps = CAPS) -> Admission:
        return self.ledger.admit(task, caps=caps)

    def take_part(self, task: DeviceTask, caps: DeviceCaps = CAPS) -> Admission:
        """Admit, record and seal, as a round does."""
        admission = self.admit(task, caps)
        with self.store.transaction() as connection:
            self.ledger.record(admission, task, connection)
        self.ledger.seal()
        return admission

    def kinds(self) -> list[str]:
        return [kind for (kind,) in self.store.rows("SELECT kind FROM participations ORDER BY id")]


TERMS = MechanismTerms(
    kind="independent",
    factorization=INDEPENDENT,
    noise_multiplier=2.0,
    l2_clip_norm=1.0,
    grid_step=2.0**-30,
    steps=100,
    min_separation=10,
    max_participations=5,
)


def terms(**changes: Any) -> MechanismTerms:
    """Independent noise over 100 steps, b = 10, k = 5."""
    return replace(TERMS, **changes)


def task(step: int, run_id: str = "run-1", mechanism: MechanismTerms = TERMS, **changes: Any) -> DeviceTask:
    """A task that a phone believes."""
    made = DeviceTask(
        run_id=run_id,
        population="city",
        purpose="train-restaurants",
        recipient="city-lab",
        step=step,
        attempt=0,
        plan_digest="a" * 64,
        weights_digest="b" * 64,
        token=(step % 2**32).to_bytes(16, "big"),
        issued=NOW - 60,
        expires=NOW + 86_400,
        round_size=2,
        mechanism=mechanism,
        shuffle_seed=0,
        digest=bytes(32),
    )
    return replace(made, **changes)
