"""Private keys of nodes and certificates: elliptic-curve P-384, readable by their user only.

Those of certificates are in PKCS 8, those of nodes in OpenSSH's form: Flower's own SuperNode reads no other.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)

from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment.layout import write_private

OPENSSH: Final = b"BEGIN OPENSSH PRIVATE KEY"


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP384R1())


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted: its file's mode protects it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def write_node_key(path: Path) -> None:
    """Make a node a new private key."""
    write_private(path, new_key().private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def public_pem(path: Path) -> bytes:
    """Return the public half of a node's key (OpenSSH or, as earlier versions wrote it, PKCS 8), as SuperLink knows it.

    Raises:
        DeploymentRefused: the file is missing or holds no elliptic-curve key.
    """
    try:
        content = path.read_bytes()
        read = load_ssh_private_key if OPENSSH in content else load_pem_private_key
        key = read(content, password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise DeploymentRefused(
            f"{path}: not a node's key ({error}); put it back from a backup, or replace the node's key "
            "(docs/operations.md)."
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise DeploymentRefused(f"{path}: not an elliptic-curve key; replace the node's key (docs/operations.md).")
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
