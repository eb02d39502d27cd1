"""Golden vectors: text -> Query -> match, frozen so that a port in another language can be checked against them.

``features.json`` was written by this file (``python tests/golden/test_features_golden.py``) and read over by hand; it
changes only together with ``fedlearn.features.index.SPEC_VERSION``. Integers must be equal, floats within 1e-6 (the
last bit of log and division differs between platforms).
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.catalogue import Catalogue, Item
from fedlearn.features import FEATURES, CatalogueIndex, make_query, match_all
from fedlearn.features.text import normalise, terms
from fedlearn.signals import Choice, Direction, Message, Session

FILE = Path(__file__).with_name("features.json")

TEXTS = (
    "我想吃 麻辣火锅，人均１００－１５０元",
    "Don’t want Margherita Pizzas",
    "3小时 - 4小时",
    "ＷｉＦｉ\r\n包间",
)
SESSIONS: tuple[tuple[tuple[tuple[str, str, tuple[tuple[int, int], ...]], ...], tuple[tuple[str, str], ...]], ...] = (
    ((), ()),
    ((("想吃麻辣火锅,人均100-150元,4.5分以上", "outgoing", ()),), ()),
    ((("不要川菜,最好有停车位", "outgoing", ()),), (("book:川菜入门", "books"),)),
    ((("想吃麻辣火锅", "outgoing", ()), ("算了,换成烤鸭,附近", "outgoing", ())), (("attraction:旧城博物馆", "maps"),)),
    ((("要不吃川菜?", "incoming", ()), ("「川菜」不错,便宜点", "outgoing", ((0, 4),))), ()),
    ((("any place for roast duck, under 200 yuan", "outgoing", ()), ("with outdoor seating", "outgoing", ())), ()),
    ((("actually, tiramisu instead, rated 4.5 or above, nearby", "outgoing", ()),), (("restaurant:Luigi", "dining"),)),
    (
        (("推荐一家川菜餐馆", "outgoing", ()), ("景点要免费的", "outgoing", ()), ("再找一家意餐餐馆", "outgoing", ())),
        (),
    ),
    (
        (("青山公园附近有什么好吃的", "outgoing", ()),),
        (("attraction:青山公园", "maps"), ("restaurant:素心斋", "dining")),
    ),
    ((("我叫张伟,电话13812345678", "outgoing", ()),), ()),
)


def session_of(row: Any) -> Session:
    messages, earlier = row
    said = [
        Message(text, Direction(way), i, tuple((a, b) for a, b in spans))
        for i, (text, way, spans) in enumerate(messages)
    ]
    return Session(tuple(said), tuple(Choice(key, app, i - 9) for i, (key, app) in enumerate(earlier)), 0, "g")


def catalogue_of(rows: Any) -> Catalogue:
    def item(row: Any) -> Item:
        domain, name, attributes, price, rating, duration, nearby = row
        values = {key: tuple(v) for key, v in attributes.items()}
        return Item(domain, name, values, price, rating, duration, tuple(nearby))

    return Catalogue("golden", "restaurant", tuple(map(item, rows["items"])), tuple(map(item, rows["context"])))


def answer(session: Session, index: CatalogueIndex) -> dict[str, Any]:
    query = make_query(session, index)
    blocks = {name: getattr(query, name).tolist() for name in ("terms", "values", "names", "choices")}
    wishes = [None if np.isnan(w) else float(w) for w in query.wishes]
    return {**blocks, "wishes": wishes, "match": np.round(match_all(query, index).astype(float), 7).tolist()}


@pytest.fixture(scope="module")
def golden() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def index(golden: Any) -> CatalogueIndex:
    return CatalogueIndex.build(catalogue_of(golden["catalogue"]))


def test_columns_and_digest(golden: Any, index: CatalogueIndex) -> None:
    assert [spec.name for spec in FEATURES] == golden["features"]
    assert index.digest == golden["index_digest"]
    assert list(index.terms) == golden["vocabulary"]
    assert list(index.values.ids) == golden["values"]


def test_normalised_texts_and_terms(golden: Any) -> None:
    for row in golden["texts"]:
        assert normalise(row["raw"]) == row["normalised"]
        assert [[t, at] for t, at in terms(row["normalised"])] == row["terms"]


@pytest.mark.parametrize("number", range(len(SESSIONS)))
def test_session(golden: Any, index: CatalogueIndex, number: int) -> None:
    row = golden["sessions"][number]
    found = answer(session_of((row["messages"], row["earlier"])), index)
    for name in ("terms", "values", "names", "choices"):
        assert found[name] == row[name]
    assert found["wishes"] == pytest.approx(row["wishes"], abs=1e-6)
    np.testing.assert_allclose(found["match"], row["match"], atol=1e-6)


def test_the_present_inputs_are_the_frozen_ones(golden: Any) -> None:
    assert [row["raw"] for row in golden["texts"]] == list(TEXTS)
    frozen = [(row["messages"], row["earlier"]) for row in golden["sessions"]]
    assert json.loads(json.dumps(SESSIONS)) == [list(pair) for pair in frozen]


def write() -> None:
    """Write the golden file from the present code."""
    path = Path(__file__).parents[1] / "unit" / "features_town.py"
    spec = importlib.util.spec_from_file_location("features_town", path)
    assert spec is not None
    assert spec.loader is not None
    town = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(town)

    def row(i: Item) -> list[Any]:
        return [i.domain, i.name, dict(i.attributes), i.price, i.rating, i.duration, list(i.nearby)]

    rows = {"items": [row(i) for i in town.ITEMS], "context": [row(i) for i in town.CONTEXT]}
    index = CatalogueIndex.build(catalogue_of(json.loads(json.dumps(rows))))
    golden = {
        "features": [spec.name for spec in FEATURES],
        "index_digest": index.digest,
        "vocabulary": list(index.terms),
        "values": list(index.values.ids),
        "texts": [
            {"raw": t, "normalised": normalise(t), "terms": [list(x) for x in terms(normalise(t))]} for t in TEXTS
        ],
        "sessions": [{"messages": m, "earlier": e, **answer(session_of((m, e)), index)} for m, e in SESSIONS],
        "catalogue": rows,
    }
    FILE.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
