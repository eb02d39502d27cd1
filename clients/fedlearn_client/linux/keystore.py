"""``KeyStore`` on plain Linux: one file a key, in a directory of the daemon's own user.

What it promises: a key file is whole or absent after any crash; nobody but the owner of the directory (and root) reads
it; ``destroy`` returns when the file is overwritten, removed, and both are on the disk. What it does not promise: flash
memory and journaling or copying file systems may keep an older copy of a block that no program can reach to overwrite,
and a backup of the directory keeps whatever it copied. A phone with a secure element puts its keys there instead.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedlearn.errors import PrivacyError, StoreFailed
from fedlearn.privacy.secret_files import (
    clear_leftovers,
    create_private,
    destroy_private,
    read_private,
    replace_private,
)

MAX_ANCHOR_BYTES: Final = 16 * 1024
_KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_CONTEXT: Final = b"fedlearn.keystore.v1\x00"
_SIGNING_FILE: Final = "signing.key"
_ANCHOR_FILE: Final = "anchor"


class FileKeyStore:
    """Keys in files of mode 0600 in a directory of mode 0700. Safe to use from several threads.

    Args:
        directory: made if there is none. Keep it apart from the store, and out of every backup.
        random_bytes: the operating system's generator.

    Raises:
        StoreFailed: the directory is a link, is somebody else's, or others can enter it.
    """

    def __init__(self, directory: Path, *, random_bytes: Callable[[int], bytes] = os.urandom) -> None:
        self._directory = directory
        self._random = random_bytes
        self._lock = threading.Lock()
        with _explained(directory):
            require_own_directory(directory)
            for left in directory.glob(".*"):  # made or destroyed when a process was killed
                clear_leftovers(directory / left.name[1:].rsplit(".", 1)[0])

    def __repr__(self) -> str:
        return f"FileKeyStore({str(self._directory)!r})"

    def wrap(self, alias: str, secret: bytes) -> bytes:
        """See ``KeyStore.wrap``."""
        key = self._read_or_make(self._key_path(alias))
        nonce = self._random(_NONCE_BYTES)
        return nonce + AESGCM(key).encrypt(nonce, secret, _CONTEXT + alias.encode())

    def unwrap(self, alias: str, wrapped: bytes) -> bytes:
        """See ``KeyStore.unwrap``."""
        path = self._key_path(alias)
        with self._lock, _explained(path):
            if not path.exists():
                raise StoreFailed(f"key {alias}: gone; what it wrapped cannot be read again.")
            key = _read(path)
        try:
            return AESGCM(key).decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], _CONTEXT + alias.encode())
        except (InvalidTag, ValueError):
            raise StoreFailed(f"key {alias}: does not fit; keys and store are not of the same phone.") from None

    def destroy(self, alias: str) -> None:
        """See ``KeyStore.destroy``. Killed inside, it leaves the key whole or gone, never a damaged one."""
        path = self._key_path(alias)
        with self._lock, _explained(path):
            destroy_private(path)

    def sign(self, message: bytes) -> bytes:
        """See ``KeyStore.sign``."""
        return self._signing_key().sign(message)

    def public_key(self) -> bytes:
        """See ``KeyStore.public_key``."""
        return self._signing_key().public_key().public_bytes_raw()

    def read_anchor(self) -> bytes | None:
        """See ``KeyStore.read_anchor``."""
        path = self._directory / _ANCHOR_FILE
        with self._lock, _explained(path):
            return _read_own(path) if os.path.lexists(path) else None

    def write_anchor(self, data: bytes) -> None:
        """See ``KeyStore.write_anchor``."""
        if len(data) > MAX_ANCHOR_BYTES:
            raise StoreFailed(f"anchor: {len(data)} bytes; at most {MAX_ANCHOR_BYTES} outlive a wiped store.")
        path = self._directory / _ANCHOR_FILE
        with self._lock, _explained(path):
            replace_private(path, data)

    def _signing_key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self._read_or_make(self._directory / _SIGNING_FILE))

    def _key_path(self, alias: str) -> Path:
        """A hash, so that no alias is a path; the alias itself is authenticated with what its key wraps."""
        return self._directory / f"key-{hashlib.sha256(alias.encode()).hexdigest()[:32]}"

    def _read_or_make(self, path: Path) -> bytes:
        with self._lock, _explained(path):
            if not os.path.lexists(path):
                create_private(path, self._random(_KEY_BYTES))
            return _read(path)


def require_own_directory(directory: Path) -> None:
    """Make ``directory`` if there is none; raise StoreFailed unless it is a real one that this user alone can enter."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise StoreFailed(f"{directory}: not a directory but a link or file; name the real directory.")
    _require_owner(directory, status)
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise StoreFailed(f"{directory}: others can enter it; chmod 700 it.")


def _read(path: Path) -> bytes:
    key = _read_own(path)
    if len(key) != _KEY_BYTES:
        raise StoreFailed(f"{path}: damaged, {len(key)} bytes instead of {_KEY_BYTES}; restore it or wipe the store.")
    return key


def _read_own(path: Path) -> bytes:
    """Return the content of a regular file of this user that nobody else can read."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreFailed(f"{path}: not a file but a link or device; put the file itself there.")
    _require_owner(path, status)
    return read_private(path)


def _require_owner(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise StoreFailed(f"{path}: belongs to user {status.st_uid}; it must be this user's own ({os.geteuid()}).")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except PrivacyError as error:
        raise StoreFailed(f"{path}: {_tail(error)}") from error
    except OSError as error:
        raise StoreFailed(f"{path}: {error.strerror}; free space or repair the disk, and check who owns it.") from error


def _tail(error: PrivacyError) -> str:
    if isinstance(error.__cause__, OSError):
        return f"cannot be made ({error.__cause__.strerror}); keys need a local disk with hard links."
    return "others can read this secret; chmod 600 it."
