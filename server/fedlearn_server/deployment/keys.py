"""Private keys of nodes and certificates: elliptic-curve P-384, PEM, readable by their user only."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment.layout import write_private


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP384R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: its file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_node_key(path: Path) -> None:
    """Make a node a new private key."""
    write_private(path, pem_of(new_key()))


def public_pem(path: Path) -> bytes:
    """Return the public half of a node's key, as SuperLink registers it.

    Raises:
        DeploymentRefused: the file is missing or holds no elliptic-curve key.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise DeploymentRefused(
            f"{path}: not a node's key ({error}); put it back from a backup, or replace the node's key "
            "(docs/operations.md)."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentRefused(f"{path}: not an elliptic-curve key; replace the node's key (docs/operations.md).")
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
