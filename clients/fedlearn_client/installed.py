"""What is installed: task bundles, the catalogue, the policy in force, the newest signed status.

Everything lies in the store, so that an installation and the versions that it raises are one transaction, and every
task bundle is verified again at each start. One policy is in force, that of the bundle installed last; bundles that
were approved under another one rest until they are approved under this one too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final

from fedlearn.device.archive import read_archive
from fedlearn.device.bundle import Bundle, open_bundle
from fedlearn.device.catalogue_bundle import CATALOGUE
from fedlearn.device.plan_codec import MOST_CATALOGUE_BYTES
from fedlearn.errors import BundleRefused, StatusRefused, TrustError
from fedlearn.policy.canonical import sha256_hex
from fedlearn.policy.document import Policy
from fedlearn.policy.dsse import STATUS_TYPE, open_envelope
from fedlearn.policy.roster import Roster, roster_bytes
from fedlearn.policy.status import EVERYTHING, Status, open_status, require_live, status_bytes, status_from_bytes
from fedlearn_client import __version__
from fedlearn_client.catalogue_check import Checked, check_catalogue
from fedlearn_client.hooks import AuditSink, ClockAndRng
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts

if TYPE_CHECKING:
    from fedlearn_client.store.opening import Connection

_BUNDLE: Final = "bundle:"  # + training purpose
_CATALOGUE: Final = "catalogue"
_ROOM: Final = 2**18  # of an archive around catalogue.json
_CHECKED: Final = "catalogue_checked"  # JSON: what was found out about it, and for which specs
_STATUS: Final = "status"
_STATUS_SEEN: Final = "status_seen"  # what it says, whoever may sign statuses now
_LONG_AGO: Final = "1970-01-01T00:00:00Z"
_ROSTER: Final = "roster"
_IN_FORCE: Final = "policy_in_force"
_SEEN: Final = (
    "versions_seen"  # JSON: "policy:<population>", "catalogue:<name>", "roster", "status" -> [version, digest]
)


@dataclass(frozen=True, slots=True)
class InstalledCatalogue:
    """The catalogue in use. Its bytes stay in the store until somebody asks: they can be megabytes.

    Args:
        checked: what is known of it.
        facts: where it lies.
    """

    checked: Checked
    facts: Facts = field(repr=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the bundle."""
        return self.checked.digest

    @property
    def expires(self) -> float:
        """Seconds since the Unix epoch."""
        return self.checked.expires

    @property
    def digests(self) -> tuple[str, ...]:
        """What a status may stop or revoke."""
        return (self.checked.catalogue_digest, self.checked.contents, self.checked.digest)

    @property
    def catalogue_bytes(self) -> bytes:
        """``catalogue.json``; raises BundleRefused where another catalogue has taken its place since."""
        data = self.facts.get(_CATALOGUE) or b""
        if sha256_hex(data) != self.checked.digest:
            raise BundleRefused("catalogue: was replaced meanwhile; try again.")
        return read_archive(data, MOST_CATALOGUE_BYTES + _ROOM)[CATALOGUE]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is installed at one moment.

    Args:
        bundles: that were verified and are of the policy in force.
        policy_digest: of the policy in force, "".
        catalogue: None where there is none, or it does not fit.
        status: newest, None where none was seen; may be stale.
    """

    bundles: tuple[Bundle, ...] = field(default=(), repr=False)
    policy_digest: str = ""
    catalogue: InstalledCatalogue | None = field(default=None, repr=False)
    status: Status | None = field(default=None, repr=False)


class Installed:
    """Keeps what is installed. Safe to use from several threads; readers see one snapshot.

    Args:
        database: the open store.
        facts: in it.
        clock_rng: expiries are checked against its time, at each use.
        audit: hears what could not be used at the start.
        root_keys: the phone maker's root keys, in hexadecimal.
        runtime: version of this runtime.
    """

    def __init__(
        self,
        database: Database,
        facts: Facts,
        clock_rng: ClockAndRng,
        audit: AuditSink,
        *,
        root_keys: Collection[str],
        runtime: str = __version__,
    ) -> None:
        self._database = database
        self._facts = facts
        self._clock_rng = clock_rng
        self._audit = audit
        self._root_keys = tuple(root_keys)
        self._runtime = runtime
        self._lock = threading.Lock()  # of those who install
        self._now = Snapshot()

    # -- at the start --------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Read back what was installed; what does not pass any more is reported and left out.

        Raises:
            StoreFailed: the store cannot be read.
        """
        in_force = (self._facts.get(_IN_FORCE) or b"").decode()
        bundles = []
        for name, data in self._database.rows("SELECT name, value FROM facts WHERE name LIKE ?", (f"{_BUNDLE}%",)):
            bundle = self._reopened(str(name), bytes(data))
            if bundle is not None and bundle.verified.digest == in_force:
                bundles.append(bundle)
        status = self._read_status(bundles[0].verified.roster) if bundles else None
        catalogue = self._read_catalogue(bundles) if bundles else None
        self._now = Snapshot(tuple(bundles), in_force, catalogue, status)  # at once: a status is never missing

    def _reopened(self, name: str, data: bytes) -> Bundle | None:
        try:
            return self._open_bundle(data)
        except TrustError as error:
            self._audit.record("bundle_left_out", {"code": error.code, "why": str(error), "name": name})
            return None

    def _read_status(self, roster: Roster) -> Status | None:
        """Return the newest status. One that the roster's keys did not sign still stops what it names, and is stale."""
        envelope = self._facts.get(_STATUS)
        if envelope is None:
            return None
        try:
            return status_from_bytes(open_envelope(envelope, STATUS_TYPE, roster.status_keys, 1, "status"))
        except TrustError as error:
            self._audit.record("status_not_of_this_roster", {"code": error.code})
            seen = status_from_bytes(self._facts.get(_STATUS_SEEN) or b"")  # verified when it came
            return replace(seen, issued=_LONG_AGO)

    def _read_catalogue(self, bundles: Collection[Bundle]) -> InstalledCatalogue | None:
        """Return the installed catalogue; what was found out at its installation is not found out again.

        That lies in the store, which nobody without its key can write; and rosters and plans are the same, or the
        catalogue is checked anew.
        """
        data = self._facts.get(_CATALOGUE)
        if data is None:
            return None
        try:
            known = json.loads(self._facts.get(_CHECKED) or b"{}")
            if known.get("for") == _conditions_of(bundles) and known["checked"]["digest"] == sha256_hex(data):
                checked = Checked(**known["checked"])
            else:
                checked = self._check_catalogue(data, bundles)
                self._facts.set(_CHECKED, _checked_fact(checked, bundles))
        except TrustError as error:
            self._audit.record("catalogue_left_out", {"code": error.code, "why": str(error)})
            return None
        return InstalledCatalogue(checked, self._facts)

    # -- what others ask -----------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return everything, expired or stopped things too."""
        return self._now

    def policy(self) -> Policy | None:
        """Return the policy in force, or None where no live bundle has one; ``stopped`` says whether it may be used."""
        return next((bundle.verified.policy for bundle in self._live()), None)

    def stopped(self) -> bool:
        """Whether the newest status, be it stale or not, stops or revokes the policy in force, or stops everything.

        A status that is merely stale changes nothing here: it is a training that needs a fresh one.
        """
        return _names(self._now.status, (self._now.policy_digest,))

    def bundles(self) -> tuple[Bundle, ...]:
        """Return the bundles that have not expired."""
        return self._live()

    def bundle_for(self, purpose: str) -> Bundle | None:
        """Return the bundle that trains for ``purpose``, if it has not expired; whether it may run, a status says."""
        return next((bundle for bundle in self._live() if bundle.plan.purpose == purpose), None)

    def ranker_for(self, purpose: str) -> Bundle:
        """Return the bundle that serves a recommend purpose.

        A ranking leaves nothing behind and releases nothing to an operator, so a stale status does not stop it; a
        status that stops or revokes the bundle does, however old.

        Raises:
            BundleRefused: there is none, or it has expired.
            StatusRefused: it is stopped or revoked.
        """
        for bundle in self._live():
            if bundle.plan.serves == purpose:
                _require_not_named(self._now.status, bundle.digests)
                return bundle
        raise BundleRefused("purpose: no installed bundle serves it now; install one.")

    def catalogue(self) -> InstalledCatalogue:
        """Return the catalogue.

        Raises:
            BundleRefused: there is none, or it has expired.
            StatusRefused: it is stopped or revoked.
        """
        found = self._now.catalogue
        if found is None or not self._clock_rng.now() < found.expires:
            raise BundleRefused("catalogue: none is installed, or it has expired; install one.")
        _require_not_named(self._now.status, found.digests)
        return found

    def domain(self) -> str:
        """Return what the installed plans rank, "" where there is none."""
        return next((bundle.plan.catalogue.domain for bundle in self._live()), "")

    def status(self) -> Status | None:
        """Return the newest status that was seen; it may be stale."""
        return self._now.status

    def status_is_fresh(self) -> bool:
        """Whether a training could go by the status now."""
        try:
            require_live(self._now.status, (), self._clock_rng.now())
        except StatusRefused:
            return False
        return True

    # -- what changes it -----------------------------------------------------------------------------------------

    def check_bundle(self, data: bytes) -> Bundle:
        """Return a task bundle that may be installed now; nothing is changed.

        Raises:
            TrustError: it may not.
        """
        bundle = self._open_bundle(data)
        policy = bundle.verified.policy
        # by population, not by name: a policy under another name is no way back to an older one
        self._require_not_older(f"policy:{policy.population.id}", policy.version, bundle.verified.digest)
        _require_not_named(self._now.status, bundle.digests)
        return bundle

    def install_bundle(self, data: bytes) -> Bundle:
        """Install a task bundle in place of the one for its purpose, durably; its policy comes into force.

        Raises:
            TrustError: a check failed; nothing was changed.
            StoreFailed: nothing was changed.
        """
        with self._lock:
            bundle = self.check_bundle(data)
            policy, roster = bundle.verified.policy, bundle.verified.roster
            with self._database.transaction() as connection:
                self._facts.set(f"{_BUNDLE}{bundle.plan.purpose}", data, connection)
                self._facts.set(_IN_FORCE, bundle.verified.digest.encode(), connection)
                self._see(_ROSTER, roster.version, _digest_of(roster), connection)
                self._see(f"policy:{policy.population.id}", policy.version, bundle.verified.digest, connection)
            self.load()
        return bundle

    def install_catalogue(self, data: bytes, load: Callable[[bytes], None]) -> InstalledCatalogue:
        """Install a catalogue bundle, durably.

        Args:
            data: the bundle.
            load: called with ``catalogue.json`` after every other check; raises TrustError where it cannot be used.

        Raises:
            TrustError: a check failed; nothing was changed.
            StoreFailed: nothing was changed.
        """
        with self._lock:
            live = self._live()
            if not live:
                raise BundleRefused("catalogue_bundle: install the task bundle it is for first.")
            checked = self._check_catalogue(data, live)
            catalogue = InstalledCatalogue(checked, self._facts)
            _require_not_named(self._now.status, catalogue.digests)
            load(read_archive(data, MOST_CATALOGUE_BYTES + _ROOM)[CATALOGUE])
            name = live[0].plan.catalogue.name
            with self._database.transaction() as connection:
                self._facts.set(_CATALOGUE, data, connection)
                self._facts.set(_CHECKED, _checked_fact(checked, live), connection)
                self._see(f"catalogue:{name}", checked.version, checked.contents, connection)
            self._now = Snapshot(self._now.bundles, self._now.policy_digest, catalogue, self._now.status)
        return catalogue

    def update_status(self, envelope: bytes) -> Status:
        """Take in a newer signed status, durably.

        Raises:
            TrustError: unsigned, stale, older than one seen before, or no bundle says who may sign it.
            StoreFailed: nothing was changed.
        """
        with self._lock:
            live = self._live()
            if not live:
                raise StatusRefused("envelope: install a task bundle first; its roster says who signs a status.")
            roster = max((bundle.verified.roster for bundle in live), key=lambda one: one.version)
            version, digest = self._seen(_STATUS)
            status = open_status(envelope, roster, self._clock_rng.now(), version, seen_digest=digest)
            with self._database.transaction() as connection:
                self._facts.set(_STATUS, envelope, connection)
                self._facts.set(_STATUS_SEEN, status_bytes(status), connection)
                self._see(_STATUS, status.version, status.digest, connection)
            self._now = Snapshot(self._now.bundles, self._now.policy_digest, self._now.catalogue, status)
        return status

    # -- inside --------------------------------------------------------------------------------------------------

    def _live(self) -> tuple[Bundle, ...]:
        now = self._clock_rng.now()
        return tuple(bundle for bundle in self._now.bundles if now < bundle.expires)

    def _open_bundle(self, data: bytes) -> Bundle:
        version, digest = self._seen(_ROSTER)
        bundle = open_bundle(
            data,
            root_keys=self._root_keys,
            now=self._clock_rng.now(),
            runtime=self._runtime,
            seen_roster=version,
        )
        if bundle.verified.roster.version == version and _digest_of(bundle.verified.roster) != digest:
            raise BundleRefused(f"roster.version={version}: was seen before with another content; raise it.")
        return bundle

    def _check_catalogue(self, data: bytes, bundles: Collection[Bundle]) -> Checked:
        """Check it for every plan: there is one catalogue, and each must be able to rank it."""
        now = self._clock_rng.now()
        checked = []
        for roster, spec in {(bundle.verified.roster, bundle.plan.catalogue) for bundle in bundles}:
            version, contents = self._seen(f"catalogue:{spec.name}")
            one = check_catalogue(data, roster=roster, spec=spec, now=now, seen_version=version)
            if one.version == version and one.contents != contents:  # further signatures change no content
                raise BundleRefused(f"manifest.version={version}: was installed before with another content; raise it.")
            checked.append(one)
        return min(checked, key=lambda one: one.expires)

    def _seen(self, name: str) -> tuple[int, str]:
        version, digest = json.loads(self._facts.get(_SEEN) or b"{}").get(name, (0, ""))
        return int(version), str(digest)

    def _see(self, name: str, version: int, digest: str, connection: Connection) -> None:
        seen = json.loads(self._facts.get(_SEEN) or b"{}")
        self._facts.set(_SEEN, json.dumps(seen | {name: [version, digest]}).encode(), connection)

    def _require_not_older(self, name: str, version: int, digest: str) -> None:
        seen_version, seen_digest = self._seen(name)
        if version < seen_version:
            raise BundleRefused(f"policy.version={version}: version {seen_version} was installed before.")
        if version == seen_version and digest != seen_digest:
            raise BundleRefused(f"policy.version={version}: was installed before with another content; raise it.")


def _require_not_named(status: Status | None, digests: Collection[str]) -> None:
    """Refuse what the newest status stops or revokes, be it stale or not."""
    if status is None:
        return
    if EVERYTHING in status.stopped:
        raise StatusRefused(f"status.version={status.version}: everything is stopped.")
    if _names(status, digests):
        raise StatusRefused(f"status.version={status.version}: this is stopped or revoked.")


def _names(status: Status | None, digests: Collection[str]) -> bool:
    """Whether the newest status stops or revokes one of these, be it stale or not."""
    if status is None:
        return False
    return EVERYTHING in status.stopped or not set(digests).isdisjoint((*status.stopped, *status.revoked))


def _digest_of(roster: Roster) -> str:
    return sha256_hex(roster_bytes(roster))


def _conditions_of(bundles: Collection[Bundle]) -> list[str]:
    """Name the rosters and specs that a catalogue is checked for."""
    return sorted({f"{bundle.verified.roster}/{bundle.plan.catalogue}" for bundle in bundles})


def _checked_fact(checked: Checked, bundles: Collection[Bundle]) -> bytes:
    return json.dumps({"for": _conditions_of(bundles), "checked": asdict(checked)}).encode()
