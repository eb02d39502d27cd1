"""A policy file is read strictly: what is not exactly a policy is refused by the name of the field."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedlearn.errors import MissingDependency, PolicyInvalid
from fedlearn.features import FEATURES
from fedlearn.policy.canonical import canonical_bytes, parse_strict, sha256_hex
from fedlearn.policy.document import FEATURE_SOURCE
from fedlearn.policy.load import load_policy, parse_yaml, policy_bytes, policy_digest, policy_from_json, policy_to_json
from fedlearn.policy.times import format_time, parse_time

_spec = importlib.util.spec_from_file_location("policy_papers", Path(__file__).with_name("policy_papers.py"))
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

SHIPPED = ("city", "crosswoz")


def shipped(repository: Path, name: str) -> Path:
    return repository / "configs" / "policy" / f"{name}.yaml"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_policies_list_every_feature_and_no_other(repository: Path, name: str) -> None:
    policy = load_policy(shipped(repository, name))
    assert [feature.name for feature in policy.features] == [spec.name for spec in FEATURES]
    for feature, spec in zip(policy.features, FEATURES, strict=True):
        assert {FEATURE_SOURCE[need] for need in feature.needs} == spec.needs - {"catalogue"}
        assert feature.width == 1


@pytest.mark.parametrize("name", SHIPPED)
def test_yaml_and_json_of_one_policy_have_one_digest(repository: Path, tmp_path: Path, name: str) -> None:
    policy = load_policy(shipped(repository, name))
    body = policy_to_json(policy)
    for file, text in (
        ("a.json", json.dumps(body, indent=3)),
        ("b.json", json.dumps(dict(reversed(body.items())), ensure_ascii=False)),
        ("c.yaml", yaml.safe_dump(body, allow_unicode=True)),
        ("d.yaml", yaml.safe_dump(body, default_flow_style=True, sort_keys=False)),
        ("e.yaml", json.dumps(body)),
    ):
        (tmp_path / file).write_text(text, encoding="utf-8")
        again = load_policy(tmp_path / file)
        assert again == policy, file
        assert policy_digest(again) == policy_digest(policy)


def test_canonical_bytes_are_what_the_docs_say() -> None:
    """The form is fixed for ever: signatures and digests hang on it."""
    assert canonical_bytes({"b": [1, 1.0, 1e-05, 0.1], "a": "é\n", "c": None, "d": True}) == (
        b'{"a":"\\u00e9\\n","b":[1,1.0,1e-05,0.1],"c":null,"d":true}'
    )
    assert sha256_hex(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4
    for wrong in (float("nan"), float("inf"), object(), {"a": {1, 2}}):
        with pytest.raises(PolicyInvalid):
            canonical_bytes(wrong)


def test_the_digest_of_the_example_never_changes() -> None:
    """Frozen: a change of the canonical form or of the schema would void every approval there is."""
    assert len(policy_bytes(p.POLICY)) == 1764
    assert policy_digest(p.POLICY) == "4d0ffd210852583a5eaff265eae9c2d2cf6aab7879a6e2554067ea25d57ce887"


def test_every_field_counts() -> None:
    """Each leaf of the document moves the digest, or is refused: nothing is dropped on the way."""
    body = policy_to_json(p.POLICY)
    digest = policy_digest(p.POLICY)
    moved = 0
    for path in p.leaves(body):
        value = body
        for step in path:
            value = value[step]  # type: ignore[index]
        if isinstance(value, dict | list):
            continue
        change: Callable[[Any], Any] = (
            (lambda v: v + "x") if isinstance(value, str) else (lambda v: not v if isinstance(v, bool) else v + 1)
        )
        try:
            moved += policy_digest(policy_from_json(p.altered(body, path, change))) != digest
        except PolicyInvalid:
            moved += 1
    assert moved == sum(1 for path in p.leaves(body) if not isinstance(_at(body, path), dict | list))


def _at(body: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        body = body[step]
    return body


@pytest.mark.parametrize("wrong", [None, "x", True, [], {}, {"surplus": 1}, -1, 1.5, float("nan"), 2**60, 1e300])
def test_no_place_takes_a_value_of_another_type(wrong: Any) -> None:
    """Every place of the document, against every kind of JSON value; ones that fit the place are left out."""
    body = policy_to_json(p.POLICY)
    for path in p.leaves(body):
        value = _at(body, path)
        if isinstance(wrong, type(value)) and not isinstance(value, dict | list | str):
            continue  # the range tests ask these
        if (isinstance(value, list) and wrong == []) or (isinstance(value, str) and wrong == "x"):
            continue
        if isinstance(value, float) and wrong == 1.5:
            continue
        with pytest.raises(PolicyInvalid) as caught:
            policy_from_json(_put(body, path, wrong))
        assert str(path[0]) in str(caught.value) or path[0] == "schema"


def _put(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    copy = p.altered(body, path, lambda _: None)
    at = _at(copy, path[:-1])
    at[path[-1]] = value
    return copy


WRONG = [
    (("sources", 0, "retention_days"), 31, "sources[0].retention_days=31"),
    (("sources", 0, "retention_days"), 0, "sources[0].retention_days=0"),
    (("sources", 0, "retention_days"), True, "sources[0].retention_days=True"),
    (("sources", 0, "retention_days"), 3.0, "sources[0].retention_days=3.0"),
    (("sources", 0, "minors"), False, "sources[0].minors=False: must be text; put it in quotes"),
    (("sources", 0, "minors"), "on", 'must be "off"'),
    (("sources", 0, "third_party"), "keep", "sources[0].third_party"),
    (("sources", 0, "disputed"), 0, "sources[0].disputed=0"),
    (("sources", 0, "collection"), "telepathy", "sources[0].collection"),
    (("sources", 0, "purposes", 1), "elsewhere", "sources[0].purposes[1]='elsewhere'"),
    (("sources", 0, "purposes", 1), "places", "given twice"),
    (("sources", 0, "data_type"), "contacts", "sources[0].data_type"),
    (("sources", 1, "app"), "com example", "sources[1].app"),
    (("sources", 1, "app"), "../chat", "sources[1].app"),
    (("sources", 1, "owner"), "two\nlines", "sources[1].owner"),
    (("sources", 1, "owner"), "", "sources[1].owner"),
    (("purposes", 0, "recipients", 1), "operator", "Make a purpose of its own"),
    (("purposes", 1, "recipients", 0), "surface", "kind operator"),
    (("purposes", 0, "recipients", 1), "nobody", "not among recipients"),
    (("purposes", 0, "recipients"), [], "purposes[0].recipients"),
    (("purposes", 0, "text"), "${oc.env:HOME}", "purposes[0].text"),
    (("purposes", 0, "text"), "a \u202etxet", "direction"),
    (("purposes", 0, "text_version"), 0, "purposes[0].text_version=0"),
    (("purposes", 1, "id"), "places", "given twice"),
    (("recipients", 2, "task_key"), "", "recipients[2].task_key"),
    (("recipients", 2, "task_key"), "A" * 64, "recipients[2].task_key"),
    (("recipients", 0, "task_key"), "a" * 64, "only an operator signs"),
    (("recipients", 0, "id"), "operator", "given twice"),
    (("features", 0, "name"), "rating", "given twice"),
    (("features", 0, "needs"), ["message_content", "message_content"], "features[0].needs"),
    (("features", 0, "width"), 0, "features[0].width=0"),
    (("features", 0, "name"), "Words!", "features[0].name"),
    (("mechanism", "kinds", 0), "laplace", "mechanism.kinds[0]"),
    (("mechanism", "kinds", 0), "gaussian", "secret sampling"),
    (("mechanism", "kinds"), [], "mechanism.kinds"),
    (("mechanism", "min_noise_multiplier"), 0, "mechanism.min_noise_multiplier=0"),
    (("mechanism", "max_l2_clip_norm"), -1, "mechanism.max_l2_clip_norm=-1"),
    (("mechanism", "min_round_size"), 1, "mechanism.min_round_size=1"),
    (("mechanism", "min_separation"), 0, "mechanism.min_separation=0"),
    (("mechanism", "max_participations"), 0, "mechanism.max_participations=0"),
    (("mechanism", "max_steps"), 0, "mechanism.max_steps=0"),
    (("budget", "epsilon"), 101, "budget.epsilon=101"),
    (("budget", "delta"), 1.0, "budget.delta=1"),
    (("device", "delta"), 0, "device.delta=0"),
    (("device", "max_training_seconds"), 586, "device.max_training_seconds=586"),
    (("population", "minimum_devices"), 0, "population.minimum_devices=0"),
    (("population", "kind"), "volunteers", "population.kind='volunteers': choose from simulated, enrolled"),
    (("expires",), "2027-02-30T00:00:00Z", "expires"),
    (("expires",), "2027-01-31", "expires"),
    (("expires",), "2027-01-31T00:00:00+00:00", "expires"),
    (("name",), "-", "name"),
    (("version",), 2**53, "version: too large"),
    (("schema",), "fedlearn.policy/2", "schema='fedlearn.policy/2'"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_refused_by_name(path: tuple[Any, ...], value: Any, words: str) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        policy_from_json(_put(policy_to_json(p.POLICY), path, value))
    assert words in str(caught.value), str(caught.value)


def test_missing_and_unknown_fields_are_named() -> None:
    body = policy_to_json(p.POLICY)
    for path in p.leaves(body):
        if isinstance(path[-1], int):
            continue
        copy = json.loads(json.dumps(body))
        del _at(copy, path[:-1])[path[-1]]
        with pytest.raises(PolicyInvalid, match=path[-1]):
            policy_from_json(copy)
        copy = json.loads(json.dumps(body))
        _at(copy, path[:-1])["surplus"] = 1
        with pytest.raises(PolicyInvalid, match="surplus"):
            policy_from_json(copy)


def test_an_integer_is_a_number_and_a_number_no_integer() -> None:
    body = policy_to_json(p.POLICY)
    assert policy_from_json(_put(body, ("budget", "epsilon"), 3)) == policy_from_json(
        _put(body, ("budget", "epsilon"), 3.0)
    )
    with pytest.raises(PolicyInvalid, match=r"version=3\.0"):
        policy_from_json(_put(body, ("version",), 3.0))


JSON_REFUSED = [
    (b'{"a":1,"a":1}', "given twice"),
    (b'{"a":{"b":1,"b":2}}', "given twice"),
    (b"NaN", "NaN"),
    (b"[-Infinity]", "Infinity"),
    (b"1e999", "too large"),
    (b"[1,]", "not UTF-8 JSON"),
    (b"", "not UTF-8 JSON"),
    (b"\xff\xfe", "not UTF-8 JSON"),
    (b"\xef\xbb\xbf{}", "not UTF-8 JSON"),
    (b'"\\ud800"', "surrogate"),
    (b'{"\\udfff":1}', "surrogate"),
    (b"[" * 100_000, "nested too deep"),
    (b"1" * 10_000, "not UTF-8 JSON"),
    (b" " * 1_000_001, "at most 1000000"),
]


@pytest.mark.parametrize(("data", "words"), JSON_REFUSED, ids=[repr(row[0][:20]) for row in JSON_REFUSED])
def test_ambiguous_json_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(PolicyInvalid, match=words):
        parse_strict(data, 1_000_000, "paper")


def test_strict_json_reads_what_is_json() -> None:
    value = {"a": [1, 2.5, "é😀", None, True], "b": {}}
    assert parse_strict(json.dumps(value).encode(), 1000, "paper") == value
    assert parse_strict(json.dumps(value, ensure_ascii=False).encode(), 1000, "paper") == value


YAML_REFUSED = [
    ("a: 1\na: 1", "given twice"),
    ("a: &x 1\nb: *x", "anchor"),
    ("a: {b: 1}\n<<: {c: 2}\n*z : 3", "alias"),
    ("a: !!python/object/apply:os.getcwd []", "tag"),
    ("a: !!binary aGVsbG8=", "tag"),
    ("a: !thing 1", "tag"),
    ("1: a", "no text"),
    ("a: [", "line"),
    ("a: 1\n---\nb: 2", "another document"),
    ("[" * 3000, "RecursionError"),
    ("a: \x00", "special characters"),
]


@pytest.mark.parametrize(("text", "words"), YAML_REFUSED, ids=[row[0][:20] for row in YAML_REFUSED])
def test_ambiguous_yaml_is_refused(text: str, words: str) -> None:
    with pytest.raises(PolicyInvalid, match=words):
        parse_yaml(text.encode(), "paper")


def test_yaml_scalars_have_one_reading() -> None:
    text = "[1e-5, 1.0e-5, 3, +3, -2, 010, 1_000, 0x10, 1:30, off, yes, true, null, 2027-01-31, .inf, '3', !!str 3]"
    with pytest.raises(PolicyInvalid):
        parse_yaml(text.encode(), "paper")
    found = parse_yaml(text.replace(", !!str 3", "").encode(), "paper")
    assert found == [
        1e-5, 1e-5, 3, 3, -2, "010", "1_000", "0x10", "1:30", "off", "yes", True, None, "2027-01-31", ".inf", "3",
    ]  # fmt: skip
    # a merge key is a key like any other, and so an unknown field
    assert parse_yaml(b"a: 1\n<<: {b: 2}", "paper") == {"a": 1, "<<": {"b": 2}}


def test_unreadable_files(tmp_path: Path) -> None:
    for name, data in (("a.yaml", b"\xff"), ("b.json", b"\xff"), ("c.yaml", b"a" * (2**20 + 1)), ("d.yaml", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(PolicyInvalid):
            load_policy(tmp_path / name)
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(PolicyInvalid, match="cannot be read"):
            load_policy(path)


def test_without_pyyaml_the_install_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependency, match=r"fedlearn\[policy\]"):
        parse_yaml(b"a: 1", "paper")


def test_times() -> None:
    assert parse_time("1970-01-01T00:00:10Z", "t") == 10.0
    assert format_time(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert format_time(-62_000_000_000) == "0005-04-19T09:46:40Z"
    for wrong in (
        "",
        "2027-01-31T24:00:00Z",
        "2027-01-31t00:00:00z",
        "２０２７-01-31T00:00:00Z",
        "2027-01-31T00:00:60Z",
    ):
        with pytest.raises(PolicyInvalid, match="t="):
            parse_time(wrong, "t")
    with pytest.raises(PolicyInvalid):
        format_time(float("inf"))


def test_no_field_of_the_example_is_at_its_limit() -> None:
    """Control for the table of wrong values: what they start from is accepted."""
    assert policy_from_json(policy_to_json(p.POLICY)) == p.POLICY
    assert policy_from_json(policy_to_json(replace(p.POLICY, features=()))).features == ()
