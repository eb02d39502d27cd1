"""A phone's own reader of ledger checkpoints agrees with the ledger's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.device.ledger_head import LedgerHead, open_ledger_head
from fedlearn.errors import Refusal, TaskRefused
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.signing import SigningKey
from fedlearn.policy.keys import PLACEHOLDER_KEY

KEY = SigningKey.fresh()
GOOD = LedgerCheckpoint.signed(KEY, "ab" * 16, 10, "c" * 64, 1_800_000_000.5).to_json()


def refused(data: bytes, key: str = KEY.public) -> str:
    with pytest.raises(TaskRefused) as caught:
        open_ledger_head(data, key)
    assert caught.value.reason is Refusal.LEDGER
    return str(caught.value)


@given(st.integers(1, 2**53), st.floats(allow_nan=False, allow_infinity=False), st.binary(min_size=32, max_size=32))
def test_what_the_ledger_signs_is_read(length: int, time: float, head: bytes) -> None:
    text = LedgerCheckpoint.signed(KEY, head.hex()[:32], length, head.hex(), time).to_json()
    assert open_ledger_head(text.encode(), KEY.public) == LedgerHead(head.hex()[:32], length, head.hex(), time)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("length", value) for value in (0, -1, 11, 10.0, True, "10", 2**60, None)),
        *(("ledger_id", value) for value in ("ab" * 15, "AB" * 16, "zz" * 16, 7)),
        *(("hash", value) for value in ("c" * 63, "C" * 64, "d" * 64)),
        *(("time", value) for value in (1_800_000_000, 1_800_000_001.5, "1", None)),
        *(("signature", value) for value in ("", "0" * 128, "A" * 128, "00", None, 5)),
        *(("format", value) for value in ("fedlearn-ledger", 1)),
        *(("version", value) for value in (2, 1.0, True)),
        ("surplus", 1),
    ],
)
def test_another_value_is_refused(field: str, value: Any) -> None:
    refused(json.dumps({**json.loads(GOOD), field: value}).encode())


@pytest.mark.parametrize("field", sorted(json.loads(GOOD)))
def test_a_missing_field_is_refused(field: str) -> None:
    refused(json.dumps({name: value for name, value in json.loads(GOOD).items() if name != field}).encode())


BROKEN = {
    "empty": b"",
    "half": b"{",
    "list": b"[]",
    "null": b"null",
    "no text": b"\xff",
    "deep": b"[" * 4000,
    "twice": GOOD.encode() * 2,
    "a field twice": GOOD.replace("{", '{"length":10,').encode(),
    "long": GOOD.encode() + b" " * 4096,
    "infinite": GOOD.replace("1800000000.5", "1e999").encode(),
    "wide": GOOD.encode("utf-16"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_checkpoint_is_refused(kind: str) -> None:
    refused(BROKEN[kind])


@pytest.mark.parametrize("key", ["ab" * 32, "", PLACEHOLDER_KEY, "01" + "0" * 62, "zz" * 32])
def test_another_key_is_refused(key: str) -> None:
    assert "task_key" in refused(GOOD.encode(), key)
    assert "task_key" in refused(GOOD.encode(), SigningKey.fresh().public)


def test_a_key_for_which_anybody_can_sign_signs_nothing() -> None:
    body = json.loads(GOOD)
    body["signature"] = "01" + "0" * 126  # R the identity, S zero: verifies under the identity as a key
    refused(json.dumps(body).encode(), "01" + "0" * 62)


def test_it_is_the_phones_own_code() -> None:
    spec = importlib.util.find_spec("fedlearn.device.ledger_head")
    assert spec is not None
    assert spec.origin is not None
    assert "from fedlearn.ledger" not in Path(spec.origin).read_text()
