"""A phone maker's credential: one encoding, one issuer's signature, one life; anything else is refused as one error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from fedlearn.device.credential import MOST_BYTES, SIGNING_CONTEXT, Credential, issue_credential, open_credential
from fedlearn.errors import OutOfRange, SignatureRefused
from fedlearn.ledger.signing import SigningKey
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.policy.keys import PLACEHOLDER_KEY

NOW = 1_800_000_000.0
CREDENTIAL = Credential("city", bytes(range(16)), NOW + 60.0)


@pytest.fixture(scope="module")
def issuer() -> SigningKey:
    return SigningKey.fresh()


def signed(issuer: SigningKey, content: object) -> bytes:
    """What an issuer would have signed, whatever it is."""
    signature = issuer.sign(SIGNING_CONTEXT + canonical_bytes(content))
    return canonical_bytes({"content": content, "signature": signature})


def content(issuer: SigningKey, **changes: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(issue_credential(CREDENTIAL, issuer))["content"]
    return {**found, **changes}


def test_what_is_issued_is_opened(issuer: SigningKey) -> None:
    data = issue_credential(CREDENTIAL, issuer)
    assert open_credential(data, (SigningKey.fresh().public, issuer.public), NOW) == CREDENTIAL
    assert issue_credential(CREDENTIAL, issuer) == data
    assert CREDENTIAL.serial.hex() not in repr(CREDENTIAL)


@pytest.mark.parametrize(("now", "good"), [(NOW + 59.999, True), (NOW + 60.0, False), (NOW + 1e9, False)])
def test_its_life_ends_at_once(issuer: SigningKey, now: float, good: bool) -> None:
    data = issue_credential(CREDENTIAL, issuer)
    if good:
        open_credential(data, (issuer.public,), now)
    else:
        with pytest.raises(SignatureRefused, match="expired"):
            open_credential(data, (issuer.public,), now)


@pytest.mark.parametrize("issuers", [(), ("aa" * 32,), (PLACEHOLDER_KEY,), ("no key",), ("",)], ids=range(5))
def test_a_stranger_issues_nothing(issuer: SigningKey, issuers: tuple[str, ...]) -> None:
    with pytest.raises(SignatureRefused, match="not signed by"):
        open_credential(issue_credential(CREDENTIAL, issuer), issuers, NOW)


def test_a_signature_of_another_context_is_none(issuer: SigningKey) -> None:
    body = content(issuer)
    forged = canonical_bytes({"content": body, "signature": issuer.sign(canonical_bytes(body))})
    with pytest.raises(SignatureRefused, match="not signed by"):
        open_credential(forged, (issuer.public,), NOW)


FIELDS: dict[str, dict[str, object]] = {
    "version as a float": {"version": 1.0},
    "version as a truth": {"version": True},
    "another version": {"version": 2},
    "another format": {"format": "fedlearn-task"},
    "expiry as an integer": {"expires": 1_900_000_000},
    "expiry that no float holds": {"expires": 10**400},
    "expiry as a truth": {"expires": True},
    "serial in capitals": {"serial": "AB" * 16},
    "serial with spaces": {"serial": "ab " * 16},
    "short serial": {"serial": "ab" * 15},
    "no text": {"population": 7},
    "no population": {"population": ""},
    "long population": {"population": "c" * 129},
    "one field more": {"more": 1},
}


@pytest.mark.parametrize("changes", FIELDS.values(), ids=FIELDS)
def test_even_the_issuer_cannot_sign_another_form(issuer: SigningKey, changes: dict[str, object]) -> None:
    with pytest.raises(SignatureRefused):
        open_credential(signed(issuer, content(issuer, **changes)), (issuer.public,), NOW)


RESPELLED: dict[str, Callable[[bytes], bytes]] = {
    "signature in capitals": lambda data: _with_signature(data, str.upper),
    "signature with spaces": lambda data: _with_signature(data, lambda digits: digits[:64] + " " + digits[64:]),
    "signature cut": lambda data: _with_signature(data, lambda digits: digits[:-2]),
    "signature as a number": lambda data: canonical_bytes({**json.loads(data), "signature": 7}),
    "no signature": lambda data: canonical_bytes({"content": json.loads(data)["content"]}),
    "a space": lambda data: data.replace(b",", b", ", 1),
    "a line end": lambda data: data + b"\n",
    "one field more": lambda data: canonical_bytes({**json.loads(data), "more": 1}),
    "a list": lambda data: b"[" + data + b"]",
    "content as a list": lambda data: canonical_bytes({**json.loads(data), "content": list(json.loads(data))}),
    "content as text": lambda data: canonical_bytes({**json.loads(data), "content": "format"}),
    "nothing": lambda data: b"",
    "too long": lambda data: data + b" " * MOST_BYTES,
    "deep": lambda data: b"[" * 1000 + b"]" * 1000,
}


def _with_signature(data: bytes, change: Callable[[str], str]) -> bytes:
    body = json.loads(data)
    return canonical_bytes({**body, "signature": change(body["signature"])})


@pytest.mark.parametrize("respell", RESPELLED.values(), ids=RESPELLED)
def test_it_has_one_spelling(issuer: SigningKey, respell: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SignatureRefused):
        open_credential(respell(issue_credential(CREDENTIAL, issuer)), (issuer.public,), NOW)


def test_damage_is_refused_and_nothing_else_is_raised(issuer: SigningKey) -> None:
    data, chance = issue_credential(CREDENTIAL, issuer), random.Random(6)
    for _ in range(2_000):
        made = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(made))
            made[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 4))
        if bytes(made) != data:
            with pytest.raises(SignatureRefused):
                open_credential(bytes(made), (issuer.public,), NOW)


@pytest.mark.parametrize(
    ("population", "serial", "expires", "field"),
    [
        ("", bytes(16), 1.0, "population"),
        ("c" * 129, bytes(16), 1.0, "population"),
        ("city", bytes(15), 1.0, "serial"),
        ("city", bytes(16), float("nan"), "expires"),
        ("city", bytes(16), float("inf"), "expires"),
    ],
    ids=range(5),
)
def test_what_could_not_be_opened_is_not_made(population: str, serial: bytes, expires: float, field: str) -> None:
    with pytest.raises(OutOfRange, match=f"credential.{field}"):
        Credential(population, serial, expires)


def test_the_longest_one_fits(issuer: SigningKey) -> None:
    longest = Credential("\U0001f600" * 128, bytes(16), NOW + 0.123456789)  # twelve bytes a character in JSON
    data = issue_credential(longest, issuer)
    assert open_credential(data, (issuer.public,), NOW) == longest
