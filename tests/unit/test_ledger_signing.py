"""Keys: made once, readable by their owner, and nothing else verifies."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.errors import OutOfRange, PrivacyError
from fedlearn.ledger.signing import (
    SigningKey,
    held_operator_key,
    make_key_pair,
    operator_key,
    read_key,
    read_public,
    verified,
)

# RFC 8032, section 7.1, test 2
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_MESSAGE = b"\x72"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_the_published_vector() -> None:
    assert verified(RFC_PUBLIC, RFC_SIGNATURE, RFC_MESSAGE)
    for place in range(0, 128, 9):
        forged = RFC_SIGNATURE[:place] + ("0" if RFC_SIGNATURE[place] != "0" else "1") + RFC_SIGNATURE[place + 1 :]
        assert not verified(RFC_PUBLIC, forged, RFC_MESSAGE)
    assert not verified(RFC_PUBLIC, RFC_SIGNATURE, b"\x73")
    assert not verified(SigningKey.fresh().public, RFC_SIGNATURE, RFC_MESSAGE)


@pytest.mark.parametrize("signature", ["", "zz" * 64, RFC_SIGNATURE.upper(), RFC_SIGNATURE + "00", " " + RFC_SIGNATURE])
def test_what_is_no_signature(signature: str) -> None:
    assert not verified(RFC_PUBLIC, signature, RFC_MESSAGE)


@pytest.mark.parametrize("public", [None, "", "00", RFC_PUBLIC.upper(), "zz" * 32])
def test_what_is_no_key_verifies_nothing(public: str | None) -> None:
    assert not verified(public, RFC_SIGNATURE, RFC_MESSAGE)


def test_sign_and_verify() -> None:
    key = SigningKey.fresh()
    signature = key.sign(b"message")
    Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public)).verify(bytes.fromhex(signature), b"message")
    assert verified(key.public, signature, b"message")
    assert key.public not in repr(key)
    assert SigningKey.fresh().public != key.public


def test_the_operators_key_is_made_once(tmp_path: Path) -> None:
    assert held_operator_key(RFC_PUBLIC, tmp_path) is None
    public = operator_key(tmp_path).public
    assert operator_key(tmp_path).public == public
    path = tmp_path / "keys" / "operator.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    held = held_operator_key(public, tmp_path)
    assert held is not None
    assert held.public == public
    assert held_operator_key(RFC_PUBLIC, tmp_path) is None
    path.chmod(0o640)
    with pytest.raises(PrivacyError, match="must be 600"):
        operator_key(tmp_path)
    path.chmod(0o600)
    path.write_text("nothing")
    with pytest.raises(PrivacyError, match="keygen"):
        operator_key(tmp_path)


def test_a_key_pair_in_files(tmp_path: Path) -> None:
    path = tmp_path / "authority.key"
    public = make_key_pair(path)
    assert read_key(path).public == public
    assert read_public(str(path) + ".pub") == read_public(public) == public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OutOfRange, match="never replaced"):
        make_key_pair(path)
    path.unlink()
    with pytest.raises(OutOfRange, match="never replaced"):
        make_key_pair(path)
    with pytest.raises(OutOfRange, match="cannot be made"):
        make_key_pair(tmp_path / "nowhere" / "key")


def test_a_private_key_is_never_taken_for_a_public_one(tmp_path: Path) -> None:
    """It would be written into the ledger."""
    path = tmp_path / "authority.key"
    make_key_pair(path)
    for given in (str(path), "", "x", str(tmp_path), RFC_PUBLIC.upper()):
        with pytest.raises(OutOfRange, match="no public key"):
            read_public(given)
    public = Path(str(path) + ".pub")
    public.chmod(0o600)
    with pytest.raises(PrivacyError, match="no private key in PEM"):
        read_key(public)


def test_a_key_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "ec.key"
    path.touch(0o600)
    path.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(PrivacyError, match="not an Ed25519 key"):
        read_key(path)
    with pytest.raises(PrivacyError, match="name the private key file"):
        read_key(tmp_path / "absent")
