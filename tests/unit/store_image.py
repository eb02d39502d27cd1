"""What a thief makes of an image of disk and KeyStore, with every key that is in it and without our code's manners.

SQLCipher 4 with a raw key: pages of 4096 bytes, AES-256-CBC, the last 80 bytes of each are IV (16) and HMAC-SHA-512
(64); the first 16 bytes of the file are the salt. The write-ahead log holds whole encrypted pages behind headers of 32
and 24 bytes. (Design of SQLCipher, Zetetic, https://www.zetetic.net/sqlcipher/design/.)
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlcipher3 import dbapi2

PAGE, RESERVED = 4096, 80
FILE_HEADER, FRAME_HEADER = 32, 24


@dataclass(frozen=True)
class Image:
    """Copies of both directories."""

    directory: Path

    @classmethod
    def take(cls, phone: Path, to: Path) -> Image:
        """Copy the store and the keys as they lie there now."""
        shutil.copytree(phone, to)
        return cls(to)

    @property
    def keys(self) -> list[bytes]:
        """Everything in the KeyStore that could be an AES-256 key."""
        return [path.read_bytes() for path in sorted((self.directory / "keys").iterdir()) if path.stat().st_size == 32]

    def opened(self, wrapped: bytes) -> list[bytes]:
        """What any key of the KeyStore makes of ``wrapped``, whatever alias it was for."""
        found = []
        for key in self.keys:
            for alias in self.aliases:
                try:
                    found.append(AESGCM(key).decrypt(wrapped[:12], wrapped[12:], b"fedlearn.keystore.v1\x00" + alias))
                except InvalidTag:
                    continue
        return found

    @property
    def aliases(self) -> set[bytes]:
        """Names of keys that are written anywhere in the store, and the store's own."""
        if not hasattr(self, "_scanned"):
            names = set(re.findall(rb"(?:stream|private|egress)-[0-9a-f]{24}", self.pages))
            object.__setattr__(self, "_scanned", names | {b"store"})
        return self._scanned | getattr(self, "_more", set())

    def knowing(self, aliases: set[bytes]) -> Image:
        """The same for a thief who knows more names."""
        object.__setattr__(self, "_more", aliases)
        return self

    @property
    def store_key(self) -> bytes:
        """The raw key of the store."""
        wrapped = (self.directory / "store" / "store.key").read_bytes()
        for key in self.keys:
            try:
                return AESGCM(key).decrypt(wrapped[:12], wrapped[12:], b"fedlearn.keystore.v1\x00store")
            except InvalidTag:
                continue
        raise AssertionError("the image does not hold the store's key")

    @property
    def pages(self) -> bytes:
        """Every page of the database and of its log, free ones and outdated ones too, decrypted."""
        key, store = self.store_key, self.directory / "store"
        database = (store / "store.db").read_bytes()
        pages = [
            _decrypted(key, database[at : at + PAGE], 16 if at == 0 else 0) for at in range(0, len(database), PAGE)
        ]
        log = (store / "store.db-wal").read_bytes() if (store / "store.db-wal").exists() else b""
        for at in range(FILE_HEADER, len(log) - FRAME_HEADER - PAGE + 1, FRAME_HEADER + PAGE):
            frame = log[at + FRAME_HEADER : at + FRAME_HEADER + PAGE]
            number = int.from_bytes(log[at : at + 4], "big")
            pages.append(_decrypted(key, frame, 16 if number == 1 else 0))
        return b"".join(pages)

    def query(self, sql: str) -> list[tuple]:
        """Ask the copy, as a program with the store's key can."""
        connection = dbapi2.connect(str(self.directory / "store" / "store.db"))
        connection.execute(f"PRAGMA key = \"x'{self.store_key.hex()}'\"")
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


def _decrypted(key: bytes, page: bytes, skip: int) -> bytes:
    body, iv = page[skip : PAGE - RESERVED], page[PAGE - RESERVED : PAGE - RESERVED + 16]
    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    return decryptor.update(body) + decryptor.finalize()
