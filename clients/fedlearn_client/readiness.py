"""Whether a round may run now, and if not, why: one list of reasons for schedule, round and status screen."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

from fedlearn.errors import StatusRefused, TrustError
from fedlearn.policy.status import EVERYTHING, Status, require_live
from fedlearn.policy.times import parse_time
from fedlearn_client.hooks import ClockAndRng, Conditions, ExampleIterator, Thermal

if TYPE_CHECKING:
    from fedlearn.device.bundle import Bundle
    from fedlearn_client.consent import Consent
    from fedlearn_client.installed import InstalledCatalogue
    from fedlearn_client.store.facts import Facts

PAUSED: Final = "paused"
"""Name of the fact: b"1" while the phone maker paused training."""

MIN_BATTERY: Final = 0.3
COOL: Final = frozenset({Thermal.NONE, Thermal.LIGHT})


class Obstacle(StrEnum):
    """Why no round runs; the strings are stable and logged."""

    PAUSED = "paused"
    PERSONAL_OFF = "personal_off"
    NOT_CHARGING = "not_charging"
    IN_USE = "in_use"
    METERED = "metered"
    BATTERY = "battery_low"
    TOO_WARM = "too_warm"
    NO_BUNDLE = "no_bundle"
    NO_CATALOGUE = "no_catalogue"
    EXPIRED = "bundle_expired"
    STATUS_OLD = "status_old"
    STOPPED = "stopped"
    NO_GRANT = "no_grant"
    NO_EXAMPLES = "no_examples"
    ENOUGH_TODAY = "enough_today"
    WAITING = "waiting"
    RUNNING = "running"
    CONSENT_CHANGED = "consent_changed"
    NO_TIME = "no_time"
    STOPPING = "stopping"
    NOT_READY = "not_ready"
    NOT_ENROLLED = "not_enrolled"
    CREDENTIAL = "credential"
    REVOKED = "revoked"
    OLD_RUNTIME = "old_runtime"
    OLD_BUNDLE = "old_bundle"
    CLOCK = "clock"


WORDS: Final = {
    Obstacle.PAUSED: "training is paused",
    Obstacle.PERSONAL_OFF: "the owner switched personal recommendations off",
    Obstacle.NOT_CHARGING: "waits until the phone is charging",
    Obstacle.IN_USE: "waits until nobody uses the phone",
    Obstacle.METERED: "waits for a network that costs nothing",
    Obstacle.BATTERY: "waits until the battery is at 30 %",
    Obstacle.TOO_WARM: "waits until the phone is cooler",
    Obstacle.NO_BUNDLE: "no task bundle is installed",
    Obstacle.NO_CATALOGUE: "no catalogue is installed",
    Obstacle.EXPIRED: "the task bundle or its policy has expired",
    Obstacle.STATUS_OLD: "the signed status is over 24 hours old",
    Obstacle.STOPPED: "the signed status stopped it",
    Obstacle.NO_GRANT: "nothing is granted for it",
    Obstacle.NO_EXAMPLES: "there is nothing to learn from yet",
    Obstacle.ENOUGH_TODAY: "today's rounds are used up",
    Obstacle.WAITING: "waits before it asks again",
    Obstacle.RUNNING: "a round is running",
    Obstacle.CONSENT_CHANGED: "consent changed meanwhile",
    Obstacle.NO_TIME: "it took too long",
    Obstacle.STOPPING: "the runtime is stopping",
    Obstacle.NOT_READY: "not ready: the owner's settings or data",
    Obstacle.NOT_ENROLLED: "the gateway does not know this phone, and there is no credential to enrol with",
    Obstacle.CREDENTIAL: "the gateway refused this phone's credential",
    Obstacle.REVOKED: "the gateway has revoked this phone",
    Obstacle.OLD_RUNTIME: "the gateway speaks another version; update the runtime",
    Obstacle.OLD_BUNDLE: "another task bundle is trained now; install it",
    Obstacle.CLOCK: "this phone's clock is not the gateway's; set it",
}

OWNERS: Final = frozenset({Obstacle.PERSONAL_OFF, Obstacle.NO_GRANT, Obstacle.NO_EXAMPLES, Obstacle.CONSENT_CHANGED})
"""What the owner alone may know. Everybody else is told ``not_ready``."""

RENEWABLE: Final = frozenset({Obstacle.STATUS_OLD, Obstacle.STOPPED})
"""What a newer signed status may end; a check-in brings it."""


class Installed(Protocol):
    """What the daemon has installed, each verified when it came (``installed.Installed``)."""

    def bundles(self) -> Sequence[Bundle]:
        """Return the task bundles that have not expired."""
        ...

    def bundle_for(self, purpose: str) -> Bundle | None:
        """Return the task bundle of a training purpose, if it has not expired."""
        ...

    def catalogue(self) -> InstalledCatalogue:
        """Return the catalogue; raise TrustError where there is none that may be used."""
        ...

    def status(self) -> Status | None:
        """Return the newest signed status, however old."""
        ...

    def update_status(self, envelope: bytes) -> Status:
        """Verify a signed status and keep it, durably; raise TrustError for what is no newer one."""
        ...


class Readiness:
    """Judges the present moment; nothing is remembered."""

    def __init__(
        self,
        *,
        installed: Installed,
        consent: Consent,
        examples: ExampleIterator,
        conditions: Conditions,
        facts: Facts,
        clock_rng: ClockAndRng,
    ) -> None:
        self._installed = installed
        self._consent = consent
        self._examples = examples
        self._conditions = conditions
        self._facts = facts
        self._clock_rng = clock_rng

    def phone(self) -> Obstacle | None:
        """Return what stands against any round: pause, conditions, off switch."""
        return self.fitness() or self._off()

    def fitness(self) -> Obstacle | None:
        """Return what stands against any round and has nothing to do with the owner's will: pause, conditions."""
        if self._facts.get(PAUSED) == b"1":
            return Obstacle.PAUSED
        now = self._conditions.now()
        found = (
            (Obstacle.NOT_CHARGING, now.charging),
            (Obstacle.IN_USE, now.idle),
            (Obstacle.METERED, now.unmetered),
            # written so that a NaN is not fit
            (Obstacle.BATTERY, now.battery >= MIN_BATTERY),
            (Obstacle.TOO_WARM, now.thermal in COOL),
        )
        return next((obstacle for obstacle, fit in found if not fit), None)

    def trust(self, bundle: Bundle) -> Obstacle | None:
        """Return what stands against the bundle: its expiry, its policy's, the signed status."""
        now = self._clock_rng.now()
        policy = bundle.verified.policy
        if not (now < bundle.expires and now < parse_time(policy.expires, "policy.expires")):
            return Obstacle.EXPIRED
        status = self._installed.status()
        try:
            require_live(status, bundle.digests, now)
        except StatusRefused:
            return Obstacle.STATUS_OLD if status is None or _only_old(status, bundle) else Obstacle.STOPPED
        return None

    def grants(self, bundle: Bundle) -> Obstacle | None:
        """Return what stands against using the owner's data for the bundle's purpose and recipient."""
        plan = bundle.plan
        off = self._off()
        if off is None and not self._consent.has_any(plan.purpose, plan.recipient):
            return Obstacle.NO_GRANT
        return off

    def catalogue(self) -> Obstacle | None:
        """Return what stands against using a catalogue: there is none, or the status stopped it."""
        try:
            self._installed.catalogue()
        except StatusRefused:
            return Obstacle.STOPPED
        except TrustError:
            return Obstacle.NO_CATALOGUE
        return None

    def material(self, bundle: Bundle) -> Obstacle | None:
        """Return what stands against a training where there is a catalogue: no example."""
        plan = bundle.plan
        if self.catalogue() is not None:
            return None
        found = next(iter(self._examples.occasions(plan.purpose, plan.recipient, 1)), None)
        return Obstacle.NO_EXAMPLES if found is None else None

    def _off(self) -> Obstacle | None:
        return Obstacle.PERSONAL_OFF if self._consent.owner().personal_off else None

    def going_on(self, bundle: Bundle) -> Obstacle | None:
        """Return what stands against going on with a round that has begun; asked each second."""
        return self.phone() or self.trust(bundle) or self.grants(bundle)

    def beginning(self, bundle: Bundle) -> Obstacle | None:
        """Return what stands against a check-in. A status that is old or stops the bundle does not: it may be renewed.

        So the request that renews a status is the check-in itself: it is made under the same grant, has the same
        fields and the same size, and tells the gateway nothing more. A phone without a grant makes none.

        The owner's own obstacles come last: what others are told first does not depend on them (``for_others``).
        """
        return (
            self.fitness()
            or _unless_renewable(self.trust(bundle))
            or _unless_renewable(self.catalogue())
            or self.grants(bundle)
            or self.material(bundle)
        )


def for_others(obstacle: Obstacle | None) -> Obstacle | None:
    """Return what anybody but the owner is told of ``obstacle``."""
    return Obstacle.NOT_READY if obstacle in OWNERS else obstacle


def outcome_for_others(words: str) -> str:
    """Return what anybody but the owner is told of a round's outcome: ``refused: no_grant`` is ``refused: not_ready``.

    Nor does it tell whether the owner's reason came before the round or while it ran.
    """
    reason = words.partition(": ")[2]
    return f"refused: {Obstacle.NOT_READY}" if reason in OWNERS else words


def _unless_renewable(obstacle: Obstacle | None) -> Obstacle | None:
    return None if obstacle in RENEWABLE else obstacle


def _only_old(status: Status, bundle: Bundle) -> bool:
    """Whether the status would let the bundle pass if it were new."""
    return {EVERYTHING, *bundle.digests}.isdisjoint((*status.stopped, *status.revoked))
