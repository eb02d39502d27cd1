"""The certificates of a deployment: TLS accepts them; what it would refuse is said beforehand, with the way out."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_private_key

from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment.certificates import (
    check_certificates,
    ensure_certificates,
    issue_server,
    make_authority,
)
from fedlearn_server.deployment.keys import new_key, pem_of, public_pem, write_node_key
from fedlearn_server.flower import load_node_key

FILES = ("ca.crt", "ca.key", "server.crt", "server.key")


def now() -> datetime:
    return datetime.now(UTC)


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in FILES}


def shake_hands(server: Path, ca: Path, name: str) -> None:
    """A whole TLS handshake in memory, as strict as OpenSSL can be; raises what a node would see."""
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(server / "server.crt", server / "server.key")
    theirs = ssl.create_default_context(cafile=str(ca))
    theirs.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = theirs.wrap_bio(down, up, server_hostname=name)
    peer = ours.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (client, peer):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert client.version() == peer.version() == "TLSv1.3"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "fleet.example.org", "10.1.2.3", "::1"])
def test_tls_accepts_them(tmp_path: Path, name: str) -> None:
    found = ensure_certificates(tmp_path / "certs", now(), ["fleet.example.org", "10.1.2.3", "::1"])
    shake_hands(tmp_path / "certs", tmp_path / "certs" / "ca.crt", name)
    assert name in found.names


def test_another_name_and_another_authority_are_refused_by_tls(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ensure_certificates(tmp_path / name, now())
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(tmp_path / "one", tmp_path / "one" / "ca.crt", "fleet.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path / "one", tmp_path / "two" / "ca.crt", "localhost")


def test_private_and_kept(tmp_path: Path) -> None:
    directory = tmp_path / "certs"
    found = ensure_certificates(directory, now())
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE((directory / name).stat().st_mode) for name in FILES} == {0o600}
    assert timedelta(364) < found.expires - now() <= timedelta(365)
    assert timedelta(3649) < found.authority_expires - now() <= timedelta(3650)
    before = contents(directory)
    assert ensure_certificates(directory, now()) == found
    assert contents(directory) == before


def test_a_new_server_certificate_needs_no_new_authority(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, now())
    before = contents(tmp_path)
    issue_server(tmp_path, now())
    after = contents(tmp_path)
    assert {name for name in FILES if before[name] != after[name]} == {"server.crt", "server.key"}
    shake_hands(tmp_path, tmp_path / "ca.crt", "localhost")


def test_the_authority_cannot_be_used_by_a_server(tmp_path: Path) -> None:
    """A server's certificate must not sign others, nor outlive its authority."""
    make_authority(tmp_path, now() - timedelta(3600))
    issue_server(tmp_path, now())
    authority, server = (
        x509.load_pem_x509_certificate((tmp_path / f"{name}.crt").read_bytes()) for name in ("ca", "server")
    )
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert server.not_valid_after_utc <= authority.not_valid_after_utc


@pytest.mark.parametrize(
    ("moment", "words"),
    [(timedelta(366), r"server\.crt: expired on .*--renew"), (timedelta(3651), r"ca\.crt: expired on .*--renew")],
    ids=["server", "authority"],
)
def test_expired(tmp_path: Path, moment: timedelta, words: str) -> None:
    ensure_certificates(tmp_path, now())
    with pytest.raises(DeploymentRefused, match=words):
        check_certificates(tmp_path, now() + moment)


