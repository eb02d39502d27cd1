"""``Runtime``: the phone maker's system processes install, pause, and ask how things are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from fedlearn.errors import SignalRefused
from fedlearn.policy.times import parse_time
from fedlearn.proto import device_pb2 as pb
from fedlearn_client import __version__
from fedlearn_client.conditions import Override, StricterConditions
from fedlearn_client.hooks import Caller, Thermal
from fedlearn_client.installed import Installed
from fedlearn_client.readiness import outcome_for_others
from fedlearn_client.reading import Reading
from fedlearn_client.services import checks
from fedlearn_client.services.wire import milliseconds
from fedlearn_client.store.database import Database
from fedlearn_client.store.signals import SignalStore

READY = "ready"


class Rounds(Protocol):
    """The schedule, as far as this service needs it."""

    def why_not(self) -> str | None:
        """Return why no round runs now, or None."""
        ...

    def train_now(self, purpose: str) -> str:
        """Run one round now, if everything allows it, and return its outcome."""
        ...

    @property
    def paused(self) -> bool:
        """Whether training is paused."""
        ...

    def pause(self, paused: bool) -> None:
        """Pause, or go on; durable."""
        ...

    def wake(self) -> None:
        """Look again whether a round may run."""
        ...


@dataclass(frozen=True, slots=True)
class RuntimeServicer:
    """Checks requests and hands them on.

    Args:
        installed: bundles, catalogue, status.
        reading: installs, since a bundle must run on this phone.
        conditions: with what a system process declared.
        rounds: the schedule.
        database: for the time of the last round.
        signals: how many are kept.
        changed: called after whatever changes policy, catalogue or status.
    """

    installed: Installed
    reading: Reading
    conditions: StricterConditions
    rounds: Rounds
    database: Database
    signals: SignalStore
    changed: Callable[[], None]

    def status(self, caller: Caller, request: pb.StatusRequest) -> pb.StatusReply:  # noqa: ARG002
        """Say how things are."""
        snapshot = self.installed.snapshot()
        status = snapshot.status
        last = self.database.rows("SELECT max(time) FROM runs")[0][0]
        return pb.StatusReply(
            version=__version__,
            paused=self.rounds.paused,
            bundles=[
                pb.InstalledBundle(
                    purpose=bundle.plan.purpose,
                    digest=bundle.digest,
                    expires_ms=milliseconds(bundle.expires),
                    population=bundle.plan.population,
                    model=bundle.plan.model,
                )
                for bundle in snapshot.bundles
            ],
            catalogue="" if snapshot.catalogue is None else snapshot.catalogue.digest,
            status_version=0 if status is None else status.version,
            status_time_ms=0 if status is None else milliseconds(parse_time(status.issued, "status.issued")),
            status_fresh=self.installed.status_is_fresh(),
            next_round=self.rounds.why_not() or READY,
            signals=self.signals.count(),
            last_round_ms=0 if last is None else milliseconds(last),
        )

    def set_conditions(self, caller: Caller, request: pb.ConditionsRequest) -> pb.ConditionsReply:  # noqa: ARG002
        """Declare conditions, or clear what was declared; answer with what holds now."""
        self.conditions.override(Override() if request.clear else _override(request))
        self.rounds.wake()
        now = self.conditions.now()
        return pb.ConditionsReply(
            charging=now.charging, idle=now.idle, unmetered=now.unmetered, battery=now.battery, thermal=now.thermal
        )

    def pause(self, caller: Caller, request: pb.PauseRequest) -> pb.PauseReply:  # noqa: ARG002
        """Pause training and uploads, or go on; survives a restart."""
        self.rounds.pause(request.paused)
        return pb.PauseReply()

    def train_now(self, caller: Caller, request: pb.TrainNowRequest) -> pb.TrainNowReply:  # noqa: ARG002
        """Run one round now, if consent, policy, budget and conditions allow it."""
        purpose = checks.short_name(request.purpose, "purpose")
        if self.installed.bundle_for(purpose) is None:
            raise SignalRefused("purpose: no live task bundle is installed for it; Status lists those that are.")
        return pb.TrainNowReply(outcome=outcome_for_others(self.rounds.train_now(purpose)))

    def install(self, caller: Caller, request: pb.InstallRequest) -> pb.InstallReply:  # noqa: ARG002
        """Install a task bundle or a catalogue bundle."""
        kind = request.WhichOneof("bundle")
        if kind is None:
            raise SignalRefused("bundle: must hold task_bundle or catalogue_bundle.")
        if kind == "task_bundle":
            digest = self.reading.install_bundle(request.task_bundle).digest
        else:
            digest = self.reading.install_catalogue(request.catalogue_bundle).digest
        self.changed()
        return pb.InstallReply(digest=digest)

    def update_status(self, caller: Caller, request: pb.UpdateStatusRequest) -> pb.UpdateStatusReply:  # noqa: ARG002
        """Take in a newer signed status."""
        version = self.installed.update_status(request.envelope).version
        self.changed()
        return pb.UpdateStatusReply(version=version)


def _override(request: pb.ConditionsRequest) -> Override:
    battery = request.battery if request.HasField("battery") else None
    if battery is not None and not (math.isfinite(battery) and 0.0 <= battery <= 1.0):
        raise SignalRefused("battery: must be 0 to 1.")
    thermal = None
    if request.HasField("thermal"):
        if request.thermal not in set(Thermal):
            raise SignalRefused(f"thermal: must be one of {', '.join(Thermal)}.")
        thermal = Thermal(request.thermal)
    return Override(
        charging=request.charging if request.HasField("charging") else None,
        idle=request.idle if request.HasField("idle") else None,
        unmetered=request.unmetered if request.HasField("unmetered") else None,
        battery=battery,
        thermal=thermal,
    )
