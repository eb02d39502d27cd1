"""The daemon: opens the store, finishes what a crash left, and serves until it is told to stop. ::

    app -> relay -> door -> servicers -> consent, store, worker          (relay, services)
    schedule -> round -> guard -> worker -> ledger -> egress -> transport    (scheduler, uplink)

Everything is made here, once, and handed to those who use it. Nothing here imports numpy; what needs it runs in the
sandboxed worker.
"""

from __future__ import annotations

from fedlearn_client import lean  # noqa: F401 - before everything else

# isort: split

import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedlearn.errors import StoreFailed
from fedlearn_client import __version__
from fedlearn_client.buckets import Buckets
from fedlearn_client.calls import GatewayCalls
from fedlearn_client.conditions import StricterConditions
from fedlearn_client.consent import Consent
from fedlearn_client.egress import EgressLog, keep_s_of
from fedlearn_client.examples import StoredExamples
from fedlearn_client.guard import Guard
from fedlearn_client.hooks import (
    Attestation,
    AuditSink,
    CallerIdentity,
    ClockAndRng,
    Conditions,
    ExampleIterator,
    KeyStore,
    Transport,
)
from fedlearn_client.installed import Installed
from fedlearn_client.intake import Intake
from fedlearn_client.memory import give_back, keep_small, leave_no_dump
from fedlearn_client.participation import Participations
from fedlearn_client.pins import LedgerPins
from fedlearn_client.readiness import Readiness
from fedlearn_client.reading import Reading
from fedlearn_client.receipts import Receipts
from fedlearn_client.recommend import RankingMemory, Recommender
from fedlearn_client.relay import Relay, RelayLimits, backend_path
from fedlearn_client.rooms import Rooms
from fedlearn_client.runs import RunLog
from fedlearn_client.scheduler import Scheduler
from fedlearn_client.services.audit import AuditServicer
from fedlearn_client.services.consent import ConsentServicer
from fedlearn_client.services.door import Door, Handler, Server, Servicers
from fedlearn_client.services.recommend import RecommendServicer
from fedlearn_client.services.runtime import RuntimeServicer
from fedlearn_client.services.signals import SignalsServicer
from fedlearn_client.services.table import handlers
from fedlearn_client.settings import Settings
from fedlearn_client.shared_anchor import SharedAnchor
from fedlearn_client.standing import Standing, uplink_of
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts
from fedlearn_client.store.private_parameters import PrivateParameters
from fedlearn_client.store.signals import SignalStore
from fedlearn_client.store.streams import Streams
from fedlearn_client.uplink import LocalRound
from fedlearn_client.withdrawal import Withdrawals
from fedlearn_client.workers import Workers

if TYPE_CHECKING:
    from fedlearn_client.services.numerics import NumericsHandler

GRACE_S: Final = 5.0
TIDY_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Hooks:
    """What a phone maker brings. ``linux_hooks`` has the defaults.

    Args:
        examples: None: from the daemon's own store.
    """

    conditions: Conditions
    keystore: KeyStore
    attestation: Attestation
    callers: CallerIdentity
    transport: Transport
    clock_rng: ClockAndRng
    audit: AuditSink
    examples: ExampleIterator | None = None


def linux_hooks(settings: Settings) -> Hooks:
    """Return the defaults for a Linux phone; its uplink is the gateway of the settings, where they name one.

    Raises:
        ConfigError: the callers file or the gateway's CA cannot be used.
        StoreFailed: the key directory is not this user's own.
    """
    from fedlearn_client.linux.attestation import NoAttestation  # noqa: PLC0415 - a port brings its own
    from fedlearn_client.linux.audit import JsonLines  # noqa: PLC0415
    from fedlearn_client.linux.callers import CallersFile  # noqa: PLC0415
    from fedlearn_client.linux.clock import LinuxClock  # noqa: PLC0415
    from fedlearn_client.linux.conditions import LinuxConditions  # noqa: PLC0415
    from fedlearn_client.linux.keystore import FileKeyStore  # noqa: PLC0415

    callers = CallersFile(settings.callers, settings.socket)
    make_private(settings.directory)
    clock = LinuxClock()
    return Hooks(
        conditions=LinuxConditions(unmetered=frozenset(settings.unmetered)),
        keystore=FileKeyStore(settings.key_directory, random_bytes=clock.random_bytes),
        attestation=NoAttestation(),
        callers=callers,
        transport=_transport(settings, clock),
        clock_rng=clock,
        audit=JsonLines(settings.log_file, clock),
    )


