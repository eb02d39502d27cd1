"""Everything a gateway must not forget, behind one object that gateways of a population share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, func, select

from fedlearn.device.credential import Credential
from fedlearn.device.requests import Denial
from fedlearn.device.task import DeviceTask
from fedlearn.task import RoundTask
from fedlearn.types import I64
from fedlearn_server.gateway import accepting, collecting, enrolment, offers, opening, tidying
from fedlearn_server.gateway.accepting import Upload, Verdict
from fedlearn_server.gateway.collecting import Collection
from fedlearn_server.gateway.enrolment import Device
from fedlearn_server.gateway.offers import Asked, Offer
from fedlearn_server.gateway.opening import Wanted
from fedlearn_server.gateway.store import Store
from fedlearn_server.gateway.tables import Stage, collections, objects
from fedlearn_server.gateway.terms import FleetTerms

MOST_NOTED: Final = 4096
"""Check-ins that may wait to be written; those over it, while the database is away, are not noted."""

__all__ = ["Collection", "Device", "Figures", "GatewayState", "Offer", "Upload", "Verdict"]


@dataclass(frozen=True, slots=True)
class Figures:
    """What is going on, for the operator of the gateway alone: realised cohort sizes are not for the public.

    Args:
        collections: that are open.
        room: contributions that they still want.
        accepted: contributions that they have.
    """

    collections: int
    room: int
    accepted: int


class GatewayState:
    """Devices, tasks in hand, participations and the sums of open collections, in SQLite or PostgreSQL.

    Guarantee: a token is accepted at most once, a device takes part in steps that lie ``min_separation`` apart and at
    most ``max_participations`` times, and a contribution that was called accepted is in its sum exactly once, whatever
    crashes in between and however many gateways share the state. A contribution that is in a sum passed every check of
    ``fedlearn.fold.checked``: one phone moves the sum by at most ``l2_clip_norm``.

    What lies on the disk: the sum of an open collection, without noise. It is wiped when the collection is answered or
    abandoned, and the answer when the run asks for the next step (SQLite: with ``secure_delete``, and the log is cut
    off; snapshots, a disk's own remapping, PostgreSQL's log, and its dead rows until VACUUM, may hold older bytes).
    While few contributions are in it, a sum is as good as a single update, and so is the difference of two sums in the
    log: whoever reads the database is inside the trusted base, so it belongs on an encrypted disk of its own.

    Every method raises GatewayStoreFailed where the database fails, and has then done nothing that was acknowledged.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._noted: list[dict[str, object]] = []

    @classmethod
    def open(cls, where: str | Path) -> GatewayState:
        """Open the state, made if it is absent: a path for SQLite, or a ``postgresql://`` URL.

        Raises:
            GatewayStoreFailed: it cannot be opened, or was made by another version.
            MissingDependency: psycopg is not installed.
        """
        return cls(Store(where))

    def disconnect(self) -> None:
        """Write the last notes and let go of the database."""
        try:
            with self._writing():
                pass
        finally:
            self._store.close()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._store.writing() as connection:
            noted, self._noted = self._noted, []
            if noted:
                enrolment.note_check_ins(connection, noted)
            yield connection

    # --- devices ---

    def enrol(self, credential: Credential, device: bytes, now: float) -> Denial | None:
        """Make a device known; None: it is, now or since earlier. The credential was checked by the caller."""
        with self._writing() as connection:
            return enrolment.enrol(connection, credential, device, now)

    def is_enrolled(self, device: bytes) -> Denial | None:
        """Return UNKNOWN or REVOKED, or None: it may take part."""
        with self._store.reading() as connection:
            return enrolment.denied(connection, device)

    def revoke(self, device: bytes, now: float) -> bool:
        """Revoke a device, from its next request on, and the tasks in its hand; False: there was nothing to revoke.

        What it contributed before stays in sums that are open: single contributions are not kept.
        """
        with self._writing() as connection:
            return enrolment.revoke(connection, device, now)

    def devices(self) -> Sequence[Device]:
        """Return every device that was ever enrolled."""
        with self._store.reading() as connection:
            return enrolment.all_devices(connection)

    def note_check_in(self, device: bytes, address: str, outcome: str, now: float) -> None:
        """Note who asked from where: kept for 7 days, and nothing links it to a contribution.

        It becomes durable with the next write: a crash may lose the notes of the last moments, and nothing else.
        """
        if len(self._noted) < MOST_NOTED:
            self._noted.append({"device": device, "address": address, "outcome": outcome, "at": now})

    # --- collections ---

    def open_collection(  # noqa: PLR0917 - what a node is asked, in its order
        self, terms: FleetTerms, task: RoundTask, weights: bytes, part: int, parts: int, now: float
    ) -> Collection:
        """Return the open collection of this run, step, attempt and part; open it if there is none.

        Collections of earlier steps and attempts of the run are given up, their sums and answers wiped.

        Raises:
            RoundFailed: the task is not one of the run that ``terms`` describe, or another task is open in its place.
        """
        with self._writing() as connection:
            collection = opening.open_collection(connection, Wanted(terms, task, weights, part, parts), now)
        self._store.forget_log()
        return collection

    def is_full(self, collection: Collection) -> bool:
        """Return whether nothing more is wanted: the target is reached, or the collection is not open any more."""
        with self._store.reading() as connection:
            stage, accepted = connection.execute(
                select(collections.c.stage, collections.c.accepted).where(collections.c.id == collection.id)
            ).one()
        return bool(stage != Stage.OPEN or accepted >= collection.target)

    def close(self, collection: Collection, now: float) -> tuple[int, I64] | None:
        """Take no more contributions; return how many there are and their sum, in grid steps.

        The sum stays until it is answered, so that a crash in between loses nothing. A collection below its minimum is
        abandoned: the sum is wiped, and how many phones were in it is told to nobody.

        Returns:
            None: abandoned, or answered already.
        """
        del now  # a gateway may close early: it is leaving, or the collection is full
        with self._writing() as connection:
            closed = collecting.close_collection(connection, collection.id)
        if closed is None:
            self._store.forget_log()
        return closed

    def answer(self, collection: Collection, reply: bytes) -> None:
        """Keep the answer of a closed collection and wipe its sum; the first answer stands.

        Raises:
            RoundFailed: the collection is open, or was abandoned.
        """
        with self._writing() as connection:
            collecting.keep_answer(connection, collection.id, reply)
        self._store.forget_log()

    def answered(self, run_id: str, step: int, attempt: int, part: int) -> bytes | None:
        """Return what was answered, until the run asks for a later step or attempt."""
        with self._store.reading() as connection:
            return collecting.kept_answer(connection, run_id, step, attempt, part)

    def object(self, digest: bytes) -> bytes | None:
        """Return the bytes with this SHA-256."""
        with self._store.reading() as connection:
            return connection.scalars(select(objects.c.data).where(objects.c.digest == digest)).one_or_none()

    def put_object(self, data: bytes) -> bytes:
        """Keep bytes that phones may fetch, a bundle or a catalogue, and return their SHA-256."""
        with self._writing() as connection:
            return collecting.put_object(connection, data)

    # --- phones ---

    def reserve(  # noqa: PLR0917 - what a phone asks, in its order
        self,
        device: bytes,
        population: str,
        purpose: str,
        bundle_digest: bytes,
        nonce: bytes,
        now: float,
        sign: Callable[[DeviceTask], bytes],
    ) -> Offer | Denial:
        """Return a task for a phone, or why there is none; its token is durable when this returns.

        A phone that has a task in hand gets the same one again. Tasks are given while fewer than ``most`` are at work
        or accepted: one that expired, or whose contribution was rejected, makes room for another phone.

        Args:
            device: the key that signed the request; the caller checked the signature and the time.
            population, purpose: ids in the policy.
            bundle_digest: SHA-256 of the task bundle the phone has.
            nonce: of the request.
            now: seconds since the Unix epoch.
            sign: makes the ``SignedTask`` that is sent.
        """
        with self._writing() as connection:
            return offers.reserve(connection, Asked(device, population, purpose, bundle_digest, nonce), now, sign)

    def accept(self, uploads: Sequence[Upload], now: float) -> list[Verdict]:
        """Judge a batch, add what is good in one transaction, and return a verdict each, in order.

        The same bytes for the same token get the same verdict and are counted once; other bytes, ``token_used``.
        """
        with self._store.reading() as connection:
            judged = accepting.judge(connection, uploads, now)
        with self._writing() as connection:
            return accepting.add(connection, uploads, judged, now)

    # --- upkeep ---

    def tidy(self, now: float) -> None:
        """Forget what nobody needs: to be called about once an hour."""
        with self._writing() as connection:
            tidying.tidy(connection, now)
        self._store.forget_log()

    def figures(self) -> Figures:
        """Return what is going on; nothing of it is about one device."""
        wanted = func.coalesce(func.sum(collections.c.target - collections.c.accepted), 0)
        has = func.coalesce(func.sum(collections.c.accepted), 0)
        with self._store.reading() as connection:
            row = connection.execute(select(func.count(), wanted, has).where(collections.c.stage == Stage.OPEN)).one()
        return Figures(*map(int, row))
