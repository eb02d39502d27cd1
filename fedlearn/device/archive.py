"""The container of bundles: a ZIP file with exactly one way to write it.

Files are stored uncompressed, in name order, with fixed times and attributes: any unzip opens it, and equal files give
equal bytes. The reader walks the local headers, writes the archive again from what it found, and compares: there is no
byte that it does not account for. ``zipfile`` is not used, because it reads far more than this (ZIP64, comments,
several directories) and because what it writes may change with Python's version.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from typing import Final

from fedlearn.errors import BundleRefused

MOST_FILES: Final = 32
MOST_ARCHIVE_BYTES: Final = 2**31 - 1
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.]{0,62}\Z")  # no folder, no drive, nothing that an unzip could follow

_LOCAL: Final = struct.Struct("<4s5H3I2H")
_CENTRAL: Final = struct.Struct("<4s6H3I5H2I")
_END: Final = struct.Struct("<4s4H2IH")
_VERSION: Final = 20
_STORED: Final = 0
_TIME: Final = 0
_DATE: Final = (1980 - 1980) << 9 | 1 << 5 | 1  # the first day that ZIP knows


def write_archive(files: Mapping[str, bytes]) -> bytes:
    """Return the archive of ``files``: a pure function of names and contents.

    Args:
        files: name (a-z 0-9 _ . , at most 63 characters, not beginning with _ or .) -> content; 1..32 of them.

    Raises:
        BundleRefused: a name that is not allowed, too many files, or more than 2 GiB.
    """
    if not 1 <= len(files) <= MOST_FILES:
        raise BundleRefused(f"archive: {len(files)} files; must be 1..{MOST_FILES}.")
    if sum(map(len, files.values())) > MOST_ARCHIVE_BYTES - MOST_FILES * 256:
        raise BundleRefused("archive: more than 2 GiB.")
    body, directory, offset = [], [], 0
    for name in sorted(files):
        _require_name(name)
        encoded, content = name.encode("ascii"), files[name]
        common = (_VERSION, 0, _STORED, _TIME, _DATE, zlib.crc32(content), len(content), len(content), len(encoded), 0)
        head = _LOCAL.pack(b"PK\x03\x04", *common) + encoded
        body += [head, content]
        directory.append(_CENTRAL.pack(b"PK\x01\x02", _VERSION, *common, 0, 0, 0, 0, offset) + encoded)
        offset += len(head) + len(content)
    listed = b"".join(directory)
    count = len(files)
    end = _END.pack(b"PK\x05\x06", 0, 0, count, count, len(listed), offset, 0)
    return b"".join((*body, listed, end))


def read_archive(data: bytes, max_bytes: int) -> dict[str, bytes]:
    """Return name -> content, in name order.

    Args:
        data: the archive.
        max_bytes: largest archive that is read; nothing is copied before it is checked.

    Raises:
        BundleRefused: too large, or one byte other than ``write_archive`` would have written.
    """
    if len(data) > max_bytes:
        raise BundleRefused(f"archive: {len(data)} bytes; at most {max_bytes}.")
    files: dict[str, bytes] = {}
    offset = 0
    while data[offset : offset + 4] == b"PK\x03\x04":
        if len(files) == MOST_FILES:
            raise BundleRefused(f"archive: more than {MOST_FILES} files.")
        name, start, stop = _entry(data, offset)
        if files and name <= max(files):
            raise BundleRefused("archive: files must be in name order, each once.")
        files[name] = bytes(data[start:stop])
        offset = stop
    if not files or write_archive(files) != data:
        raise BundleRefused("archive: not written by write_archive, or changed since.")
    return files


def _entry(data: bytes, offset: int) -> tuple[str, int, int]:
    """Return name, start and end of the content of the file whose local header is at ``offset``."""
    begin = offset + _LOCAL.size
    if begin > len(data):
        raise BundleRefused("archive: cut short.")
    *_, size, _, name_bytes, _ = _LOCAL.unpack_from(data, offset)
    start = begin + name_bytes
    if start + size > len(data):
        raise BundleRefused("archive: cut short.")
    name = data[begin:start].decode("ascii", errors="replace")
    _require_name(name)
    return name, start, start + size


def _require_name(name: str) -> None:
    if not _NAME.match(name):
        raise BundleRefused("archive: a file name is not of a-z 0-9 _ . alone, or too long.")
