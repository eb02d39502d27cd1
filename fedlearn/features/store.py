"""A population of Queries on disk: written as a stream, read through memory maps. ::

    meta.json     written last: format, version, index digest, counts, and every file's size in bytes
    queries.bin   i32, the flat form of every Query, one after the other      offsets.bin   i64[rows + 1] into it
    labels.bin    i64[rows]                                                   rows.bin      i64[devices + 1] into rows
    devices.txt, groups.txt   one JSON string a line: device ids; the group of each row

All numbers are little-endian. There is no text of a message in any of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import CatalogueMismatch, DataCorrupt, DataMissing, OutOfRange
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.query import Query

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

_FORMAT, _VERSION = "fedlearn-queries", 1
_META = "meta.json"
_FILES = ("queries.bin", "offsets.bin", "labels.bin", "rows.bin", "devices.txt", "groups.txt")


class QueryStoreWriter:
    """Write a store device by device; memory does not grow with the population. Use as a context manager.

    The store becomes readable when the block ends without an error; until then ``QueryStore.open`` refuses it.

    Args:
        path: folder to write; a store that is there is replaced.
        index: index with which the queries were made.
    """

    def __init__(self, path: Path, index: CatalogueIndex) -> None:
        self._path = Path(path)
        self._digest = index.digest
        self._items = index.n
        self._files: Mapping[str, BinaryIO] = {}
        self._stack = ExitStack()
        self._rows = self._devices = self._numbers = 0
        self._seen: set[bytes] = set()

    def __enter__(self) -> QueryStoreWriter:
        self._path.mkdir(parents=True, exist_ok=True)
        (self._path / _META).unlink(missing_ok=True)
        self._files = {name: self._stack.enter_context((self._path / name).open("wb")) for name in _FILES}
        self._put("offsets.bin", np.zeros(1, "<i8"))
        self._put("rows.bin", np.zeros(1, "<i8"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if kind is None:
            sizes = {name: (self._path / name).stat().st_size for name in _FILES}
            meta = _Meta(_FORMAT, _VERSION, self._digest, self._devices, self._rows, self._numbers, sizes)
            (self._path / _META).write_text(json.dumps(asdict(meta), indent=1) + "\n")

    def add(self, device_id: str, queries: Sequence[Query], labels: Sequence[int], groups: Sequence[str]) -> None:
        """Append one device; its rows keep their order. A device without rows is kept too.

        Args:
            device_id: unique name.
            queries: one a session.
            labels: position of the chosen item, 0..n-1, one a query.
            groups: group of the session, one a query.

        Raises:
            OutOfRange: lengths differ, or a label is no item.
            DataCorrupt: an empty id, or one that was added before.
            CatalogueMismatch: a query was made with another index.
        """
        self._refuse_twice(device_id)
        if not len(queries) == len(labels) == len(groups):
            raise OutOfRange(
                f"device has {len(queries)} queries, {len(labels)} labels, {len(groups)} groups: one each."
            )
        if any(not 0 <= label < self._items for label in labels):
            raise OutOfRange(f"label outside 0..{self._items - 1}: labels are positions in the catalogue.")
        if any(query.digest != self._digest for query in queries):
            raise CatalogueMismatch("a query was made with another index than the store's: make it again.")
        flats = [query.flat() for query in queries]
        ends = self._numbers + np.cumsum([len(f) for f in flats], dtype="<i8")
        for flat in flats:
            self._put("queries.bin", flat)
        self._put("offsets.bin", ends)
        self._put("labels.bin", np.array(labels, dtype="<i8"))
        self._rows += len(flats)
        self._devices += 1
        self._numbers = int(ends[-1]) if flats else self._numbers
        self._put("rows.bin", np.array([self._rows], dtype="<i8"))
        self._files["devices.txt"].write(_line(device_id))
        self._files["groups.txt"].writelines(map(_line, groups))

    def _refuse_twice(self, device_id: str) -> None:
        """One device is one unit of privacy: under one id twice, it would move a sum by twice the clip norm."""
        mark = hashlib.blake2b(device_id.encode(), digest_size=16).digest()
        if not device_id or mark in self._seen:
            raise DataCorrupt(
                f"device id {device_id!r} is empty or appears twice: every device needs an id of its own."
            )
        self._seen.add(mark)

    def _put(self, name: str, values: NDArray[np.signedinteger]) -> None:
        self._files[name].write(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())


def _line(text: str) -> bytes:
    return (json.dumps(text, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, slots=True)
class _Meta:
    format: str
    version: int
    digest: str
    devices: int
    rows: int
    numbers: int
    sizes: Mapping[str, int]


@dataclass(frozen=True)
class QueryStore:
    """Read a store without loading it.

    Args:
        path: its folder.
        digest: digest of the index its queries were made with.
        labels: i64[rows], position of the chosen item.
    """

    path: Path
    digest: str
    labels: I64 = field(repr=False)
    _queries: I32 = field(repr=False)
    _offsets: I64 = field(repr=False)
    _rows: I64 = field(repr=False)

    @staticmethod
    def open(path: Path, index: CatalogueIndex | None = None) -> QueryStore:
        """Open a finished store.

        Args:
            path: its folder.
            index: if given, the index that the queries must have been made with.

        Raises:
            DataMissing: there is no store.
            DataCorrupt: writing it was not finished, or a file is shorter or longer than it was.
            CatalogueMismatch: made with another index.
        """
        path = Path(path)
        meta = _read_meta(path)
        if index is not None and index.digest != meta.digest:
            raise CatalogueMismatch(f"{path} was made with another catalogue or feature version: write it again.")
        for name, size in meta.sizes.items():
            found = (path / name).stat().st_size if (path / name).is_file() else None
            if found != size:
                raise DataCorrupt(f"{path / name}: expected {size} bytes, found {found or 0}; write the store again.")
        return QueryStore(
            path,
            meta.digest,
            _map(path / "labels.bin", "<i8", meta.rows),
            _map(path / "queries.bin", "<i4", meta.numbers),
            _map(path / "offsets.bin", "<i8", meta.rows + 1),
            _map(path / "rows.bin", "<i8", meta.devices + 1),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def devices(self) -> tuple[str, ...]:
        """Device ids, in the order in which they were written."""
        return _read_lines(self.path / "devices.txt")

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Group of each row."""
        return _read_lines(self.path / "groups.txt")

    def rows(self, device: int) -> range:
        """Rows of the device at a position in ``devices``."""
        return range(int(self._rows[device]), int(self._rows[device + 1]))

    def query(self, row: int) -> Query:
        """Return one Query; its arrays are views of the memory map.

        Raises:
            DataCorrupt: its numbers contradict each other.
        """
        flat = self._queries[int(self._offsets[row]) : int(self._offsets[row + 1])]
        return Query.from_flat(flat, self.digest)


def _read_meta(path: Path) -> _Meta:
    if not path.is_dir():
        raise DataMissing(f"{path} holds no Query store: write one with QueryStoreWriter.")
    try:
        meta = _Meta(**json.loads((path / _META).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataCorrupt(
            f"{path / _META} is absent or damaged: the store was not finished; write it again."
        ) from error
    if (meta.format, meta.version) != (_FORMAT, _VERSION) or set(meta.sizes) != set(_FILES):
        raise DataCorrupt(f"{path / _META}: expected {_FORMAT} version {_VERSION}; write the store again.")
    return meta


def _map(path: Path, kind: str, count: int) -> NDArray[Any]:
    if path.stat().st_size != count * np.dtype(kind).itemsize:
        raise DataCorrupt(f"{path}: expected {count} numbers of type {kind}; write the store again.")
    return np.memmap(path, dtype=kind, mode="r") if count else np.zeros(0, dtype=kind)


def _read_lines(path: Path) -> tuple[str, ...]:
    return tuple(json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1])
