"""Any policy survives its JSON, YAML and canonical bytes; two policies share a digest only if they are equal."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedlearn.errors import PolicyInvalid
from fedlearn.policy.canonical import canonical_bytes, parse_strict
from fedlearn.policy.document import Budget, DataType, Feature, Policy
from fedlearn.policy.load import parse_yaml, policy_bytes, policy_digest, policy_from_json, policy_to_json

_path = Path(__file__).parents[1] / "unit" / "policy_papers.py"
_spec = importlib.util.spec_from_file_location("policy_papers", _path)
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
WORDS = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Cf", "Zl", "Zp")), min_size=1, max_size=40).filter(
    lambda text: text == text.strip() and "${" not in text
)
REAL = st.floats(1e-9, 0.5, allow_nan=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(blacklist_categories=("Cs",)), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab\u00e9", max_size=3), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    base = p.POLICY
    features = draw(
        st.lists(
            st.builds(
                Feature,
                st.from_regex(r"[a-z][a-z0-9_]{0,10}", fullmatch=True),
                st.sampled_from([(), (DataType.CHOICE,), (DataType.CHOICE, DataType.MESSAGE_CONTENT)]),
                WORDS,
                st.integers(1, 65_536),
            ),
            max_size=5,
            unique_by=lambda feature: feature.name,
        )
    )
    source = replace(
        base.sources[0], owner=draw(WORDS), disputed=draw(st.booleans()), retention_days=draw(st.integers(1, 30))
    )
    purpose = replace(base.purposes[0], text=draw(WORDS), text_version=draw(st.integers(1, 10**9)))
    return replace(
        base,
        name=draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)),
        version=draw(st.integers(1, 10**9)),
        purposes=(purpose, base.purposes[1]),
        sources=(source, base.sources[1]),
        features=tuple(features),
        mechanism=replace(base.mechanism, min_noise_multiplier=draw(REAL), max_l2_clip_norm=draw(REAL)),
        budget=Budget(draw(REAL), draw(REAL)),
    )


@MANY
@given(policies())
def test_a_policy_survives_every_form(policy: Policy) -> None:
    body = policy_to_json(policy)
    assert policy_from_json(json.loads(json.dumps(body, ensure_ascii=False))) == policy
    assert policy_from_json(parse_strict(policy_bytes(policy), 2**20, "policy")) == policy
    for flow in (True, False):
        text = yaml.safe_dump(body, allow_unicode=True, default_flow_style=flow)
        again = policy_from_json(parse_yaml(text.encode(), "policy"))
        assert again == policy
        assert policy_digest(again) == policy_digest(policy)


@MANY
@given(policies(), policies())
def test_digests_tell_policies_apart(one: Policy, other: Policy) -> None:
    assert (policy_digest(one) == policy_digest(other)) == (one == other)


@MANY
@given(JSON)
def test_canonical_bytes_are_read_back_to_themselves(value: Any) -> None:
    data = canonical_bytes(value)
    again = parse_strict(data, 2**20, "value")
    assert again == value
    assert canonical_bytes(again) == data
    assert data.isascii()


@MANY
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_crash_the_readers(data: bytes) -> None:
    for read in (lambda: parse_strict(data, 2**20, "value"), lambda: parse_yaml(data, "value")):
        try:
            body = read()
        except PolicyInvalid:
            continue
        try:
            policy_from_json(body)
        except PolicyInvalid:
            continue
        raise AssertionError("a policy out of nothing")
