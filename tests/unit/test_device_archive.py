"""The container: any unzip reads it, and our reader takes exactly what our writer makes."""

from __future__ import annotations

import hashlib
import io
import struct
import tracemalloc
import zipfile

import pytest

from fedlearn.device.archive import MOST_FILES, read_archive, write_archive
from fedlearn.errors import BundleRefused

FILES = {"b.bin": bytes(range(256)), "a.json": b"{}", "empty": b"", "z_9.x": b"PK\x03\x04PK\x05\x06"}
CAP = 10_000


def test_round_trip_in_name_order() -> None:
    found = read_archive(write_archive(FILES), CAP)
    assert found == FILES
    assert list(found) == sorted(FILES)


def test_equal_files_give_equal_bytes_for_ever() -> None:
    data = write_archive(FILES)
    assert data == write_archive(dict(reversed(FILES.items())))
    # fixed: a changed container would make every bundle of before unreadable
    assert hashlib.sha256(data).hexdigest() == "eae8762aac500bd571d42a3b8bb7559379194c5105cdadb0cc207b516cb86181"


def test_any_unzip_reads_it() -> None:
    with zipfile.ZipFile(io.BytesIO(write_archive(FILES))) as archive:
        assert archive.testzip() is None
        assert {info.filename: archive.read(info) for info in archive.infolist()} == FILES
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert all(info.date_time == (1980, 1, 1, 0, 0, 0) for info in archive.infolist())


def test_every_byte_and_every_length_counts() -> None:
    data = write_archive(FILES)
    for place in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            with pytest.raises(BundleRefused):
                read_archive(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :], CAP)
        with pytest.raises(BundleRefused):
            read_archive(data[:place], CAP)
    for more in (b"\x00", b"PK", data):
        with pytest.raises(BundleRefused):
            read_archive(data + more, 2 * CAP)


def test_size_is_judged_first() -> None:
    data = write_archive(FILES)
    assert read_archive(data, len(data)) == FILES
    with pytest.raises(BundleRefused, match=f"{len(data)} bytes; at most {len(data) - 1}"):
        read_archive(data, len(data) - 1)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            ".",
            "..",
            "../x",
            "/x",
            "a/b",
            "a\\b",
            "C:",
            "x" * 64,
            "A",
            "ä",
            "a b",
            "a\x00",
            "a\n",
            "_a",
            ".a",
            "-a",
        ),
        "a-b",
    ],
)
def test_names_that_an_unzip_could_follow_elsewhere(name: str) -> None:
    with pytest.raises(BundleRefused, match="name"):
        write_archive({name: b""})


def test_number_of_files() -> None:
    most = {f"f{number}": b"" for number in range(MOST_FILES)}
    assert read_archive(write_archive(most), CAP) == most
    for wrong in ({}, {**most, "more": b""}):
        with pytest.raises(BundleRefused, match="files"):
            write_archive(wrong)
    entry = struct.Struct("<4s5H3I2H").pack(b"PK\x03\x04", 20, 0, 0, 0, 33, 0, 0, 0, 3, 0)
    many = b"".join(entry + f"{number:03}".encode() for number in range(100))
    with pytest.raises(BundleRefused, match="more than"):
        read_archive(many, CAP)


def test_a_size_that_lies_takes_no_memory() -> None:
    data = bytearray(write_archive({"a": b"x"}))
    for offset in (18, 22):
        data[offset : offset + 4] = b"\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        with pytest.raises(BundleRefused, match="cut short"):
            read_archive(bytes(data), CAP)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"PK\x03\x04", b"PK\x03\x04" + bytes(26), b"PK\x05\x06" + bytes(18), bytes(100)]
)
def test_what_is_no_archive(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        read_archive(data, CAP)
