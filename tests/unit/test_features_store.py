"""QueryStore: round trip, streaming, and every kind of damage."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from fedlearn.catalogue import Catalogue
from fedlearn.errors import CatalogueMismatch, DataCorrupt, DataMissing, OutOfRange
from fedlearn.features import CatalogueIndex, Query, QueryStore, QueryStoreWriter

_path = Path(__file__).parents[1] / "unit" / "features_town.py"
_spec = importlib.util.spec_from_file_location("features_town", _path)
assert _spec is not None
assert _spec.loader is not None
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

QUERIES = (
    town.query("想吃烤鸭,100元以下", earlier=("attraction:青山公园",)),
    town.query(),
    town.query("no Sichuan please", "青山公园附近"),
)


def write(path: Path) -> None:
    with QueryStoreWriter(path, town.INDEX) as writer:
        writer.add("phone 1", QUERIES[:2], [1, 2], ["a\nb", "c"])
        writer.add("空", [], [], [])
        writer.add("phone 3", QUERIES[2:], [0], ["对话"])


def test_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "s")
    store = QueryStore.open(tmp_path / "s", town.INDEX)
    assert len(store) == 3
    assert store.devices == ("phone 1", "空", "phone 3")
    assert store.groups == ("a\nb", "c", "对话")
    assert [list(store.rows(i)) for i in range(3)] == [[0, 1], [], [2]]
    assert store.labels.tolist() == [1, 2, 0]
    for row, query in enumerate(QUERIES):
        found = store.query(row)
        assert found.digest == query.digest
        for name in ("terms", "values", "names", "choices", "wishes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(query, name))


def test_empty_store_opens(tmp_path: Path) -> None:
    with QueryStoreWriter(tmp_path, town.INDEX):
        pass
    store = QueryStore.open(tmp_path)
    assert len(store) == 0
    assert store.devices == ()


def test_no_text_reaches_the_disk(tmp_path: Path) -> None:
    write(tmp_path)
    data = b"".join(p.read_bytes() for p in tmp_path.iterdir())
    assert "烤鸭".encode() not in data
    assert b"Sichuan" not in data


@pytest.mark.parametrize("name", ["queries.bin", "offsets.bin", "labels.bin", "rows.bin", "devices.txt", "groups.txt"])
@pytest.mark.parametrize("damage", ["truncate", "grow", "remove"])
def test_damaged_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    write(tmp_path)
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(data[:-1] if damage == "truncate" else data + b"\0")
    with pytest.raises(DataCorrupt, match=name):
        QueryStore.open(tmp_path)


@pytest.mark.parametrize("meta", ["", "{", "[]", "{}", '{"format": 1}'])
def test_damaged_meta_is_refused(tmp_path: Path, meta: str) -> None:
    write(tmp_path)
    (tmp_path / "meta.json").write_text(meta)
    with pytest.raises(DataCorrupt, match=r"meta\.json"):
        QueryStore.open(tmp_path)


def test_other_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "version": 99}))
    with pytest.raises(DataCorrupt, match="version"):
        QueryStore.open(tmp_path)


def test_unfinished_store_is_refused(tmp_path: Path) -> None:
    write(tmp_path)

    def interrupted() -> None:
        with QueryStoreWriter(tmp_path, town.INDEX) as writer:
            writer.add("x", [], [], [])
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power"):
        interrupted()
    with pytest.raises(DataCorrupt, match="not finished"):
        QueryStore.open(tmp_path)


def test_absent_store_and_other_catalogue_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="nowhere"):
        QueryStore.open(tmp_path / "nowhere")
    write(tmp_path)
    other = CatalogueIndex.build(Catalogue("other", "restaurant", town.ITEMS))
    with pytest.raises(CatalogueMismatch, match="again"):
        QueryStore.open(tmp_path, other)
    with QueryStoreWriter(tmp_path / "o", other) as writer, pytest.raises(CatalogueMismatch, match="query"):
        writer.add("x", QUERIES[:1], [0], ["g"])


@pytest.mark.parametrize(("labels", "groups"), [([], ["g"]), ([0], []), ([5], ["g"]), ([-1], ["g"])])
def test_inconsistent_rows_are_refused(tmp_path: Path, labels: list[int], groups: list[str]) -> None:
    with QueryStoreWriter(tmp_path, town.INDEX) as writer, pytest.raises(OutOfRange, match="label"):
        writer.add("x", QUERIES[:1], labels, groups)


def test_query_whose_counts_lie_is_refused() -> None:
    flat = QUERIES[0].flat()
    for bad in (flat[:-1], flat[:2], np.concatenate([[-1], flat[1:]]).astype(np.int32)):
        with pytest.raises(DataCorrupt, match="counts"):
            Query.from_flat(bad, QUERIES[0].digest)
