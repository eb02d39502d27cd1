"""Three keys: the app registered the stream, the owner granted the use, the signed policy lists it. docs/consent.md.

A grant is for one app, one data type, one purpose and one recipient, and says nothing about any other. Whatever lacks a
key does not exist for that use. Asked at ingest, when features are made, and again before an upload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from fedlearn.errors import ConsentRefused
from fedlearn.policy.document import DataType, Policy
from fedlearn_client.grants import Age, Given, Owner, Standing, Switch, Use
from fedlearn_client.hooks import ClockAndRng
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts
from fedlearn_client.store.streams import Stream, Streams

if TYPE_CHECKING:
    from fedlearn_client.receipts import Receipt
    from fedlearn_client.store.opening import Connection

__all__ = ["Age", "Consent", "Destroyer", "Owner", "Switch"]

_AGE: Final = "owner_age"
_OFF: Final = "personal_off"
_WHY: Final = {
    "disputed": "somebody claims this app's data; it cannot be granted while the policy says so.",
    "minor": "the owner is a minor or of unknown age; nothing can be granted. Set the owner's age class first.",
    "expired": "no policy is in force; install a newer task bundle.",
    "stopped": "the signed status stopped or revoked the policy; wait for one that does not.",
}


class Destroyer(Protocol):
    """What destroys data when consent to it ends: ``withdrawal.Withdrawals``."""

    def withdraw(self, app: str, data_type: DataType, purpose: str, recipient: str) -> Receipt | None:
        """Take a grant back and destroy what it alone allowed; None if there was no grant."""
        ...

    def begin_all(self, connection: Connection) -> None:
        """Take every grant back and note that everything is to be destroyed."""
        ...

    def begin_disputed(self, connection: Connection) -> None:
        """Note that streams of disputed sources are to be destroyed."""
        ...

    def finish_pending(self) -> list[Receipt]:
        """Complete every destruction that was noted."""
        ...


@dataclass(frozen=True)
class _Known:
    """A standing as of one generation, and what was worked out from it."""

    generation: int
    standing: Standing
    serving: dict[tuple[str, str], list[Stream]] = field(default_factory=dict)


class Consent:
    """Grants, and what they come to. Safe to use from several threads.

    Args:
        database: the open store.
        streams: what apps registered.
        policy: returns the verified policy in force, or None: the same object until another one is in force.
        clock_rng: says when a grant was given and whether the policy has expired.
        stopped: whether a signed status stops or revokes that policy: then nothing is effective and nothing can be
            granted, and grants and data stay as they are.
    """

    def __init__(
        self,
        database: Database,
        streams: Streams,
        policy: Callable[[], Policy | None],
        clock_rng: ClockAndRng,
        *,
        stopped: Callable[[], bool],
    ) -> None:
        self._stopped = stopped
        self._database = database
        self._streams = streams
        self._policy = policy
        self._clock_rng = clock_rng
        self._facts = Facts(database)
        self._changes = threading.Condition()
        self._generation = 0
        self._known: _Known | None = None
        self._destroyer: Destroyer | None = None
        streams.on_change(self.changed)

    @property
    def generation(self) -> int:
        """Rises with every change that could change an answer; never falls while the daemon runs."""
        return self._generation

    def attach(self, destroyer: Destroyer) -> None:
        """Say who destroys; until then nothing can be taken back, so nothing may be granted."""
        self._destroyer = destroyer

    def changed(self) -> None:
        """Make every answer be worked out anew. To be called inside the transaction that makes the change."""
        with self._changes:
            self._generation += 1
            self._changes.notify_all()

    def wait(self, seen: int, timeout_s: float) -> int:
        """Return the generation as soon as it is not ``seen``, at the latest after ``timeout_s``."""
        with self._changes:
            self._changes.wait_for(lambda: self._generation != seen, timeout_s)
            return self._generation

    def switches(self) -> list[Switch]:
        """Return every switch that the policy lists, touched or not."""
        standing, now, stopped = self._now_known().standing, self._clock_rng.now(), self._stopped()
        return [standing.switch(use, now, stopped) for use in standing.uses]

    def owner(self) -> Owner:
        """Return what is known of the owner."""
        return self._now_known().standing.owner

    def effective(self, purpose: str, recipient: str) -> list[Stream]:
        """Return the streams that may serve exactly this purpose and this recipient now, the oldest first.

        Two answers are equal only if they are about the same streams with the same keys: a stream that was destroyed
        and granted anew is another one.
        """
        return [] if self._stopped() else self._granted(purpose, recipient)

    def has_any(self, purpose: str, recipient: str) -> bool:
        """Whether anything may serve this purpose and this recipient now, or may once no status stops the policy.

        So a stopped phone asks for a newer status if it has a grant. It must not train meanwhile: the status says that.
        """
        return bool(self._granted(purpose, recipient))

    def wanted(self, app: str, data_type: DataType) -> bool:
        """Whether any stream of the app with this data type may serve anything now; otherwise nothing is taken in."""
        known = self._now_known()
        uses = [use for use in known.standing.uses if use[:2] == (app, data_type)]
        return any(
            (stream.app, stream.data_type) == (app, data_type)
            for use in uses
            for stream in self.effective(use[2], use[3])
        )

    def admits(self, stream: Stream) -> bool:
        """Whether just this stream, with just this key, may serve anything now."""
        known = self._now_known()
        uses = [use for use in known.standing.uses if use[:2] == (stream.app, stream.data_type)]
        found = (one for use in uses for one in self.effective(use[2], use[3]))
        return any((one.id, one.key_alias) == (stream.id, stream.key_alias) for one in found)

    def needed(self, stream: Stream) -> bool:
        """Whether some grant would let the stream serve something, the off switch aside: then its data is kept."""
        standing, now = self._now_known().standing, self._clock_rng.now()
        uses = [use for use in standing.uses if use[:2] == (stream.app, stream.data_type)]
        return any(one.id == stream.id for use in uses for one in standing.serving(use[2], use[3], now))

    def set(  # noqa: PLR0917 - the four keys of a grant, and what becomes of it
        self, app: str, data_type: DataType, purpose: str, recipient: str, on: bool, text_version: int
    ) -> Receipt | None:
        """Grant one use, or take it back: then what it alone allowed is destroyed when this returns.

        Args:
            app: the producing app.
            data_type: what it delivers.
            purpose: id in the policy.
            recipient: id in the policy.
            on: grant or take back.
            text_version: of the words that were on the screen; must be the policy's to grant.

        Returns:
            the receipt of a withdrawal; None for a grant, and where nothing was granted.

        Raises:
            ConsentRefused: the policy does not list this, or it cannot be granted now. Nothing has changed.
            StoreFailed: it could not be written, or not all could be destroyed yet; that is done at the next start.
        """
        if self._destroyer is None:
            raise ConsentRefused("consent: nothing here can destroy data yet, so nothing may be granted.")
        if not on:
            return self._destroyer.withdraw(app, data_type, purpose, recipient)
        self._destroyer.finish_pending()  # a new grant begins empty
        use: Use = (app, data_type, purpose, recipient)
        with self._database.transaction() as connection:
            now = self._clock_rng.now()
            self._require_grantable(use, text_version, now)
            agreed = self._now_known().standing.agreement(use)
            connection.execute(
                "INSERT OR REPLACE INTO grants (app, data_type, purpose, recipient, is_on, text_version, agreed, time)"
                " VALUES (?, ?, ?, ?, 1, ?, ?, ?)",
                (app, data_type.value, purpose, recipient, text_version, agreed, now),
            )
            self.changed()
        return None

    def set_owner(self, age: Age, personal_off: bool) -> list[Receipt]:
        """Set what is known of the owner. An owner who is no longer known to be an adult: everything is destroyed.

        Returns:
            receipts of what was destroyed.

        Raises:
            StoreFailed: it could not be written, or not all could be destroyed yet; that is done at the next start.
        """
        with self._database.transaction() as connection:
            before = self.owner()
            self._facts.set(_AGE, age.value.encode(), connection)
            self._facts.set(_OFF, b"1" if personal_off else b"0", connection)
            if before.age is Age.ADULT and age is not Age.ADULT and self._destroyer is not None:
                self._destroyer.begin_all(connection)
            self.changed()
        return [] if self._destroyer is None else self._destroyer.finish_pending()

    def policy_changed(self) -> list[Receipt]:
        """To be called when another policy comes into force: what it disputes or no longer lists is destroyed.

        A grant that the policy does not list is taken back, as by the owner: should a later policy list it again, the
        owner is asked again. Changed words end the use and destroy nothing: the rows expire, unless the owner grants
        the use again or takes it back. Without a policy in force nothing of this happens.

        Raises:
            StoreFailed: not all could be destroyed yet; that is done at the next start.
        """
        with self._database.transaction() as connection:
            self.changed()
            if self._destroyer is not None:
                self._destroyer.begin_disputed(connection)
        if self._destroyer is None:
            return []
        receipts = self._destroyer.finish_pending()
        standing = self._now_known().standing
        unlisted = [use for use, given in standing.given.items() if given.on and use not in standing.uses]
        taken = [self._destroyer.withdraw(*use) for use in unlisted if standing.policy is not None]
        return receipts + [receipt for receipt in taken if receipt is not None]

    def disputed(self, app: str, data_type: DataType) -> bool:
        """Whether the policy in force says that somebody claims this data."""
        return self._now_known().standing.disputed(app, data_type)

    def _require_grantable(self, use: Use, text_version: int, now: float) -> None:
        standing = self._now_known().standing
        if use not in standing.uses:
            raise ConsentRefused(
                "app, data_type, purpose, recipient: the policy in force lists no such use; List shows those it does."
            )
        hindrance = standing.hindrance(use, now, self._stopped())
        if hindrance:
            raise ConsentRefused(f"grant: {_WHY[hindrance]}")
        current = standing.text_version(use[2])
        if text_version != current:
            raise ConsentRefused(
                f"text_version={text_version}: the words have changed, they are at version {current}; show those."
            )

    def _granted(self, purpose: str, recipient: str) -> list[Stream]:
        known, now = self._now_known(), self._clock_rng.now()
        return [] if known.standing.owner.personal_off else self._serving(known, purpose, recipient, now)

    def _serving(self, known: _Known, purpose: str, recipient: str, now: float) -> list[Stream]:
        if known.standing.expired(now):
            return []
        pair = (purpose, recipient)
        if pair not in known.serving:
            known.serving[pair] = known.standing.serving(purpose, recipient, now)
        return list(known.serving[pair])

    def _now_known(self) -> _Known:
        """Return the standing now. Inside a transaction of this thread it is read anew: that may yet be undone."""
        policy, known = self._policy(), self._known
        if known is not None and known.generation == self._generation and known.standing.policy is policy:
            return known
        if known is not None and known.standing.policy is not policy:
            self.changed()
        with self._database.still():
            generation = self._generation
            fresh = _Known(generation, self._read(policy))
            if not self._database.in_transaction:
                self._known = fresh
        return fresh

    def _read(self, policy: Policy | None) -> Standing:
        age = self._facts.get(_AGE)
        rows = self._database.rows(
            "SELECT app, data_type, purpose, recipient, is_on, text_version, time, agreed FROM grants"
        )
        given = {
            (app, DataType(data_type), purpose, recipient): Given(bool(is_on), text_version, time, agreed)
            for app, data_type, purpose, recipient, is_on, text_version, time, agreed in rows
        }
        owner = Owner(Age.UNKNOWN if age is None else Age(age.decode()), self._facts.get(_OFF) == b"1")
        return Standing(policy, owner, given, tuple(self._streams.all()))
