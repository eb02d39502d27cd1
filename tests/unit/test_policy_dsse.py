"""Envelopes: what is signed is DSSE, and only signatures by different keys that count do count."""

from __future__ import annotations

import base64
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.errors import MissingDependency, SignatureRefused
from fedlearn.ledger.signing import SigningKey
from fedlearn.policy.dsse import (
    MAX_BYTES,
    add_signature,
    open_envelope,
    sign_envelope,
    signed_by,
    unverified_payload,
)
from fedlearn.policy.keys import PLACEHOLDER_KEY, is_weak

_spec = importlib.util.spec_from_file_location("policy_papers", Path(__file__).with_name("policy_papers.py"))
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

KIND = "application/vnd.test+json"
THREE = (p.ANNE.public, p.BEN.public, p.CLARA.public)


def opened(data: bytes, keys: tuple[str, ...] = THREE, threshold: int = 2) -> bytes:
    return open_envelope(data, KIND, keys, threshold, "paper")


def signed(*signers: Any) -> bytes:
    return sign_envelope(KIND, b"words", signers)


def with_body(data: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(data), **changes}).encode()


def pae(kind: bytes, payload: bytes) -> bytes:
    """Pre-authentication encoding, by the DSSE specification (protocol.md): lengths in decimal, one space between."""
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind, str(len(payload)).encode(), payload])


def test_what_is_signed_is_the_specification() -> None:
    """The encoding of the specification's own example, and a signature over it by another implementation."""
    assert pae(b"http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    envelope = json.loads(sign_envelope("http://example.com/HelloWorld", b"hello world", [p.ANNE]))
    assert envelope["payloadType"] == "http://example.com/HelloWorld"
    assert base64.b64decode(envelope["payload"]) == b"hello world"
    (signature,) = envelope["signatures"]
    key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature["keyid"]))
    key.verify(base64.b64decode(signature["sig"]), b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")
    assert sign_envelope(KIND, b"words", [p.BEN, p.ANNE]) == sign_envelope(KIND, b"words", [p.ANNE, p.BEN])


def test_an_envelope_of_another_tool_is_read() -> None:
    """Field order, white space and signatures by strangers do no harm."""
    own = pae(KIND.encode(), b"words")
    body = {
        "signatures": [
            {"sig": base64.b64encode(bytes.fromhex(key.sign(own))).decode(), "keyid": key.public}
            for key in (p.STRANGER, p.BEN, p.ANNE)
        ],
        "payloadType": KIND,
        "payload": "d29yZHM=",
    }
    body["signatures"].insert(0, {"keyid": "SHA256:some other scheme", "sig": base64.b64encode(b"x" * 300).decode()})
    assert opened(json.dumps(body, indent=4).encode()) == b"words"


def test_the_ledgers_keys_sign_envelopes() -> None:
    key = SigningKey.fresh()
    assert opened(sign_envelope(KIND, b"words", [key]), (key.public,), 1) == b"words"


def test_only_different_keys_that_count_do_count() -> None:
    assert opened(signed(p.ANNE, p.BEN)) == b"words"
    assert opened(signed(p.ANNE, p.BEN, p.CLARA, p.STRANGER), threshold=3) == b"words"
    for signers, threshold in (((p.ANNE,), 2), ((p.ANNE, p.STRANGER), 2), ((p.STRANGER,), 1), ((p.ANNE, p.BEN), 3)):
        with pytest.raises(SignatureRefused, match="are needed"):
            opened(signed(*signers), threshold=threshold)
    twice = json.loads(signed(p.ANNE))
    twice["signatures"] *= 2
    with pytest.raises(SignatureRefused, match="given twice"):
        opened(json.dumps(twice).encode())
    with pytest.raises(SignatureRefused, match="2 signatures, and 1 keys"):
        opened(signed(p.ANNE), (p.ANNE.public, p.ANNE.public))


def test_a_false_signature_spoils_an_envelope_that_has_enough() -> None:
    body = json.loads(signed(p.ANNE, p.BEN, p.CLARA))
    body["signatures"][0]["sig"] = body["signatures"][1]["sig"]
    with pytest.raises(SignatureRefused, match="not by it"):
        opened(json.dumps(body).encode(), threshold=1)


@pytest.mark.parametrize("threshold", [0, -1, 4])
def test_a_threshold_that_cannot_be_is_refused(threshold: int) -> None:
    with pytest.raises(SignatureRefused, match="keys may sign"):
        opened(signed(p.ANNE, p.BEN, p.CLARA), threshold=threshold)


def test_another_payload_or_type_is_refused() -> None:
    data = signed(p.ANNE, p.BEN)
    with pytest.raises(SignatureRefused, match="expected other"):
        open_envelope(data, "other", THREE, 2, "paper")
    for change in ({"payload": "d29yZHQ="}, {"payloadType": "other"}):
        with pytest.raises(SignatureRefused):
            open_envelope(with_body(data, **change), change.get("payloadType", KIND), THREE, 2, "paper")


MALFORMED: list[dict[str, Any]] = [
    {"payload": "d29yZHM"},
    {"payload": "d29yZHN="},  # the same bytes, written with a stray bit
    {"payload": "d29y ZHM="},
    {"payload": "d29yZHM=\n"},
    {"payload": "_-8="},
    {"payload": 7},
    {"payload": "é"},
    {"payloadType": None},
    {"signatures": {}},
    {"signatures": [7]},
    {"signatures": [{"keyid": "a"}]},
    {"signatures": [{"keyid": "a", "sig": "", "x": 1}]},
    {"signatures": [{"keyid": 7, "sig": ""}]},
    {"signatures": [{"keyid": "a" * 257, "sig": ""}]},
    {"signatures": [{"keyid": p.ANNE.public, "sig": "AAAA"}]},
    {"signatures": [{"keyid": str(i), "sig": ""} for i in range(65)]},
    {"extra": 1},
]


@pytest.mark.parametrize("change", MALFORMED, ids=lambda change: json.dumps(change)[:40])
def test_a_malformed_envelope_is_refused(change: dict[str, Any]) -> None:
    for call in (opened, signed_by, unverified_payload, lambda data: add_signature(data, p.CLARA)):
        with pytest.raises(SignatureRefused):
            call(with_body(signed(p.ANNE, p.BEN), **change))


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"\xff", b"[" * 5000, b" " * (MAX_BYTES + 1)])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(SignatureRefused):
        opened(data)