def test_a_clock_that_is_behind(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, now())
    check_certificates(tmp_path, now() - timedelta(minutes=59))
    with pytest.raises(DeploymentRefused, match="set this machine's clock"):
        check_certificates(tmp_path, now() - timedelta(hours=2))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ca.crt", r"server\.crt: not signed by .*ca\.crt"),
        ("server.crt", r"server\.key: not the key of .*server\.crt"),
        ("server.key", r"server\.key: not the key of .*server\.crt"),
    ],
)
def test_not_of_each_other(tmp_path: Path, name: str, words: str) -> None:
    for directory in ("one", "two"):
        ensure_certificates(tmp_path / directory, now())
    (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(DeploymentRefused, match=words):
        ensure_certificates(tmp_path / "one", now())


def test_signed_by_another_of_the_same_name(tmp_path: Path) -> None:
    """Authorities of all deployments have the same name: the signature decides."""
    for directory in ("one", "two"):
        ensure_certificates(tmp_path / directory, now())
    for name in ("server.crt", "server.key"):
        (tmp_path / "one" / name).write_bytes((tmp_path / "two" / name).read_bytes())
    with pytest.raises(DeploymentRefused, match="not signed by"):
        check_certificates(tmp_path / "one", now())


@pytest.mark.parametrize("name", ["ca.crt", "server.key"])
def test_half_of_a_pair_is_missing(tmp_path: Path, name: str) -> None:
    ensure_certificates(tmp_path, now())
    (tmp_path / name).unlink()
    with pytest.raises(DeploymentRefused, match=f"{name}: missing; put it back from a backup"):
        ensure_certificates(tmp_path, now())


@pytest.mark.parametrize("name", ["ca.crt", "server.crt", "server.key"])
def test_damaged(tmp_path: Path, name: str) -> None:
    ensure_certificates(tmp_path, now())
    (tmp_path / name).write_bytes(b"-----BEGIN\x00")
    with pytest.raises(DeploymentRefused, match=f"{name}: not a .* that can be read"):
        ensure_certificates(tmp_path, now())


def test_the_key_of_the_authority_may_be_kept_elsewhere(tmp_path: Path) -> None:
    ensure_certificates(tmp_path, now())
    (tmp_path / "ca.key").unlink()
    ensure_certificates(tmp_path, now())
    with pytest.raises(DeploymentRefused, match=r"ca\.key: missing"):
        issue_server(tmp_path, now())


@pytest.mark.parametrize(
    "left", [["ca.key"], ["ca.key", "server.key"], ["ca.key", "ca.crt"], ["ca.key", "ca.crt", "server.key"]]
)
def test_killed_while_they_were_made(tmp_path: Path, left: list[str]) -> None:
    """Keys are written before their certificates: what has no certificate yet was never used."""
    ensure_certificates(tmp_path, now())
    for name in FILES:
        if name not in left:
            (tmp_path / name).unlink()
    ensure_certificates(tmp_path, now())
    shake_hands(tmp_path, tmp_path / "ca.crt", "localhost")


def test_a_certificate_for_other_names_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fedlearn_server.deployment.certificates.ALWAYS_NAMED", ("fleet.example.org",))
        ensure_certificates(tmp_path, now())
    with pytest.raises(DeploymentRefused, match=r"not for 127\.0\.0\.1, localhost"):
        check_certificates(tmp_path, now())


def test_a_name_that_cannot_be_in_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(DeploymentRefused, match="--host bücher: neither an address nor an ASCII host name"):
        ensure_certificates(tmp_path, now(), ["bücher"])


def test_node_keys(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_node_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = load_ssh_private_key(path.read_bytes(), None)  # as Flower's own SuperNode reads it
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert load_pem_public_key(public_pem(path)) == key.public_key()
    assert load_node_key(path).private_numbers() == key.private_numbers()


def test_node_keys_of_earlier_versions_go_on_working(tmp_path: Path) -> None:
    key, path = new_key(), tmp_path / "key.pem"
    path.write_bytes(pem_of(key))
    path.chmod(0o600)
    assert load_pem_public_key(public_pem(path)) == key.public_key()
    assert load_node_key(path).private_numbers() == key.private_numbers()


@pytest.mark.parametrize("content", [b"", b"rubbish", None], ids=["empty", "rubbish", "missing"])
def test_node_keys_that_are_none(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeploymentRefused, match=r"key\.pem: not a node's key"):
        public_pem(path)
