"""Golden bytes of Saids: text -> what a phone keeps of it, frozen so that a port can be checked against them.

``said.json`` was written by this file (``python tests/golden/test_said_golden.py``) over the catalogue of
``features.json`` and read over by hand; it changes only with the layout's version in ``fedlearn.features.said``.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from fedlearn.features import CatalogueIndex, read_message, said_bytes, said_from_bytes

FILE = Path(__file__).with_name("said.json")
_spec = importlib.util.spec_from_file_location("features_golden", Path(__file__).with_name("test_features_golden.py"))
assert _spec is not None
assert _spec.loader is not None
features: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(features)

TEXTS: tuple[tuple[str, tuple[tuple[int, int], ...]], ...] = (
    ("", ()),
    ("我叫张伟,电话13812345678", ()),
    ("想吃麻辣火锅,人均100-150元,4.5分以上", ()),
    ("不要川菜,最好有停车位", ()),
    ("算了,换成烤鸭,附近", ()),
    ("麻辣火锅,不了,改成经典烤鸭", ()),
    ("「川菜」不错,便宜点", ((0, 4),)),
    ("「川菜」不错,便宜点", ()),
    ("找个景点", ()),
    ("推荐一家川菜餐馆", ()),
    ("any place for roast duck, at least 200 yuan, 2 to 3 hours", ()),
    ("with wifi but without outdoor seating", ()),
    ("actually, tiramisu instead, rated 4.3 or above, free entry near Luigi", ()),
    ("老王火锅和青山公园, 毛肚毛肚毛肚", ()),
)


def index() -> CatalogueIndex:
    rows = json.loads(features.FILE.read_text(encoding="utf-8"))["catalogue"]
    return CatalogueIndex.build(features.catalogue_of(rows))


def answers() -> list[dict[str, Any]]:
    known = index()
    found = []
    for text, spans in TEXTS:
        said = read_message(text, spans, known)
        found.append(
            {
                "text": text,
                "foreign_spans": list(map(list, spans)),
                "said": "" if said is None else said_bytes(said).hex(),
            }
        )
    return found


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def test_texts_become_the_frozen_bytes(golden: list[dict[str, Any]]) -> None:
    assert answers() == golden


def test_the_frozen_bytes_are_read_back(golden: list[dict[str, Any]]) -> None:
    for row in golden:
        if row["said"]:
            data = bytes.fromhex(row["said"])
            assert said_bytes(said_from_bytes(data)) == data


if __name__ == "__main__":
    FILE.write_text(json.dumps(answers(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
