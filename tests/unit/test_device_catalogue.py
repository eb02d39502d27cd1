"""Catalogues: the same items and digest after a round trip, and a bundle that needs no new approval of the training."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.catalogue import Catalogue, Item
from fedlearn.device import catalogue_file
from fedlearn.device.archive import read_archive, write_archive
from fedlearn.device.catalogue_bundle import (
    CATALOGUE,
    SCHEMA,
    add_catalogue_approval,
    build_catalogue_bundle,
    open_catalogue_bundle,
    spec_of,
)
from fedlearn.device.catalogue_file import attributes_of, catalogue_bytes, catalogue_from_bytes
from fedlearn.device.manifest import manifest_bytes, seal
from fedlearn.errors import BundleRefused, SignatureRefused, TrustError
from fedlearn.policy.canonical import canonical_bytes, sha256_hex
from fedlearn.policy.dsse import BUNDLE_TYPE, CATALOGUE_TYPE

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

CAP = 5_000_000


def test_round_trip_keeps_items_order_and_digest() -> None:
    catalogue = town.catalogue()
    data = catalogue_bytes(catalogue)
    found = catalogue_from_bytes(data, len(data))
    assert found == catalogue
    assert found.digest == catalogue.digest
    assert list(found.index) == list(catalogue.index)


def test_the_digest_tells_whole_numbers_from_floats_and_so_does_the_file() -> None:
    one = Catalogue("c", "d", (Item("d", "a", price=50, rating=4),))
    other = Catalogue("c", "d", (Item("d", "a", price=50.0, rating=4.0),))
    assert one.digest != other.digest
    for catalogue in (one, other):
        assert catalogue_from_bytes(catalogue_bytes(catalogue), CAP).digest == catalogue.digest


def test_words_are_kept_as_their_source_spells_them() -> None:
    words = ("\n  ", "", "ﬁ", "e\u0301", "\u200b", "👩‍🍳", "\u3000")
    catalogue = Catalogue("c", "d", (Item("d", "名\u00a0字", {"x": words}, nearby=("e:什么",)),))
    assert catalogue_from_bytes(catalogue_bytes(catalogue), CAP) == catalogue


def test_the_simulated_city_survives() -> None:
    from fedlearn.lab.city import City, CityConfig

    catalogue = City(CityConfig(seed=3, devices=2, restaurants=500)).catalogue
    assert catalogue_from_bytes(catalogue_bytes(catalogue), CAP).digest == catalogue.digest


@pytest.mark.data
def test_crosswoz_survives_below_the_default_cap() -> None:
    from fedlearn.lab.data.crosswoz import CrossWoz

    root = Path(os.environ.get("FEDLEARN_DATA_ROOT", Path(__file__).parents[3] / "shared" / "data"))
    if not (root / "crosswoz").is_dir():
        pytest.skip(f"{root}/crosswoz is not there")
    catalogue = CrossWoz(root, "restaurant").catalogue
    data = catalogue_bytes(catalogue)
    assert len(data) < CAP
    assert catalogue_from_bytes(data, CAP).digest == catalogue.digest


def body() -> Any:
    return json.loads(catalogue_bytes(town.catalogue()))


REFUSED: list[tuple[str, Any, str]] = [
    ("schema", "fedlearn.catalogue/2", "schema: must be"),
    ("name", "", "name: must be a text"),
    ("domain", None, "domain: must be a text"),
    ("items", [], "items: none"),
    ("items", {}, "items: must be a list"),
    ("items.0", [], r"items\[0\]: not a JSON object"),
    ("items.0.name", "", r"items\[0\]\.name: must be a text"),
    ("items.0.name", "x" * 513, r"items\[0\]\.name: must be a text"),
    ("items.0.name", "a\nb", r"items\[0\]\.name: must have no control"),
    ("items.0.domain", "restaurant", r"items\[0\]\.domain: no such field"),
    ("items.1.name", None, r"items\[1\]\.name: must be a text"),
    ("items.0.price", -1, r"items\[0\]\.price: must be a finite number"),
    ("items.0.price", True, r"items\[0\]\.price: must be a finite number"),
    ("items.0.price", "3", r"items\[0\]\.price: must be a finite number"),
    ("items.0.price", None, r"items\[0\]: price and rating must be numbers"),
    ("items.0.rating", 5.1, r"items\[0\]\.rating: must be a finite number in \[0, 5\]"),
    ("items.0.attributes", {}, r"items\[0\]: an empty field"),
    ("items.0.attributes", [], r"items\[0\]\.attributes: must be a JSON object"),
    ("items.0.attributes", {"x": "y"}, r"items\[0\]\.attributes\.x: must be a list"),
    ("items.0.attributes", {"x": [1]}, r"items\[0\]\.attributes\.x: must be texts"),
    ("items.0.attributes", {"x": ["y" * 513]}, r"items\[0\]\.attributes\.x: must be texts"),
    ("items.0.attributes", {"x": ["y"] * 1025}, r"items\[0\]\.attributes\.x: must be a list of at most"),
    ("items.0.attributes", {"": ["y"]}, r"items\[0\]\.attributes: must be a text"),
    ("items.0.nearby", [], r"items\[0\]: an empty field"),
    ("items.0.nearby", [3], r"items\[0\]\.nearby: must be a text"),
    ("items.0.duration", "", r"items\[0\]: an empty field"),
    ("items.0.clicks", 9, r"items\[0\]\.clicks: no such field"),
    ("context.0.domain", "", r"context\[0\]\.domain: must be a text"),
    ("users", 3, "users: no such field"),
]


@pytest.mark.parametrize(("path", "value", "names"), REFUSED)
def test_refused_with_its_path(path: str, value: Any, names: str) -> None:
    made = copy.deepcopy(body())
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = made
    for part in way:
        at = at[part]
    at[last] = value
    with pytest.raises(BundleRefused, match=f"^{names}"):
        catalogue_from_bytes(canonical_bytes(made), CAP)


def test_an_item_is_there_once() -> None:
    made = body()
    made["items"].append(made["items"][0])
    with pytest.raises(BundleRefused, match="twice"):
        catalogue_from_bytes(canonical_bytes(made), CAP)
    made = body()
    made["context"].append({"domain": "restaurant", "name": made["items"][0]["name"]})
    with pytest.raises(BundleRefused, match="twice"):
        catalogue_from_bytes(canonical_bytes(made), CAP)


def test_bytes_have_one_spelling() -> None:
    data = catalogue_bytes(town.catalogue())
    assert catalogue_from_bytes(data, CAP) == town.catalogue()
    for other in (data + b" ", data.replace(b",", b", ", 1), json.dumps(body(), ensure_ascii=False).encode()):
        with pytest.raises(BundleRefused, match="not canonical"):
            catalogue_from_bytes(other, CAP)
    with pytest.raises(BundleRefused, match="at most"):
        catalogue_from_bytes(data, len(data) - 1)
    for nonsense in (b"", b"[]", b"\xff", b"null"):
        with pytest.raises(BundleRefused):
            catalogue_from_bytes(nonsense, CAP)


@pytest.mark.parametrize(
    "items",
    [
        (),
        (Item("other", "a"),),
        (Item("d", "a"), Item("d", "a")),
        (Item("d", ""),),
        (Item("d", "a", price=float("nan")),),
        (Item("d", "a", price=float("inf")),),
        (Item("d", "a", rating=6.0),),
    ],
)
def test_an_invalid_catalogue_cannot_be_written(items: tuple[Item, ...]) -> None:
    with pytest.raises(TrustError):
        catalogue_bytes(Catalogue("c", "d", items))


SPEC = spec_of(town.catalogue())


def opened(data: bytes, **given: Any) -> Any:
    return open_catalogue_bundle(data, **{"roster": town.roster(), "spec": SPEC, "now": town.NOW, **given})


def test_a_good_bundle_opens_with_two_signatures() -> None:
    data = town.signed_catalogue()
    found = opened(data)
    assert catalogue_from_bytes(found.catalogue_bytes, CAP) == town.catalogue()
    assert found.digest == sha256_hex(data)
    assert found.catalogue_digest == town.catalogue().digest
    assert (found.version, found.items) == (1, 40)
    assert found.expires == town.NOW + 60 * town.DAY
    assert opened(town.signed_catalogue(days=9999)).expires == town.NOW + 300 * town.DAY
    assert "catalogue_bytes" not in repr(found)
    assert len(set(found.digests)) == 3
    assert data == town.signed_catalogue()


def test_a_new_version_needs_no_new_plan_and_never_goes_back() -> None:
    assert town.catalogue(2).digest != town.catalogue(1).digest
    assert opened(town.signed_catalogue(2), seen_version=1).version == 2
    assert opened(town.signed_catalogue(2), seen_version=2).version == 2
    with pytest.raises(BundleRefused, match="version 2 was seen before"):
        opened(town.signed_catalogue(1), seen_version=2)


def test_another_approver_can_sign_too() -> None:
    once = town.signed_catalogue(signers=town.approvers()[:1])
    with pytest.raises(SignatureRefused, match="signed by 1 of the 3 keys that count; 2 are needed"):
        opened(once)
    twice = add_catalogue_approval(once, town.approvers()[1])
    thrice = add_catalogue_approval(twice, town.approvers()[2])
    assert opened(twice).contents == opened(thrice).contents
    assert opened(twice).digest != opened(thrice).digest
    assert opened(once, roster=replace(town.roster(), threshold=1)).items == 40


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"name": "village"}, "name"),
        ({"domain": "hotel"}, "domain"),
        ({"attributes": SPEC.attributes[1:]}, "attributes"),
        ({"attributes": ()}, "attributes"),
        ({"max_bytes": 100}, "at most"),
    ],
)
def test_it_must_fit_the_approved_spec(change: dict[str, Any], names: str) -> None:
    with pytest.raises(BundleRefused, match=names):
        opened(town.signed_catalogue(), spec=replace(SPEC, **change))


def test_fewer_attributes_and_the_exact_size_fit() -> None:
    size = len(catalogue_bytes(town.catalogue()))
    opened(town.signed_catalogue(), spec=replace(SPEC, max_bytes=size, attributes=(*SPEC.attributes, "zone")))
    with pytest.raises(BundleRefused, match=f"{size} bytes; at most {size - 1}"):
        opened(town.signed_catalogue(), spec=replace(SPEC, max_bytes=size - 1))


def test_expired() -> None:
    with pytest.raises(BundleRefused, match="has passed"):
        opened(town.signed_catalogue(), now=town.NOW + 60 * town.DAY)
    with pytest.raises(SignatureRefused, match="has passed"):
        opened(town.signed_catalogue(days=9999), now=town.NOW + 300 * town.DAY)
    with pytest.raises(TrustError):
        opened(town.signed_catalogue(), now=float("nan"))


def test_signatures() -> None:
    for signers in ([town.Key()], [town.root_key()], [town.operator_key()]):
        with pytest.raises(SignatureRefused):
            opened(town.signed_catalogue(signers=signers))
    with pytest.raises(SignatureRefused, match="no approver"):
        opened(add_catalogue_approval(town.signed_catalogue(), town.Key()))
    with pytest.raises(TrustError):
        opened(town.signed_bundle())


def test_every_byte_counts() -> None:
    data = town.signed_catalogue()
    for place in range(len(data)):
        with pytest.raises(TrustError):
            opened(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])


def test_every_file_is_covered_when_the_container_is_right() -> None:
    files, rng = read_archive(town.signed_catalogue(), CAP), random.Random(3)
    for name, content in files.items():
        for place in rng.sample(range(len(content)), 150):
            changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
            with pytest.raises(TrustError):
                opened(write_archive({**files, name: changed}))


def made(files: dict[str, bytes], kind: str = CATALOGUE_TYPE, schema: str = SCHEMA, **more: object) -> bytes:
    body = {"version": 1, **more}
    return seal(files, kind, manifest_bytes(schema, files, town.NOW + 9, body), town.approvers()[:2])


def test_properly_signed_and_wrong() -> None:
    right = {CATALOGUE: catalogue_bytes(town.catalogue())}
    assert opened(made(right)).items == 40
    for wrong in (
        made({**right, "extra": b""}),
        made({"plan.json": b"{}"}),
        made({CATALOGUE: b"{}"}),
        made({CATALOGUE: right[CATALOGUE] + b"\n"}),
        made(right, kind=BUNDLE_TYPE),
        made(right, schema="fedlearn.bundle/1"),
        made(right, version=0),
        made(right, version="1"),
        made(right, surplus=1),
    ):
        with pytest.raises(TrustError):
            opened(wrong)


def test_versions_begin_with_one() -> None:
    with pytest.raises(BundleRefused, match="version=0"):
        build_catalogue_bundle(town.catalogue(), version=0, expires=town.NOW, signers=town.approvers())


def test_the_spec_of_a_catalogue_is_its_own() -> None:
    assert attributes_of(town.catalogue()) == ("cuisine", "dish", "facility", "theme")
    assert SPEC.name == "town"


@pytest.mark.parametrize("body", [{}, [], "x", 1, {"b": [1, {"z": "\u00e9", "a": []}], "a": [], "\u4e00": None}])
def test_canonical_bytes_in_pieces_are_the_same_bytes(body: object) -> None:
    assert b"".join(catalogue_file._pieces(body)) == canonical_bytes(body)
    assert catalogue_file._is_canonical(body, canonical_bytes(body))
    assert not catalogue_file._is_canonical(body, canonical_bytes(body) + b" ")
    assert not catalogue_file._is_canonical(body, canonical_bytes(body)[:-1])


def test_equal_texts_are_one_object_so_that_neighbours_cost_little() -> None:
    catalogue = town.catalogue()
    read = catalogue_from_bytes(catalogue_bytes(catalogue), CAP)
    neighbours = [key for item in read.items for key in item.nearby]
    assert len({id(key) for key in neighbours}) == len(set(neighbours)) < len(neighbours)


def test_the_digest_is_that_of_one_text() -> None:
    catalogue = town.catalogue()
    rows = [
        [one.domain, one.name, sorted((name, list(values)) for name, values in one.attributes.items()),
         one.price, one.rating, one.duration, list(one.nearby)]
        for one in (*catalogue.items, *catalogue.context)
    ]  # fmt: skip
    text = json.dumps([catalogue.name, catalogue.domain, rows], ensure_ascii=False, separators=(",", ":"))
    assert catalogue.digest == sha256_hex(text.encode())
