"""An authority of this deployment's own, and SuperLink's certificate under it."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment.keys import new_key, pem_of
from fedlearn_server.deployment.layout import make_private, write_private

AUTHORITY_LIFE: Final = timedelta(days=3650)
SERVER_LIFE: Final = timedelta(days=365)
CLOCK_SKEW: Final = timedelta(hours=1)
"""Certificates count as valid from this long before they are made: a node's clock may be behind."""

CA_CERTIFICATE: Final = "ca.crt"
CA_KEY: Final = "ca.key"
SERVER_CERTIFICATE: Final = "server.crt"
SERVER_KEY: Final = "server.key"
ALWAYS_NAMED: Final = ("localhost", "127.0.0.1")
RENEW: Final = "`fedlearn up --renew-certificates` makes a new one"


@dataclass(frozen=True, slots=True)
class Certificates:
    """What a deployment's certificates say.

    Args:
        expires: of SuperLink's.
        authority_expires: of the authority's.
        names: host names and addresses that SuperLink's is for.
    """

    expires: datetime
    authority_expires: datetime
    names: tuple[str, ...]


def now_utc() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def ensure_certificates(directory: Path, now: datetime, names: Sequence[str] = ()) -> Certificates:
    """Make what is missing and check the rest.

    Args:
        directory: for ca.crt, ca.key, server.crt, server.key. ``ca.key`` may be kept elsewhere: only renewing needs it.
        now: time.
        names: for a new certificate, besides localhost.

    Raises:
        DeploymentRefused: expired, not of each other, or half of a pair is missing; the message says the way out.
    """
    make_private(directory)
    if not {CA_CERTIFICATE, SERVER_CERTIFICATE} & {path.name for path in directory.iterdir()}:
        make_authority(directory, now)
    if (directory / CA_CERTIFICATE).exists() and not (directory / SERVER_CERTIFICATE).exists():
        issue_server(directory, now, names)
    return check_certificates(directory, now)


def make_authority(directory: Path, now: datetime) -> None:
    """Make a new authority: from now on, nodes need its ca.crt."""
    key = new_key()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlearn deployment authority")])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(subject, subject, key.public_key(), now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    write_private(directory / CA_KEY, pem_of(key))
    write_private(directory / CA_CERTIFICATE, certificate.public_bytes(Encoding.PEM))


def issue_server(directory: Path, now: datetime, names: Sequence[str] = (), stem: str = "server") -> None:
    """Make SuperLink (or a proxy, with another file ``stem``) a new key and certificate; nodes notice nothing.

    Raises:
        DeploymentRefused: the authority's key is not there, not its own, or the authority has expired.
    """
    authority = _load(directory / CA_CERTIFICATE)
    authority_key = _load_key(directory / CA_KEY)
    _require_pair(authority, authority_key, directory / CA_CERTIFICATE, directory / CA_KEY)
    _require_current(authority, directory / CA_CERTIFICATE, now)
    key = new_key()
    every = tuple(dict.fromkeys((*ALWAYS_NAMED, *names)))
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedlearn SuperLink")])
    life = min(SERVER_LIFE, authority.not_valid_after_utc - now)
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    certificate = (
        _builder(subject, authority.subject, key.public_key(), now, life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in every]), critical=False)
        .add_extension(issuer_key, critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    write_private(directory / f"{stem}.key", pem_of(key))
    write_private(directory / f"{stem}.crt", certificate.public_bytes(Encoding.PEM))


def read_certificates(directory: Path) -> Certificates:
    """Return what the certificates say, expired or not; raise DeploymentRefused if they cannot be read."""
    authority, server = _load(directory / CA_CERTIFICATE), _load(directory / SERVER_CERTIFICATE)
    return Certificates(server.not_valid_after_utc, authority.not_valid_after_utc, _names(server))


def check_certificates(directory: Path, now: datetime) -> Certificates:
    """Return what the certificates say, if SuperLink and its nodes can use them.

    Raises:
        DeploymentRefused: missing, damaged, expired, not valid yet, or not belonging together.
    """
    server_path, authority_path = directory / SERVER_CERTIFICATE, directory / CA_CERTIFICATE
    authority, server = _load(authority_path), _load(server_path)
    _require_pair(server, _load_key(directory / SERVER_KEY), server_path, directory / SERVER_KEY)
    try:
        server.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise DeploymentRefused(f"{server_path}: not signed by {authority_path}; {RENEW}.") from None
    _require_current(authority, authority_path, now)
    _require_current(server, server_path, now)
    missing = set(ALWAYS_NAMED) - set(_names(server))
    if missing:
        raise DeploymentRefused(f"{server_path}: not for {', '.join(sorted(missing))}; {RENEW}.")
    return read_certificates(directory)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name)
    except ValueError as error:
        raise DeploymentRefused(f"--host {name}: neither an address nor an ASCII host name ({error}).") from None


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in found)


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except FileNotFoundError:
        raise DeploymentRefused(f"{path}: missing; put it back from a backup. If it is lost: {RENEW}.") from None
    except (OSError, ValueError) as error:
        raise DeploymentRefused(f"{path}: not a certificate that can be read ({error}); {RENEW}.") from None


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except FileNotFoundError:
        raise DeploymentRefused(f"{path}: missing; put it back from a backup. If it is lost: {RENEW}.") from None
    except (OSError, ValueError, TypeError) as error:
        raise DeploymentRefused(f"{path}: not a key that can be read ({error}); {RENEW}.") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentRefused(f"{path}: not an elliptic-curve key; {RENEW}.")
    return key


def _require_pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey, path: Path, key_path: Path) -> None:
    form = Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise DeploymentRefused(f"{key_path}: not the key of {path}; {RENEW}.")


def _require_current(certificate: x509.Certificate, path: Path, now: datetime) -> None:
    if now > certificate.not_valid_after_utc:
        raise DeploymentRefused(f"{path}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {RENEW}.")
    first = certificate.not_valid_before_utc
    if now < first:
        raise DeploymentRefused(
            f"{path}: valid from {first:%Y-%m-%d %H:%M} UTC, now is {now:%Y-%m-%d %H:%M}; set this machine's clock."
        )
