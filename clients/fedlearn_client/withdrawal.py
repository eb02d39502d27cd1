"""Taking consent back: what it alone allowed is destroyed, whatever happens meanwhile. docs/consent.md.

1. one transaction: the grant is off, uploads that wait are destroyed, the streams' rows stop existing and their next
   key gets another name, and the withdrawal is noted with all that is left to do;
2. the worker's memory is forgotten;
3. the keys are destroyed;
4. the rows are deleted, and the log is cut;
5. one transaction: the signed receipt, and the withdrawal is finished.

Killed anywhere after 1, ``finish_pending`` goes on from the note at the next start; before, nothing has happened, and
nobody was told otherwise. A stream's data stays as long as another grant lets the stream serve something; then only
what was made for the use that was taken back is destroyed. Participations, tokens and runs are never touched.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import StoreFailed
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.policy.document import DataType
from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.receipts import Receipt, Receipts
from fedlearn_client.store.streams import Stream

if TYPE_CHECKING:
    from fedlearn_client.consent import Consent
    from fedlearn_client.egress import EgressLog
    from fedlearn_client.store.database import Database
    from fedlearn_client.store.opening import Connection
    from fedlearn_client.store.streams import Streams

WITHDRAWN: Final = "withdrawn"
PURGED: Final = "purged"
OWNER: Final = "owner"
DISPUTED: Final = "disputed"


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a destruction is about; "" for all, as in a receipt."""

    app: str = ""
    data_type: str = ""
    purpose: str = ""
    recipient: str = ""
    text_version: int = 0


