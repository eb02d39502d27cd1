"""What apps registered, and the keys of their streams."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fedlearn.errors import SignalRefused
from fedlearn.policy.document import DataType
from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.store.database import Database
from fedlearn_client.store.sealing import KEY_BYTES, Sealer

if TYPE_CHECKING:
    from fedlearn_client.store.opening import Connection

EVERY_PURPOSE: Final = "*"
MAX_STREAMS_PER_APP: Final = 32
MAX_RESTRICTIONS: Final = 64
_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)
_COLUMNS: Final = "id, app, name, data_type, key_alias, restricted, registered"


@dataclass(frozen=True, slots=True)
class Stream:
    """One registered stream, as it was when it was read.

    Args:
        id: of the row.
        app: who registered it.
        name: the app's own word for it.
        data_type: what it delivers.
        key_alias: of the KeyStore key that its rows need; another one after each destruction, so a ``Stream`` read
            before a destruction opens and adds nothing.
        restricted: purposes the app withholds it from; ``*`` for all.
        registered: seconds since the Unix epoch.
    """

    id: int
    app: str
    name: str
    data_type: DataType
    key_alias: str
    restricted: frozenset[str]
    registered: float

    def serves(self, purpose: str) -> bool:
        """Whether the app lets it serve ``purpose``."""
        return EVERY_PURPOSE not in self.restricted and purpose not in self.restricted


@dataclass(frozen=True, slots=True)
class Destroyed:
    """What stopped existing: a key, by alias, and a number of rows."""

    alias: str
    rows: int


class Streams:
    """Registers streams and opens their keys. Safe to use from several threads.

    Args:
        database: the open store.
        keystore: wraps each stream's key under an alias of its own.
        clock_rng: draws keys, and says when a stream was registered.
    """

    def __init__(self, database: Database, keystore: KeyStore, clock_rng: ClockAndRng) -> None:
        self._database = database
        self._keystore = keystore
        self._clock_rng = clock_rng
        self._sealers: dict[str, Sealer] = {}
        self._sealers_lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []

    def on_change(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever what streams there are, or may serve, changes; inside the transaction."""
        self._watchers.append(call)

    def register(self, app: str, name: str, data_type: DataType) -> Stream:
        """Return the app's stream ``name``, made if there is none.

        Raises:
            SignalRefused: the name is malformed, the stream has another data type, or the app has too many.
        """
        if not _NAME.fullmatch(name):
            raise SignalRefused("stream: 1 to 64 characters of a-z 0-9 . _ - are a stream's name.")
        with self._database.transaction() as connection:
            mine = self.of_app(app)
            found = next((stream for stream in mine if stream.name == name), None)
            if found is not None:
                if found.data_type is not data_type:
                    raise SignalRefused(
                        f"data_type: stream {name!r} is registered as {found.data_type}; use another stream name."
                    )
                return found
            if len(mine) >= MAX_STREAMS_PER_APP:
                raise SignalRefused(f"stream: an app has at most {MAX_STREAMS_PER_APP} streams; use one of those.")
            connection.execute(
                "INSERT INTO streams (app, name, data_type, key_alias, wrapped_key, first_row, restricted, registered)"
                " VALUES (?, ?, ?, ?, x'', 0, '[]', ?)",
                (app, name, data_type.value, self._fresh_alias(), self._clock_rng.now()),
            )
            self._changed()
            return self.find(app, name)

    def of_app(self, app: str) -> list[Stream]:
        """Return the app's streams."""
        return [_stream(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM streams WHERE app = ?", (app,))]  # noqa: S608 - constant

    def all(self) -> list[Stream]:
        """Return every stream, the first registered first."""
        return [_stream(row) for row in self._database.rows(f"SELECT {_COLUMNS} FROM streams ORDER BY id")]  # noqa: S608 - constant

    def find(self, app: str, name: str) -> Stream:
        """Return the app's stream ``name``; raise SignalRefused if it has not registered one."""
        found = next((stream for stream in self.of_app(app) if stream.name == name), None)
        if found is None:
            raise SignalRefused("stream: not registered by this app; call Register first.")
        return found

    def restrict(self, app: str, name: str, purposes: Sequence[str]) -> Stream:
        """Withhold a stream from ``purposes`` (``*``: from all) and from no other; return it as it is now."""
        if len(purposes) > MAX_RESTRICTIONS or any(not 1 <= len(purpose) <= 128 for purpose in purposes):
            raise SignalRefused(f"purposes: at most {MAX_RESTRICTIONS} ids of 1 to 128 characters, or *.")
        with self._database.transaction() as connection:
            stream = self.find(app, name)
            if stream.restricted == frozenset(purposes):
                return stream  # saying it again is no change: watchers would begin anew, rounds too
            words = json.dumps(sorted(set(purposes)))
            connection.execute("UPDATE streams SET restricted = ? WHERE id = ?", (words, stream.id))
            self._changed()
            return self.find(app, name)

    def sealer(self, stream: Stream) -> Sealer | None:
        """Return the key of ``stream``, or None where it has none: nothing was kept, or all of it was destroyed."""
        with self._sealers_lock:
            if stream.key_alias in self._sealers:
                return self._sealers[stream.key_alias]
        # still: a destruction comes wholly before, and the alias is gone, or wholly after, and makes us forget the key
        with self._database.still():
            wrapped = self._wrapped_key(stream)
            return self._opened(stream, wrapped) if wrapped else None

    def sealer_to_write(self, stream: Stream) -> Sealer | None:
        """As ``sealer``, but make the key if there is none yet; None if ``stream`` is of before a destruction."""
        sealer = self.sealer(stream)
        if sealer is not None:
            return sealer
        with self._database.still():
            with self._database.transaction() as connection:
                wrapped = self._wrapped_key(stream)
                if wrapped is None:
                    return None
                if not wrapped:
                    wrapped = self._keystore.wrap(stream.key_alias, self._clock_rng.random_bytes(KEY_BYTES))
                    connection.execute("UPDATE streams SET wrapped_key = ? WHERE id = ?", (wrapped, stream.id))
            # only now: nothing may be sealed under a key that is not on the disk
            return self._opened(stream, wrapped)

    def has_key(self, stream: Stream) -> bool:
        """Whether anything was kept of the stream since it was registered or destroyed."""
        return bool(self._database.rows("SELECT 1 FROM streams WHERE id = ? AND wrapped_key <> x''", (stream.id,)))

    def renew_key(self, number: int, connection: Connection) -> Destroyed:
        """Part of a destruction: every row of stream ``number`` stops existing, and its next key has another name."""
        alias, first_row = connection.execute(
            "SELECT key_alias, first_row FROM streams WHERE id = ?", (number,)
        ).fetchone()
        last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'signals'").fetchone()
        rows = connection.execute(
            "SELECT count(*) FROM signals WHERE stream = ? AND id >= ?", (number, first_row)
        ).fetchone()[0]
        connection.execute(
            "UPDATE streams SET key_alias = ?, wrapped_key = x'', first_row = ? WHERE id = ?",
            (self._fresh_alias(), (last[0] if last else 0) + 1, number),
        )
        self._changed()
        # the key is made in the KeyStore before it is noted here, so there may be one though none is noted
        return Destroyed(alias, rows)

    def forget(self, alias: str) -> None:
        """Drop the key ``alias`` from this process's memory."""
        with self._sealers_lock:
            self._sealers.pop(alias, None)

    def _wrapped_key(self, stream: Stream) -> bytes | None:
        found = self._database.rows(
            "SELECT wrapped_key FROM streams WHERE id = ? AND key_alias = ?", (stream.id, stream.key_alias)
        )
        return bytes(found[0][0]) if found else None

    def _opened(self, stream: Stream, wrapped: bytes) -> Sealer:
        sealer = Sealer(self._keystore.unwrap(stream.key_alias, wrapped), self._clock_rng.random_bytes)
        with self._sealers_lock:
            return self._sealers.setdefault(stream.key_alias, sealer)

    def _fresh_alias(self) -> str:
        return f"stream-{self._clock_rng.random_bytes(12).hex()}"

    def _changed(self) -> None:
        for call in self._watchers:
            call()


def _stream(row: tuple[Any, ...]) -> Stream:
    number, app, name, data_type, alias, restricted, registered = row
    return Stream(number, app, name, DataType(data_type), alias, frozenset(json.loads(restricted)), registered)
