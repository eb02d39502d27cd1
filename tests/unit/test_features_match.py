"""match: BM25 against a slow oracle, each column by hand, masks, identity with match_all."""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedlearn.catalogue import Catalogue, Item
from fedlearn.errors import CatalogueMismatch, EmptyPopulation, UnknownSetting
from fedlearn.features import FEATURES, CatalogueIndex, feature_mask, match, match_all
from fedlearn.features.text import normalise, terms

_path = Path(__file__).parents[1] / "unit" / "features_town.py"
_spec = importlib.util.spec_from_file_location("features_town", _path)
assert _spec is not None
assert _spec.loader is not None
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)


def slow_bm25(text: str, items: tuple[Item, ...]) -> list[float]:
    """Robertson & Zaragoza 2009, eq. 3.15, term by term."""
    texts = [[normalise(v) for values in item.attributes.values() for v in values] for item in items]
    bags = [Counter(t for text in one for t, _ in terms(text)) for one in texts]
    mean = sum(sum(b.values()) for b in bags) / len(bags)
    scores = [0.0] * len(items)
    for term in {t for t, _ in terms(normalise(text))}:
        df = sum(term in b for b in bags)
        idf = math.log(1 + (len(items) - df + 0.5) / (df + 0.5))
        for i, bag in enumerate(bags):
            norm = 1.2 * (0.25 + 0.75 * sum(bag.values()) / mean)
            scores[i] += idf * bag[term] * 2.2 / (bag[term] + norm)
    top = max(scores)
    return [s / top for s in scores]


@pytest.mark.parametrize("text", ["烤鸭", "麻辣火锅和鸭汤", "spicy hotpot or pizza", "豆腐"])
def test_words_equal_the_slow_oracle(text: str) -> None:
    fast = match_all(town.query(text), town.INDEX)[:, town.COLUMN["words"]]
    np.testing.assert_allclose(fast, slow_bm25(text, town.ITEMS), rtol=1e-6)  # f32 columns of f64 sums


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("dish", "毛肚", [1, 0, 0, 0, 0]),
        ("dish", "毛肚,鸭汤", [0.5, 0.5, 0, 0, 0]),
        ("kind", "川菜", [1, 0, 0, 0, 0]),
        ("facility", "要有wifi", [1, 0, 0, 0, 0]),
        ("rejected", "不要川菜", [1, 0, 0, 0, 0]),
        ("price_fit", "人均100-150元", [1, -0.4126, -0.3184, -1, 0]),
        ("price_level_fit", "便宜点", [-0.25, -0.75, 0.25, 0.75, 0]),
        ("free", "免费的", [0, 0, 0, 1, 0]),
        ("rating_fit", "4.5分以上", [1, -0.3, 1, 0, -1]),
        ("near_named", "青山公园附近", [0.5, 0, 0, 0, 0]),
        ("rating", "", [0.92, 0.84, 0.96, 0, 0.7]),
        ("price_level", "", [0.625, 0.875, 0.375, 0.125, 0]),
    ],
)
def test_chat_and_catalogue_columns_by_hand(name: str, text: str, expected: list[float]) -> None:
    assert town.column(name, text) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(
    ("name", "text", "earlier", "expected"),
    [
        ("near_other", "", ("attraction:旧城博物馆",), [0.25, 0.25, 0, 0, 0]),
        ("near_wished", "附近", ("attraction:旧城博物馆",), [0.25, 0.25, 0, 0, 0]),
        ("near_wished", "", ("attraction:旧城博物馆",), [0, 0, 0, 0, 0]),
        ("near_last_wished", "附近", ("attraction:旧城博物馆", "attraction:青山公园"), [0.5, 0, 0, 0, 0]),
        ("near_own", "", ("restaurant:便宜坊烤鸭",), [0, 0, 0, 0.25, 0]),
        ("alike_other", "", ("book:川菜入门",), [0.4, 0, 0, 0, 0]),
        ("alike_own", "", ("restaurant:老王火锅",), [0.4, 0, 0, 0, 0]),
        ("chosen_before", "", ("restaurant:Luigi",), [0, 0, 1, 0, 0]),
        ("price_alike", "", ("restaurant:Luigi",), [0.5, 0, 1, 0.5, 0]),
    ],
)
def test_choice_columns_by_hand(name: str, text: str, earlier: tuple[str, ...], expected: list[float]) -> None:
    assert town.column(name, text, earlier=earlier) == pytest.approx(expected, abs=2e-4)


def test_duration_is_overlap_over_union() -> None:
    sights = CatalogueIndex.build(Catalogue("sights", "attraction", town.CONTEXT[:2]))
    query = town.make_query(town.said("玩3小时"), sights)
    found = match_all(query, sights)[:, town.COLUMN["hours_fit"]]
    assert found.tolist() == pytest.approx([0.0, 1.0])


def test_match_is_bit_identical_to_match_all() -> None:
    query = town.query("想吃烤鸭,不要川菜,100-200元,4.5分以上,附近", earlier=("book:川菜入门", "attraction:青山公园"))
    everything = match_all(query, town.INDEX)
    for candidates in ([0], [4, 1], [3, 3, 0, 2]):
        some = match(query, town.INDEX, np.array(candidates))
        assert some.tobytes() == np.ascontiguousarray(everything[candidates]).tobytes()
        assert some.dtype == np.float32


def test_mask_keeps_a_column_only_if_all_its_sources_are_on() -> None:
    names = np.array([spec.name for spec in FEATURES])
    assert names[feature_mask(["catalogue"])].tolist() == ["rating", "price_level"]
    assert "near_last_wished" not in names[feature_mask(["choices", "catalogue"])]
    assert feature_mask(["chat", "choices", "catalogue"]).all()
    assert not feature_mask([]).any()
    with pytest.raises(UnknownSetting, match="chats"):
        feature_mask(["chats"])


def test_masked_columns_do_not_depend_on_the_source_that_is_off() -> None:
    with_both = match_all(town.query("川菜,附近", earlier=("attraction:青山公园",)), town.INDEX)
    chat_only = match_all(town.query("川菜,附近"), town.INDEX)
    choices_only = match_all(town.query(earlier=("attraction:青山公园",)), town.INDEX)
    for sources, alone in ((["chat", "catalogue"], chat_only), (["choices", "catalogue"], choices_only)):
        mask = feature_mask(sources)
        np.testing.assert_array_equal(with_both[:, mask], alone[:, mask])


def test_another_catalogue_is_refused() -> None:
    other = CatalogueIndex.build(Catalogue("town", "restaurant", town.ITEMS[:-1], town.CONTEXT))
    with pytest.raises(CatalogueMismatch, match="again"):
        match_all(town.query("川菜"), other)


def test_empty_catalogue_is_refused() -> None:
    with pytest.raises(EmptyPopulation, match="restaurant"):
        CatalogueIndex.build(Catalogue("none", "restaurant", ()))


def test_feature_names_are_unique_and_few() -> None:
    assert len({spec.name for spec in FEATURES}) == len(FEATURES) <= 24
