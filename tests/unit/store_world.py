"""A small phone for tests of store and consent: three apps, two purposes, and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedlearn.policy.document import (
    Budget,
    DataType,
    DeviceCaps,
    MechanismFloors,
    Policy,
    Population,
    PopulationKind,
    Purpose,
    PurposeKind,
    Recipient,
    RecipientKind,
    Source,
)
from fedlearn_client.consent import Age, Consent
from fedlearn_client.egress import EgressLog
from fedlearn_client.examples import StoredExamples
from fedlearn_client.fakes import FakeClock
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.receipts import Receipts
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts
from fedlearn_client.store.private_parameters import PrivateParameters
from fedlearn_client.store.signals import NewSignal, SignalStore
from fedlearn_client.store.streams import Stream, Streams
from fedlearn_client.withdrawal import Withdrawals

NOW = 1_790_000_000.0
INDEX = "index-digest"
CHAT, CHOICE = DataType.MESSAGE_CONTENT, DataType.CHOICE
SOURCES = (("chat", CHAT), ("dining", CHOICE), ("maps", CHOICE))
USES = (("rank", "surface"), ("rank", "maps"), ("train", "operator"))


def make_policy(
    *, version: int = 1, disputed: Sequence[str] = (), expires: str = "2035-01-01T00:00:00Z", retention_days: int = 30
) -> Policy:
    """A policy in which each source may serve each purpose."""
    return Policy(
        name="small",
        version=1,
        expires=expires,
        population=Population("small", PopulationKind.SIMULATED, 2),
        purposes=(
            Purpose("rank", PurposeKind.RECOMMEND, "Suggest restaurants.", version, ("surface", "maps")),
            Purpose("train", PurposeKind.TRAIN, "Improve suggestions.", version, ("operator",)),
        ),
        recipients=(
            Recipient("surface", RecipientKind.SURFACE, "Search", ""),
            Recipient("maps", RecipientKind.APP, "Maps", ""),
            Recipient("operator", RecipientKind.OPERATOR, "Operator", "00" * 32),
        ),
        sources=tuple(
            Source(app, app, kind, ("rank", "train"), "own_app", "drop", "off", app in disputed, retention_days)
            for app, kind in SOURCES
        ),
        features=(),
        mechanism=MechanismFloors(("independent",), 1.0, 1.0, 2, 1, 1, 10),
        budget=Budget(3.0, 1e-4),
        device=DeviceCaps(8.0, 1e-6, 1_000, 1_000, 60, 1),
    )


@dataclass
class Phone:
    """The rooms of store and consent, open."""

    directory: Path
    clock: FakeClock
    policy: Policy | None
    keystore: FileKeyStore
    database: Database
    facts: Facts
    streams: Streams
    consent: Consent
    signals: SignalStore
    egress: EgressLog
    receipts: Receipts
    private: PrivateParameters
    withdrawals: Withdrawals
    examples: StoredExamples
    stopped: bool = False
    forgotten: list[float] = field(default_factory=list)

    def grant(self, app: str, kind: DataType, purpose: str, recipient: str) -> None:
        """Switch one use on, under the present words."""
        version = next(one.text_version for one in self.policy.purposes if one.id == purpose)
        self.consent.set(app, kind, purpose, recipient, True, version)

    def grant_all(self) -> None:
        """Switch every use on."""
        for app, kind in SOURCES:
            for use in USES:
                self.grant(app, kind, *use)

    def stream(self, app: str, kind: DataType | None = None, name: str = "main") -> Stream:
        """The app's stream, registered."""
        return self.streams.register(app, name, kind or dict(SOURCES)[app])

    def push(self, app: str, rows: Sequence[tuple[str, float, bytes]], **options: Any) -> None:
        """Keep rows of (id, time, body), as the daemon does: the stream first, then consent."""
        stream = self.stream(app)
        if self.consent.wanted(stream.app, stream.data_type):
            self.signals.add(stream, [new_signal(*row, **options) for row in rows])

    def read(self, *apps: str, **options: Any) -> list[bytes]:
        """Bodies of all that is kept of the apps."""
        numbers = [one.id for one in self.streams.all() if one.app in apps]
        return [row.body for row in self.signals.read(numbers, -1e18, 1e18, options.pop("catalogue", INDEX), **options)]

    def upload(self, purpose: str, recipient: str, body: bytes = b"contribution") -> int:
        """An upload that is ready to leave."""
        from fedlearn_client.hooks import Method

        return self.egress.prepare(
            Method.UPLOAD, purpose, recipient, run_id="run", step=3, body=body, expires=NOW + 3_600
        )

    def close(self) -> None:
        """Shut down in order."""
        self.signals.close()
        self.database.close()


def new_signal(
    signal_id: str, time: float, body: bytes, *, retention_days: int = 30, catalogue: str = INDEX
) -> NewSignal:
    """What is kept of one signal."""
    return NewSignal(signal_id, time, retention_days, catalogue, body)


def open_phone(
    directory: Path,
    *,
    policy: Policy | None = None,
    clock: FakeClock | None = None,
    adult: bool = True,
    forget: Callable[[], None] | None = None,
    keystore: Any = None,
    database_options: dict[str, Any] | None = None,
    **signal_options: Any,
) -> Phone:
    """Open the phone whose store is in ``directory``, made if there is none; the caller calls ``finish_pending``."""
    clock = FakeClock(NOW) if clock is None else clock
    keystore = FileKeyStore(directory / "keys") if keystore is None else keystore
    database = Database.open(directory / "store", keystore, clock, **(database_options or {}))
    streams = Streams(database, keystore, clock)
    phone: Phone
    consent = Consent(database, streams, lambda: phone.policy, clock, stopped=lambda: phone.stopped)
    signals = SignalStore(database, streams, clock, admits=consent.admits, **signal_options)
    egress, receipts = EgressLog(database, keystore, clock), Receipts(database, keystore, clock)

    def forgotten() -> None:
        phone.forgotten.append(clock.now())
        if forget is not None:
            forget()

    withdrawals = Withdrawals(
        database, streams, keystore, consent, egress=egress, receipts=receipts, clock_rng=clock, forget=forgotten
    )
    phone = Phone(
        directory,
        clock,
        make_policy() if policy is None else policy,
        keystore,
        database,
        Facts(database),
        streams,
        consent,
        signals,
        egress,
        receipts,
        PrivateParameters(database, keystore, clock),
        withdrawals,
        StoredExamples(consent, signals, lambda: "restaurant", lambda: INDEX, clock),
    )
    if adult and consent.owner().age is not Age.ADULT:
        consent.set_owner(Age.ADULT, False)
    return phone


def push_rows(phone: Phone, rows: list[Any]) -> list[Any]:
    """Push oracle rows, one push an app; return them with the numbers that the store's order gives them."""
    ordered = [one for app, _ in SOURCES for one in rows if one.app == app]
    for app, _ in SOURCES:
        phone.push(app, [(f"id-{one.row}", one.time, one.body) for one in ordered if one.app == app])
    return [replace(one, row=number) for number, one in enumerate(ordered)]


__all__ = ["Phone", "make_policy", "new_signal", "open_phone", "push_rows", "replace"]
