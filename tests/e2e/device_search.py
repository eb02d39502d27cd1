"""Looks for what an owner wrote in anything a phone sends, logs or stores: every 8 bytes of it, and of its hashes."""

from __future__ import annotations

import base64
import hashlib
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from fedlearn.proto import gateway_pb2, wire_pb2
from fedlearn_client.hooks import Method

GRAM = 8
_HASHES = (
    *("md5", "sha1", "sha224", "sha256", "sha384", "sha512", "sha3_256", "sha3_512", "blake2b", "blake2s"),
    *(("blake2b", size) for size in (8, 16, 32)),
)
_HEX = re.compile(rb"[0-9a-fA-F]{16,}")
_ESCAPED = re.compile(rb"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{11,}")
_DEEPEST = 8


class Needles:
    """Everything of some texts that must not be found.

    Of each text every run of 8 bytes, in UTF-8 and, where it is not ASCII, in UTF-16; and the first 8 bytes of hashes
    of the text and of each word.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        found: set[bytes] = set()
        for text in texts:
            for form in _forms(text):
                found.update(form[at : at + GRAM] for at in range(len(form) - GRAM + 1))
            for part in {text, text.strip(), text.lower(), *text.split(), *text.lower().split()}:
                found.update(hashes(part))
        self.count = len(found)
        self._sorted = np.sort(np.frombuffer(b"".join(found), np.uint64)) if found else np.empty(0, np.uint64)

    def hits(self, data: bytes) -> list[bytes]:
        """Return what of it is in ``data``, in what its hexadecimal, base64 or escaped runs hold included."""
        return [hit for view in _views(data) for hit in self._plain_hits(view)]

    def _plain_hits(self, data: bytes) -> list[bytes]:
        if len(data) < GRAM or not len(self._sorted):
            return []
        bytes_of = np.frombuffer(data, np.uint8)
        runs = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(bytes_of, GRAM)).view(np.uint64).ravel()
        places = np.minimum(np.searchsorted(self._sorted, runs), len(self._sorted) - 1)
        return [data[at : at + GRAM] for at in np.flatnonzero(self._sorted[places] == runs)]


def hashes(text: str) -> Iterator[bytes]:
    """Yield the first 8 bytes of common hashes of a text."""
    data = text.encode()
    for one in _HASHES:
        made = hashlib.new(one, data) if isinstance(one, str) else hashlib.blake2b(data, digest_size=one[1])
        yield made.digest()[:GRAM]


def _forms(text: str) -> Iterator[bytes]:
    yield text.encode()
    if not text.isascii():
        yield text.encode("utf-16-le")
        yield text.encode("utf-16-be")


def _views(data: bytes) -> Iterator[bytes]:
    yield data
    if _ESCAPED.search(data):
        yield _ESCAPED.sub(_unescaped, data)
    for run in _HEX.findall(data):
        for start in (0, 1):
            part = run[start:]
            yield bytes.fromhex(part[: len(part) // 2 * 2].decode())
    for run in _BASE64.findall(data):
        plain = run.translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            part = plain[start:]
            yield base64.b64decode(part[: len(part) // 4 * 4])


def _unescaped(match: re.Match[bytes]) -> bytes:
    character, byte = match.groups()
    return chr(int(character, 16)).encode(errors="replace") if character else bytes([int(byte, 16)])


def decoded(method: Method, body: bytes) -> Iterator[bytes]:
    """Yield a request as it is, and everything that its fields say, as bytes: messages in messages, numbers, values."""
    yield body
    yield from _fields(body, 0)
    if method is Method.UPLOAD:
        envelope = wire_pb2.Envelope.FromString(gateway_pb2.UploadRequest.FromString(body).contribution)
        values = np.frombuffer(envelope.contribution.values, "<i8")
        for kind in (np.int8, np.int16, np.int32):  # what hides a byte or two in each value
            for order in ("<", ">"):
                yield values.astype(np.dtype(kind).newbyteorder(order)).tobytes()
        for unit in (1.0, envelope.contribution.scale):
            yield (values * unit).astype("<f4").tobytes()
            yield (values * unit).astype("<f8").tobytes()


def _fields(data: bytes, depth: int) -> Iterator[bytes]:
    """Yield the contents of every field of what may be a protobuf message; nothing where it is none."""
    found, numbers, at = [], [], 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            numbers.append(value & (1 << 64) - 1)
        elif kind in {1, 5}:
            size = 8 if kind == 1 else 4
            found.append(data[at : at + size])
            at += size
        elif kind == 2:
            size, at = _varint(data, at)
            found.append(data[at : at + size])
            at += size
        else:
            return
        if at < 0 or at > len(data):
            return
    yield from found
    for order in ("<", ">"):
        yield struct.pack(f"{order}{len(numbers)}Q", *numbers)
    yield bytes(number & 0xFF for number in numbers)
    for one in found:
        if depth < _DEEPEST:
            yield from _fields(one, depth + 1)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends, -1 where there is none."""
    value = 0
    for place in range(10):
        if not 0 <= at + place < len(data):
            break
        value |= (data[at + place] & 0x7F) << 7 * place
        if data[at + place] < 0x80:
            return value, at + place + 1
    return 0, -1 << 40


def files_under(folder: Path) -> dict[str, bytes]:
    """Every regular file, names as part of what is to be searched."""
    return {
        str(path.relative_to(folder)): path.name.encode() + b"\n" + path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