def _transport(settings: Settings, clock: ClockAndRng) -> Transport:
    if settings.gateway_ca is None:
        from fedlearn_client.transport import NoTransport  # noqa: PLC0415

        return NoTransport()
    from fedlearn_client.network import GatewayTransport, read_ca  # noqa: PLC0415

    return GatewayTransport(settings.gateway, read_ca(settings.gateway_ca), random_bytes=clock.random_bytes)


def make_private(directory: Path) -> None:
    """Make a directory that this user alone can enter, if there is none; raise StoreFailed where one is open."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
    except OSError as error:
        raise StoreFailed(f"directory={directory}: cannot be made or entered ({error.strerror}).") from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StoreFailed(f"directory={directory}: must be this user's own with mode 0700.")


class Daemon:
    """One runtime. ``start`` once, ``stop`` once.

    Args:
        settings: where things lie and how much is allowed.
        hooks: what the phone maker brings.
        also: further sockets, for a ``CallerIdentity`` that tells callers by the socket they use.
    """

    def __init__(self, settings: Settings, hooks: Hooks, also: tuple[Path, ...] = ()) -> None:
        self._settings = settings
        self._hooks = hooks
        self._sockets = (settings.socket, *also)
        self._life = ExitStack()
        self._ending = threading.Event()

    def start(self) -> None:
        """Open the store, finish what was left, and serve.

        Raises:
            ConfigError: the socket cannot be served, or the credential cannot be read; nothing was opened.
            StoreFailed: the store cannot be opened, or a destruction that had begun cannot be finished.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Take no more calls, end those under way and the round, and close the store. Does nothing the second time."""
        self._ending.set()
        self._life.close()

    def _start(self) -> None:
        settings, hooks = self._settings, self._hooks
        make_private(settings.directory)
        limits = RelayLimits(settings.connections, settings.connections_per_uid)
        relays = [Relay(public, limits, hooks.clock_rng.monotonic) for public in self._sockets]
        for relay in relays:
            self._life.callback(relay.stop)
            relay.prepare()
        parts = _Parts(settings, hooks, self._life)
        parts.consent.policy_changed()  # finishes destructions, and begins those that a crash kept from beginning
        door = Door(hooks.callers, hooks.audit, Servicers(parts.handlers(), parts.consent))
        self._life.callback(door.close)
        self._life.callback(parts.workers.close)  # a training under way ends, so that the door can close
        numerics = self._numerics()
        for public, relay in zip(self._sockets, relays, strict=True):
            server = Server(door, f"unix:{backend_path(public)}", numerics)
            self._life.callback(server.stop, GRACE_S)
            server.start()
            relay.start()
            self._life.callback(relay.refuse_new)
        if settings.train:
            parts.scheduler.start()
        threading.Thread(target=self._tidy, args=(parts.signals, parts.egress), name="tidy", daemon=True).start()
        give_back()
        hooks.audit.record("started", {"version": __version__, "bundles": len(parts.installed.bundles())})

    def _numerics(self) -> tuple[NumericsHandler, ...]:
        """Return what answers the conformance kit in a test build, by a worker that no owner's data reaches."""
        if not self._settings.conformance:
            return ()
        from fedlearn_client.services.numerics import NumericsHandler  # noqa: PLC0415 - in no other build

        workers = Workers(self._hooks.clock_rng, allow_weak_sandbox=self._settings.allow_weak_sandbox, numerics=True)
        handler = NumericsHandler(workers)
        self._life.callback(handler.close)
        self._life.callback(workers.close)
        self._hooks.audit.record("conformance", {"numerics": True})
        return (handler,)

    def _tidy(self, signals: SignalStore, egress: EgressLog) -> None:
        """Delete what has expired, each hour; what has expired is not used before it is deleted either."""
        while not self._ending.is_set():
            try:
                signals.expire(self._hooks.clock_rng.now())
                egress.forget_old(self._hooks.clock_rng.now())
            except StoreFailed as error:
                self._hooks.audit.record("expiry_failed", {"code": error.code})
            give_back()
            self._ending.wait(TIDY_S)


