"""Throw-away keys of the kit: one directory holds all of them, so they prove nothing and belong on no owner's phone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.errors import ConfigError

NAMES: Final = ("root", "approver-1", "approver-2", "status", "task")
_BYTES: Final = 32


class KitKey:
    """An Ed25519 key; fits ``fedlearn.policy.dsse.Signer``."""

    def __init__(self, secret: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """Return the signature in hexadecimal."""
        return self._key.sign(message).hex()


def fresh_key() -> KitKey:
    """Return a key that nobody knows."""
    return KitKey(os.urandom(_BYTES))


def make_keys(directory: Path) -> dict[str, KitKey]:
    """Return the keys of ``directory``; those that are not there are made.

    Raises:
        ConfigError: the directory cannot be written or read.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in NAMES:
            path = directory / f"{name}.key"
            if not path.exists():
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(handle, "w") as file:
                    file.write(os.urandom(_BYTES).hex() + "\n")
    except OSError as error:
        raise ConfigError(f"keys={directory}: cannot be written ({error.strerror}); name another directory.") from error
    return read_keys(directory)


def read_keys(directory: Path) -> dict[str, KitKey]:
    """Return the keys that ``make_keys`` wrote.

    Raises:
        ConfigError: one is absent or damaged.
    """
    found = {}
    for name in NAMES:
        path = directory / f"{name}.key"
        try:
            found[name] = KitKey(bytes.fromhex(path.read_text("ascii").strip()))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"keys={directory}: {path.name} cannot be read; make a directory with --prepare."
            ) from error
    return found