def test_adding_signatures() -> None:
    one = signed(p.ANNE)
    two = add_signature(one, p.BEN)
    assert opened(two) == b"words"
    assert two == signed(p.BEN, p.ANNE)
    assert signed_by(two) == tuple(sorted([p.ANNE.public, p.BEN.public]))
    assert unverified_payload(two) == (KIND, b"words")
    with pytest.raises(SignatureRefused, match="already"):
        add_signature(two, p.BEN)


def test_signers_that_cannot_sign() -> None:
    with pytest.raises(SignatureRefused, match="at least one"):
        signed()
    with pytest.raises(SignatureRefused, match="twice"):
        signed(p.ANNE, p.ANNE)
    with pytest.raises(SignatureRefused):
        sign_envelope(KIND, b"x" * MAX_BYTES, [p.ANNE])

    class Careless:
        public = p.ANNE.public.upper()

        def sign(self, message: bytes) -> str:
            return str(p.ANNE.sign(message))

    with pytest.raises(SignatureRefused, match="hexadecimal"):
        signed(Careless())


def points_of_small_order() -> set[int]:
    """The y of every point whose order divides 8, by adding points of the curve (RFC 8032, section 5.1), no list."""
    q, d = 2**255 - 19, -121665 * pow(121666, -1, 2**255 - 19)

    def add(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
        (x1, y1), (x2, y2) = a, b
        t = d * x1 * x2 * y1 * y2
        return (x1 * y2 + x2 * y1) * pow(1 + t, -1, q) % q, (y1 * y2 + x1 * x2) * pow(1 - t, -1, q) % q

    def point(y: int) -> tuple[int, int] | None:
        xx = (y * y - 1) * pow(d * y * y + 1, -1, q) % q
        x = pow(xx, (q + 3) // 8, q)
        if (x * x - xx) % q:
            x = x * pow(2, (q - 1) // 4, q) % q
        return None if (x * x - xx) % q else (x, y)

    order = 2**252 + 27742317777372353535851937790883648493
    found: set[int] = set()
    for y in range(2, 40):
        start = point(y)
        if start is None:
            continue
        result, bits = (0, 1), order
        while bits:  # order * start lies in the small subgroup, as a rule at a generator of it
            if bits & 1:
                result = add(result, start)
            start, bits = add(start, start), bits >> 1
        walk = result
        for _ in range(8):
            found.add(walk[1])
            walk = add(walk, result)
    return found


def test_every_key_of_small_order_is_known_and_no_other() -> None:
    q = 2**255 - 19
    weak = points_of_small_order()
    assert len(weak) == 5  # eight points in pairs of x and -x, but for those with x = 0: y = 1 and y = -1
    for y in weak:
        for written in (value for value in (y, y + q) if value < 2**255):
            for sign in (0, 1 << 255):
                assert is_weak((written | sign).to_bytes(32, "little").hex())
    assert is_weak(PLACEHOLDER_KEY)
    assert not any(is_weak(p.Key(number).public) for number in range(1, 50))


def test_a_key_of_small_order_counts_for_nobody() -> None:
    """Why: this signature, made without any secret, is one under the key 0100...00 over every message."""
    identity = (1).to_bytes(32, "little").hex()
    anybody = identity + "00" * 32
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(identity)).verify(bytes.fromhex(anybody), b"anything")
    body = json.loads(signed(p.ANNE))
    body["signatures"] = [{"keyid": identity, "sig": base64.b64encode(bytes.fromhex(anybody)).decode()}]
    with pytest.raises(SignatureRefused, match="no sound"):
        opened(json.dumps(body).encode(), (identity,), 1)
    with pytest.raises(SignatureRefused, match="no sound"):
        opened(signed(p.ANNE), (p.ANNE.public, "A" * 64), 1)


def test_without_securesystemslib_the_install_line_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = signed(p.ANNE, p.BEN)
    monkeypatch.setitem(sys.modules, "securesystemslib.dsse", None)
    with pytest.raises(MissingDependency, match=r"fedlearn\[policy\]"):
        opened(data)
