"""The owner's exports: only the owner's lines, right times, refusals that name the fix."""

from __future__ import annotations

import io
import json
from datetime import datetime

import pytest

from fedlearn.errors import SignalRefused
from fedlearn_client.imports import FORMATS, OwnLine

ANDROID = """31/12/2023, 21:40 - Messages and calls are end-to-end encrypted.
31/12/2023, 21:41 - Ana: are we still on for noodles?
31/12/2023, 21:42 - Bo Li: no: I want sichuan
and something cheap
01/02/2024, 09:05 - Bo Li: <Media omitted>
01/02/2024, 09:06 - Ana: Bo Li: is quoted here
"""
IOS = "\ufeff[12/31/23, 9:41:05\u202fPM] Bo Li: \u200eimage omitted\r\n"
IOS += "[1/2/24, 12:00:01\u202fAM] \u200eBo Li: 想吃川菜\r\n"


def read(text: str, owner: str = "Bo Li", form: str = "whatsapp-txt") -> list[OwnLine]:
    return list(FORMATS[form](io.BytesIO(text.encode()), owner))


def test_only_the_owners_lines_with_all_their_text() -> None:
    lines = read(ANDROID)
    assert [line.text for line in lines] == ["no: I want sichuan\nand something cheap"]
    assert lines[0].time == datetime(2023, 12, 31, 21, 42).timestamp()


def test_marks_halves_of_the_day_and_american_dates() -> None:
    lines = read(IOS)
    assert [line.text for line in lines] == ["想吃川菜"]
    assert lines[0].time == datetime(2024, 1, 2, 0, 0, 1).timestamp()


def test_other_peoples_words_are_not_in_what_comes_out() -> None:
    assert "noodles" not in "".join(line.text for line in read(ANDROID))
    assert "noodles" in "".join(line.text for line in read(ANDROID, "Ana"))


@pytest.mark.parametrize(
    ("text", "owner", "names"),
    [
        ("hello\n", "Bo", "no WhatsApp export"),
        ("", "Bo", "no WhatsApp export"),
        ("1/2/24, 10:00 - Bo: a\n", "Bo", "several orders"),
        ("31/12/2023, 10:00 - Bo: a\n12/31/2023, 10:00 - Bo: b\n", "Bo", "no order"),
        (ANDROID, "Bo", "--me"),
        ("31/02/2023, 10:00 - Bo: a\n", "Bo", "does not exist"),
    ],
)
def test_bad_whatsapp_files(text: str, owner: str, names: str) -> None:
    with pytest.raises(SignalRefused, match=names):
        read(text, owner)


def test_a_file_that_is_not_text() -> None:
    with pytest.raises(SignalRefused, match="UTF-8"):
        list(FORMATS["whatsapp-txt"](io.BytesIO(b"31/12/2023, 21:41 - Bo: \xff\xfe\n"), "Bo"))


def test_no_text_in_repr() -> None:
    assert "sichuan" not in repr(read(ANDROID))


TELEGRAM = {
    "name": "Ana",
    "messages": [
        {"type": "service", "date": "2024-01-01T10:00:00", "actor": "Ana"},
        {"type": "message", "date_unixtime": "200", "from": "Bo", "from_id": "user7", "text": "later"},
        {"type": "message", "date_unixtime": "150", "from": "Ana", "from_id": "user8", "text": "hers"},
        {"type": "message", "date_unixtime": "120", "from": "Bo", "forwarded_from": "X", "text": "x"},
        {
            "type": "message", "date_unixtime": "100", "from": "Bo", "from_id": "user7",
            "text": ["I say ", {"type": "bold", "text": "this"}, {"type": "blockquote", "text": "theirs"}, ""],
        },
        {"type": "message", "date_unixtime": "90", "from": "Bo", "from_id": "user7", "text": ""},
    ],
}  # fmt: skip


@pytest.mark.parametrize("owner", ["Bo", "user7"])
@pytest.mark.parametrize("whole", [False, True])
def test_telegram_lines_are_sorted_and_quotes_are_foreign(owner: str, whole: bool) -> None:
    export = {"chats": {"list": [TELEGRAM]}} if whole else TELEGRAM
    lines = read(json.dumps(export), owner, "telegram-json")
    assert lines == [OwnLine("I say thistheirs", 100.0, ((10, 16),)), OwnLine("later", 200.0)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "no Telegram export"),
        ('{"chats": {"list": 3}}', "--me"),
        ('{"messages": [{"type": "message", "from": "Bo", "text": 3}]}', "text"),
        ('{"messages": [{"type": "message", "from": "Bo", "text": "a"}]}', "date"),
        ('{"messages": [{"type": "message", "from": "Bo", "text": "a", "date": "soon"}]}', "date"),
        ('{"messages": []}', "--me"),
    ],
)
def test_bad_telegram_files(text: str, names: str) -> None:
    with pytest.raises(SignalRefused, match=names):
        read(text, "Bo", "telegram-json")
