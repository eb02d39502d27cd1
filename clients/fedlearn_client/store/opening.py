"""Opening the store's file: one process at a time, the right key, safe settings, the present schema, no damage."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlcipher3 import dbapi2

from fedlearn.errors import StoreFailed
from fedlearn.files import sync_directory
from fedlearn.privacy.secret_files import clear_leftovers, replace_private
from fedlearn_client.hooks import ClockAndRng, KeyStore
from fedlearn_client.linux.keystore import require_own_directory

if TYPE_CHECKING:
    import sqlite3  # 2 MB that the daemon does not need

    # the driver has this interface and no types of its own
    Connection = sqlite3.Connection

DATABASE_FILE: Final = "store.db"
KEY_FILE: Final = "store.key"
LOCK_FILE: Final = "store.lock"
STORE_ALIAS: Final = "store"
VERSION: Final = 1
_KEY_BYTES: Final = 32
_PAGE_BYTES: Final = 4096
_BUSY_MS: Final = 5_000
_CACHE_KIB: Final = 512  # of decrypted pages; the default of 2 MiB stays full of a catalogue that was read once
_MIGRATIONS: Final[dict[int, str]] = {}
"""Version -> SQL that makes it the next one, its own ``PRAGMA user_version`` included."""

_SETTINGS: Final = (
    "PRAGMA cipher_memory_security = ON",
    f"PRAGMA busy_timeout = {_BUSY_MS}",
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",
    "PRAGMA secure_delete = ON",
    "PRAGMA foreign_keys = ON",
    "PRAGMA temp_store = MEMORY",
    f"PRAGMA cache_size = -{_CACHE_KIB}",
)
_FULL: Final = "disk is full"
_ADVICE: Final = (
    (_FULL, "the disk is full, or the store is at its largest; free space"),
    ("readonly", "it cannot be written; check the mount and the owner of the file"),
    ("not a database", "wrong key, damage, or another program's file; restore the KeyStore or remove the store"),
    ("malformed", "damaged; remove the store to begin empty (its history stays in the KeyStore's anchor)"),
    ("locked", "another process holds it; stop that one"),
    ("unable to open", "the file cannot be opened; check the directory and its owner"),
    ("constraint", "a row that contradicts the schema was refused; nothing of it was kept. Please report it"),
    ("disk i/o", "the disk refuses; free space or repair it"),
)


class StoreFull(StoreFailed):
    """No room: the disk is full, or the store is at its largest."""


def failed(error: Exception) -> StoreFailed:
    """Return what to tell the caller about a fault of the driver: what to do, and no value of any row."""
    text = str(error).lower()
    for sign, advice in _ADVICE:
        if sign in text:
            kind = StoreFull if sign == _FULL else StoreFailed
            return kind(f"store: {advice}.")
    return StoreFailed(
        f"store: {type(error).__name__}; restart the daemon, and remove the store if that does not help."
    )


def lock(directory: Path) -> int:
    """Return a handle that keeps other daemons out of ``directory`` for as long as it is open."""
    try:
        require_own_directory(directory)
        handle = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreFailed(f"{directory}: {error.strerror}; name a directory that this user can write.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise StoreFailed(f"{directory}: another daemon uses this store; stop it first.") from error
    return handle


def store_key(directory: Path, keystore: KeyStore, clock_rng: ClockAndRng) -> bytes:
    """Return the raw key of the store: kept beside it, wrapped by the KeyStore, and made with a new store."""
    path, database = directory / KEY_FILE, directory / DATABASE_FILE
    try:
        clear_leftovers(path)
        if path.is_symlink() or database.is_symlink():
            raise StoreFailed(f"{directory}: {KEY_FILE} or {DATABASE_FILE} is a link; put the file itself there.")
        if path.exists():
            key = keystore.unwrap(STORE_ALIAS, path.read_bytes())
        elif database.exists():
            raise StoreFailed(f"{path}: gone, so {DATABASE_FILE} cannot be read; restore it, or remove the store.")
        else:
            key = clock_rng.random_bytes(_KEY_BYTES)
            replace_private(path, keystore.wrap(STORE_ALIAS, key))
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}; free space or repair the disk, and check the owner.") from error
    if len(key) != _KEY_BYTES:
        raise StoreFailed(f"{path}: holds no key of a store; restore it, or remove the store.")
    return key


def connect(path: Path, key: bytes, max_bytes: int) -> Connection:
    """Return a connection to the store in ``path``, with every setting made and checked, in the present schema."""
    try:  # made here so that the log beside it, too, is the owner's alone
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}; check the mount and who owns the file.") from error
    connection: Connection = dbapi2.connect(
        str(path), isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        connection.execute("PRAGMA cipher_log = off")  # its own words would go to stderr
        connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        for setting in _SETTINGS:
            connection.execute(setting).fetchall()
        _require_settings(connection)
        connection.execute(f"PRAGMA max_page_count = {max_bytes // _PAGE_BYTES}").fetchone()
        _migrate(connection)
        sync_directory(path.parent)
    except dbapi2.Error as error:
        connection.close()
        raise failed(error) from error
    except BaseException:
        connection.close()
        raise
    return connection


def require_whole(connection: Connection) -> None:
    """Raise StoreFailed unless every page has its right authentication code and every table agrees with its indexes."""
    found = connection.execute("PRAGMA cipher_integrity_check(1)").fetchall()
    found += [row for row in connection.execute("PRAGMA integrity_check(1)").fetchall() if row != ("ok",)]
    if found:
        raise StoreFailed("store: damaged; remove it to begin empty (its history stays in the KeyStore's anchor).")


def _require_settings(connection: Connection) -> None:
    wanted = {"journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1, "temp_store": 2}
    for name, value in wanted.items():
        found = connection.execute(f"PRAGMA {name}").fetchone()[0]
        if found != value:
            raise StoreFailed(f"store: {name} is {found!r} instead of {value!r}; put it on a local, writable disk.")
    if not connection.execute("PRAGMA cipher_version").fetchone():
        raise StoreFailed("store: this build of sqlcipher3 does not encrypt; install the one in constraints.txt.")


def _migrate(connection: Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise StoreFailed(f"store: schema {version}, made by a newer daemon than this ({VERSION}); install that one.")
    while version < VERSION:
        script = _schema() if version == 0 else _MIGRATIONS[version]
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
        version = connection.execute("PRAGMA user_version").fetchone()[0]


def _schema() -> str:
    # not importlib.resources, which brings a megabyte
    return Path(__file__).with_name("schema.sql").read_text(encoding="utf-8")
