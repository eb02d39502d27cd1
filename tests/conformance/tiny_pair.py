"""Puts two implementations of the features side by side: ``fedlearn.features`` and ``tiny_device``."""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fedlearn.catalogue import Catalogue
from fedlearn.device.catalogue_file import catalogue_bytes
from fedlearn.features import CatalogueIndex, make_query, match_all
from fedlearn.lab.city import City, CityConfig
from fedlearn.signals import Choice, Direction, Message, Session


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


tiny: Any = load("tiny_device")
pb, device_pb2 = tiny.pb, tiny.device_pb2


class Pair:
    """The two indices of one catalogue."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.index = CatalogueIndex.build(catalogue)
        self.tiny = tiny.Index(catalogue_bytes(catalogue))
        assert self.tiny.digest == self.index.digest
        assert list(self.tiny.terms) == list(self.index.terms)
        assert list(self.tiny.values.ids) == list(self.index.values.ids)
        assert list(self.tiny.names.ids) == list(self.index.names.ids)

    def same_query(self, session: Session) -> bool:
        """Whether the two Queries are equal, integer for integer."""
        expected: list[int] = make_query(session, self.index).flat().tolist()
        return bool(tiny.make_query(asked(session), self.tiny) == expected)

    def farthest(self, session: Session) -> int:
        """Return the largest distance of two features, in steps of f32."""
        query = make_query(session, self.index)
        columns = tiny.Matcher(query.flat().tolist(), self.tiny).columns
        found = np.array([columns[name] for name in tiny.NEEDS], np.float32)
        return int(np.abs(_places(found) - _places(np.ascontiguousarray(match_all(query, self.index).T))).max())


def _places(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Number f32 values in their order; 0 and -0 are one place."""
    bits = (values + np.float32(0)).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def asked(session: Session) -> Any:
    """Return a session as the contract has it."""
    ways = {Direction.OUTGOING: device_pb2.DIRECTION_OUTGOING, Direction.INCOMING: device_pb2.DIRECTION_INCOMING}
    messages = [
        device_pb2.MessageSignal(
            text=message.text,
            direction=ways[message.direction],
            foreign_spans=[device_pb2.Span(start=a, end=b) for a, b in message.foreign_spans],
        )
        for message in session.messages
    ]
    return pb.MakeQuery(messages=messages, earlier=[pb.Choice(item=c.item, app=c.app) for c in session.earlier])


def city(seed: int) -> City:
    return City(CityConfig(seed=seed, devices=5000))


def sentences(town: City, count: int) -> Iterator[Session]:
    """Yield sessions of the city's people."""
    for device in town.devices():
        for session in device.sessions:
            if count == 0:
                return
            count -= 1
            yield session


NUMBERS = (
    *(
        "30",
        "100",
        "1620",
        "4.5",
        "3",
        "0.5",
        "1,200",
        "12:30",
        "13812345678",
        "２０",
        "①",
        "٣٠",
        "½",
        "半",
        "两",
        "一百二",
    ),
    *("三十", "二十五", "一千零五", "twenty five", "one hundred", "half an hour", "半天"),
)
UNITS = (
    *(
        "元",
        "块",
        "块钱",
        "dollars",
        " dollars",
        "$",
        "¥",
        "/人",
        "小时",
        " hours",
        "个小时",
        "分",
        "分钟",
        "星",
        "stars",
        "%",
        "km",
    ),
    *("天", "以下", "以上", "左右", " or less", " or more", "起", "到", "-", "~", "至", " to ", " and "),
)
MARKS = (
    *(
        ",",
        "，",
        "。",
        ".",
        "\n",
        "\r\n",
        " ",
        "  ",
        "\u3000",
        "\t",
        "！",
        "?",
        "；",
        "\u2028",
        "\x85",
        "\x1c",
        "'",
        "’",
        "-",
        "–",
    ),
    *("_", "s", "S", "\u0301", "ß", "İ", "ﬁ", "𠮷", "👨‍👩‍👧", "한국", "ſ", "가", "ا", "\u200b", "\u00ad", "`"),
)
BLOCKS = ((0x20, 0x250), (0x300, 0x3000), (0x3000, 0xD7FF), (0x1D400, 0x1D7FF))


def hostile(pair: Pair, town: City, count: int, seed: int) -> Iterator[Session]:
    """Yield sessions that nobody would write: cues, values, names, numbers and units at random, cut anywhere."""
    rng = random.Random(seed)
    cues = sorted(
        {word for text in _texts(tiny.TABLES) for word in re.findall(r"[a-z' ]{2,}|[\u3400-\u9fff]+|\d+", text)}
    )
    spoken = [message.text for session in sentences(town, 400) for message in session.messages]
    sources = (cues, list(pair.index.values.ids), list(pair.index.names.ids), spoken, NUMBERS, UNITS, MARKS)
    keys = [*pair.index.keys, "nowhere:1"]

    def piece() -> str:
        if rng.random() < 0.03:
            return "".join(chr(rng.randrange(*rng.choice(BLOCKS))) for _ in range(3))
        (source,) = rng.choices(sources, (25, 20, 5, 10, 15, 15, 20))
        return rng.choice(source) + rng.choice(("", "", " "))

    def message() -> Message:
        text = "".join(piece() for _ in range(rng.randrange(14)))
        text = text.upper() if rng.random() < 0.1 else text
        starts = [rng.randrange(len(text) + 1) for _ in range(rng.choice((0, 0, 0, 1, 2)))]
        spans = tuple((start, min(len(text), start + rng.randrange(9))) for start in starts)
        return Message(text, Direction.OUTGOING if rng.random() < 0.85 else Direction.INCOMING, 0, spans)

    for _ in range(count):
        chosen = [
            Choice(rng.choice(keys), rng.choice(("maps", "地图"))) for _ in range(rng.choice((0, 0, 1, 3, 9, 20)))
        ]
        yield Session(tuple(message() for _ in range(rng.randrange(1, 6))), tuple(chosen), 0, "hostile")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