class _Parts:
    """Everything that is made once, in the order in which one needs the other."""

    def __init__(self, settings: Settings, hooks: Hooks, life: ExitStack) -> None:
        self._settings = settings
        self._hooks = hooks
        clock_rng, keystore = hooks.clock_rng, hooks.keystore
        self._uplink = uplink_of(settings)
        self.database = Database.open(settings.directory, keystore, clock_rng, max_bytes=settings.store_max_bytes)
        life.callback(self.database.close)
        self.facts = Facts(self.database)
        self.streams = Streams(self.database, keystore, clock_rng)
        self.installed = Installed(self.database, self.facts, clock_rng, hooks.audit, root_keys=settings.root_keys)
        self.installed.load()
        self.consent = Consent(
            self.database, self.streams, self.installed.policy, clock_rng, stopped=self.installed.stopped
        )
        self.signals = SignalStore(self.database, self.streams, clock_rng, admits=self.consent.admits)
        life.callback(self.signals.close)
        self.workers = Workers(clock_rng, allow_weak_sandbox=settings.allow_weak_sandbox)
        life.callback(self.workers.close)
        self.reading = Reading(self.workers, self.installed, self.facts)
        policy = self.installed.policy
        self.egress = EgressLog(self.database, keystore, clock_rng, keep_s=lambda: keep_s_of(policy()))
        self.receipts = Receipts(self.database, keystore, clock_rng)
        self.memory = RankingMemory()
        self.withdrawals = Withdrawals(
            self.database,
            self.streams,
            keystore,
            self.consent,
            egress=self.egress,
            receipts=self.receipts,
            clock_rng=clock_rng,
            forget=self._forget,
        )
        self.examples = hooks.examples or StoredExamples(
            self.consent, self.signals, self.installed.domain, self.reading.index, clock_rng
        )
        self.conditions = StricterConditions(hooks.conditions)
        anchor = SharedAnchor(keystore)
        self.participations = Participations(self.database, anchor.history, clock_rng)
        self.pins = LedgerPins(self.facts, anchor.pins, hooks.audit)
        self.runs = RunLog(self.database, clock_rng)
        self.scheduler = self._scheduler()
        life.callback(self.scheduler.stop)

    def handlers(self) -> dict[str, Handler]:
        """Return the servicers."""
        settings, clock_rng, policy = self._settings, self._hooks.clock_rng, self.installed.policy
        intake = Intake(self.consent, self.signals, self.reading, policy)
        recommender = Recommender(
            policy=policy,
            ranker_for=self.installed.ranker_for,
            consent=self.consent,
            examples=self.examples,
            ranker=self.reading,
            streams=self.streams,
            intake=intake,
            buckets=Buckets(settings.recommend_rate, settings.recommend_burst, clock_rng.monotonic),
            memory=self.memory,
            clock_rng=clock_rng,
        )
        return handlers(
            SignalsServicer(self.streams, intake, self.withdrawals, policy, clock_rng),
            RecommendServicer(recommender),
            ConsentServicer(self.consent, self.scheduler.wake),
            AuditServicer(self.runs, self.participations, self.egress, self.receipts, policy),
            RuntimeServicer(
                installed=self.installed,
                reading=self.reading,
                conditions=self.conditions,
                rounds=self.scheduler,
                database=self.database,
                signals=self.signals,
                changed=self._installed_changed,
            ),
            control=Buckets(settings.control_rate, settings.control_burst, clock_rng.monotonic),
        )

    def _forget(self) -> None:
        """What holds derived data in memory forgets it."""
        self.memory.forget()
        self.workers.forget()

    def _installed_changed(self) -> None:
        self.consent.policy_changed()
        self.scheduler.wake()

    def _calls(self) -> GatewayCalls:
        hooks = self._hooks
        return GatewayCalls(
            hooks.transport,
            hooks.attestation,
            self.egress,
            hooks.clock_rng,
            keystore=hooks.keystore,
            credential=self._uplink.credential,
        )

    def _scheduler(self) -> Scheduler:
        clock_rng, hooks = self._hooks.clock_rng, self._hooks
        readiness = Readiness(
            installed=self.installed,
            consent=self.consent,
            examples=self.examples,
            conditions=self.conditions,
            facts=self.facts,
            clock_rng=clock_rng,
        )
        rooms = Rooms(
            database=self.database,
            consent=self.consent,
            installed=self.installed,
            readiness=readiness,
            examples=self.examples,
            guard=Guard(self.participations, self.database, clock_rng),
            participations=self.participations,
            workers=self.workers,
            private=PrivateParameters(self.database, hooks.keystore, clock_rng),
            calls=self._calls(),
            standing=Standing(self.facts, clock_rng, self._uplink.mark),
            pins=self.pins,
            egress=self.egress,
            runs=self.runs,
            clock_rng=clock_rng,
            audit=hooks.audit,
        )
        return Scheduler(rooms, LocalRound(rooms, egress_hold_s=self._settings.egress_hold_s), self.facts)


def serve(settings: Settings, hooks: Hooks, serving: Callable[[], None] | None = None) -> None:
    """Run a daemon until SIGTERM or SIGINT; to be called in the main thread.

    Args:
        settings: where things lie and how much is allowed.
        hooks: what the phone maker brings.
        serving: called once calls are answered.

    Raises:
        ConfigError, StoreFailed: it cannot start.
    """
    keep_small()
    leave_no_dump()
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    daemon = Daemon(settings, hooks)
    daemon.start()
    try:
        if serving is not None:
            serving()
        told.wait()
    finally:
        daemon.stop()