class Withdrawals:
    """Destroys. Safe to use from several threads; one destruction at a time.

    Args:
        database: the open store.
        streams: whose rows and keys go.
        keystore: destroys keys.
        consent: says what other grants still need; is told who destroys.
        egress: whose waiting uploads go.
        receipts: signs what was done.
        clock_rng: says when.
        forget: ends whatever holds derived data in memory (the worker, remembered rankings); must not fail quietly.
    """

    def __init__(
        self,
        database: Database,
        streams: Streams,
        keystore: KeyStore,
        consent: Consent,
        *,
        egress: EgressLog,
        receipts: Receipts,
        clock_rng: ClockAndRng,
        forget: Callable[[], None],
    ) -> None:
        self._database = database
        self._streams = streams
        self._keystore = keystore
        self._consent = consent
        self._egress = egress
        self._receipts = receipts
        self._clock_rng = clock_rng
        self._forget = forget
        self._one_at_a_time = threading.Lock()
        consent.attach(self)

    def withdraw(self, app: str, data_type: DataType, purpose: str, recipient: str) -> Receipt | None:
        """Take a grant back, and return when what it alone allowed is destroyed.

        Returns:
            the receipt; None if nothing was granted and nothing was left to do.

        Raises:
            StoreFailed: nothing has changed, or the grant is off and the rest is done at the next start.
        """
        use = (app, data_type.value, purpose, recipient)
        with self._one_at_a_time:
            with self._database.transaction() as connection:
                number = self._begin_withdrawal(use, connection)
            return None if number is None else self._finish(number)

    def purge(self, stream: Stream) -> Receipt:
        """Destroy everything derived from a stream, for all purposes; the owner's grants stay.

        Raises:
            StoreFailed: nothing has changed, or the rest is done at the next start.
        """
        scope = _Scope(stream.app, stream.data_type.value)
        with self._one_at_a_time:
            with self._database.transaction() as connection:
                pairs = _pairs_of(stream, connection)
                number = self._begin(PURGED, scope, [stream], pairs, connection)
                self._consent.changed()
            return self._finish(number)

    def begin_all(self, connection: Connection) -> None:
        """See ``Destroyer``: the owner is no longer known to be an adult."""
        connection.execute("UPDATE grants SET is_on = 0, time = ? WHERE is_on = 1", (self._clock_rng.now(),))
        pairs = connection.execute(
            "SELECT purpose, recipient FROM egress UNION SELECT purpose, recipient FROM private_parameters"
        ).fetchall()
        self._begin(OWNER, _Scope(), self._streams.all(), pairs, connection)

    def begin_disputed(self, connection: Connection) -> None:
        """See ``Destroyer``: somebody claims data that is here."""
        for stream in self._streams.all():
            if self._consent.disputed(stream.app, stream.data_type) and self._streams.has_key(stream):
                scope = _Scope(stream.app, stream.data_type.value)
                self._begin(DISPUTED, scope, [stream], _pairs_of(stream, connection), connection)

    def finish_pending(self) -> list[Receipt]:
        """Complete what was begun: at every start, before anything is served.

        Raises:
            StoreFailed: something could not be destroyed yet; everything else was.
        """
        with self._one_at_a_time:
            receipts, failure = [], None
            for (number,) in self._database.rows("SELECT id FROM withdrawals WHERE finished IS NULL ORDER BY id"):
                try:
                    receipts.append(self._finish(number))
                except Exception as error:  # noqa: BLE001 - one that cannot go on must not hold up the others
                    failure = failure or error
            if failure is not None:
                raise failure
            return receipts

    def _begin_withdrawal(self, use: tuple[str, str, str, str], connection: Connection) -> int | None:
        """Step 1 for a grant. Return the number of its note, or of one that an earlier fault left, or None."""
        of_use = "app = ? AND data_type = ? AND purpose = ? AND recipient = ?"
        row = connection.execute(
            f"SELECT text_version FROM grants WHERE {of_use} AND is_on = 1",  # noqa: S608 - own words only
            use,
        ).fetchone()
        if row is None:
            notes = connection.execute(
                "SELECT id, detail FROM withdrawals WHERE finished IS NULL AND reason = ?", (WITHDRAWN,)
            ).fetchall()
            return next((number for number, text in notes if json.loads(text)["scope"][:4] == list(use)), None)
        connection.execute(
            f"UPDATE grants SET is_on = 0, time = ? WHERE {of_use}",  # noqa: S608 - own words only
            (self._clock_rng.now(), *use),
        )
        self._consent.changed()
        mine = [one for one in self._streams.of_app(use[0]) if one.data_type == use[1]]
        doomed = [stream for stream in mine if not self._consent.needed(stream)]
        return self._begin(WITHDRAWN, _Scope(*use, text_version=row[0]), doomed, [use[2:]], connection)

    def _begin(
        self,
        reason: str,
        scope: _Scope,
        streams: Iterable[Stream],
        pairs: Iterable[tuple[str, str]],
        connection: Connection,
    ) -> int:
        """Step 1, in the caller's transaction. Return the number of the note."""
        aliases, numbers, rows, uploads = [], [], 0, 0
        for stream in streams:
            destroyed = self._streams.renew_key(stream.id, connection)
            aliases.append(destroyed.alias)
            rows += destroyed.rows
            numbers.append(stream.id)
        for purpose, recipient in pairs:
            uploads += self._egress.destroy(purpose, recipient, connection)
            aliases += self._egress.renew_key(purpose, recipient, connection)
            pair = (purpose, recipient)
            found = connection.execute(
                "SELECT key_alias FROM private_parameters WHERE purpose = ? AND recipient = ?", pair
            ).fetchall()
            aliases += [alias for (alias,) in found]
            connection.execute("DELETE FROM private_parameters WHERE purpose = ? AND recipient = ?", pair)
        detail = {
            "scope": [scope.app, scope.data_type, scope.purpose, scope.recipient, scope.text_version],
            "streams": numbers,
            "aliases": aliases,
            "rows_destroyed": rows,
            "uploads_destroyed": uploads,
        }
        cursor = connection.execute(
            "INSERT INTO withdrawals (reason, detail, begun) VALUES (?, ?, ?)",
            (reason, canonical_bytes(detail).decode(), self._clock_rng.now()),
        )
        if cursor.lastrowid is None:  # the type of the driver allows it; an INSERT never does it
            raise StoreFailed("store: a withdrawal could not be noted; nothing has changed.")
        return cursor.lastrowid

    def _finish(self, number: int) -> Receipt:
        """Steps 2 to 5, each of which may have been done before."""
        reason, text = self._database.rows("SELECT reason, detail FROM withdrawals WHERE id = ?", (number,))[0]
        detail = json.loads(text)
        try:
            self._forget()
        finally:  # the keys go even where something else clings to its memory
            for alias in detail["aliases"]:
                self._streams.forget(alias)
                self._keystore.destroy(alias)
        for stream in detail["streams"]:
            self._delete_rows(stream)
        self._database.erase_free_space()
        with self._database.transaction() as connection:
            receipt = self._receipts.issue(reason, _statement(detail, connection), connection)
            connection.execute("UPDATE withdrawals SET finished = ? WHERE id = ?", (self._clock_rng.now(), number))
        return receipt

    def _delete_rows(self, stream: int) -> None:
        with self._database.transaction() as connection:
            first_row = connection.execute("SELECT first_row FROM streams WHERE id = ?", (stream,)).fetchone()[0]
            connection.execute("DELETE FROM signals WHERE stream = ? AND id < ?", (stream, first_row))


def _pairs_of(stream: Stream, connection: Connection) -> list[tuple[str, str]]:
    """Return the uses that the stream may ever have served: granted now or before."""
    return connection.execute(
        "SELECT DISTINCT purpose, recipient FROM grants WHERE app = ? AND data_type = ?",
        (stream.app, stream.data_type.value),
    ).fetchall()


def _statement(detail: dict[str, Any], connection: Connection) -> dict[str, Any]:
    app, data_type, purpose, recipient, text_version = detail["scope"]
    head = connection.execute("SELECT digest FROM participations ORDER BY id DESC LIMIT 1").fetchone()
    return {
        "app": app,
        "data_type": data_type,
        "purpose": purpose,
        "recipient": recipient,
        "text_version": text_version,
        "rows_destroyed": detail["rows_destroyed"],
        "uploads_destroyed": detail["uploads_destroyed"],
        "keys": sorted(hashlib.sha256(alias.encode()).hexdigest() for alias in detail["aliases"]),
        "participations_head": "" if head is None else bytes(head[0]).hex(),
    }
