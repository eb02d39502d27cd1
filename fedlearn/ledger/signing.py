"""Ed25519 keys (RFC 8032): the operator's, made at first use beside the other secret state, and authorities' in files.

A private key is a PKCS#8 PEM file readable by its owner alone; a public key is 64 hexadecimal digits.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from fedlearn.errors import LedgerError, MissingDependency, OutOfRange, PrivacyError
from fedlearn.files import state_directory, write_durably
from fedlearn.privacy.secret_files import create_private, make_private_directory, read_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

OPERATOR_FILE: Final = "operator.key"
PUBLIC_SUFFIX: Final = ".pub"
_KEY_DIGITS: Final = 64
_SIGNATURE_DIGITS: Final = 128


class SigningKey:
    """A private key. Nothing prints it.

    Args:
        key: as ``cryptography`` holds it.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw().hex()

    @classmethod
    def fresh(cls) -> SigningKey:
        """Return a new key from the operating system's randomness."""
        _require_cryptography()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415  # optional

        return cls(Ed25519PrivateKey.generate())

    @property
    def public(self) -> str:
        """The public key, 64 hexadecimal digits."""
        return self._public

    def sign(self, message: bytes) -> str:
        """Return the signature, 128 hexadecimal digits."""
        return self._key.sign(message).hex()

    def pem(self) -> bytes:
        """Return the key unencrypted, for a file that only its owner reads."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415  # optional

        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def verified(public: str | None, signature: str, message: bytes) -> bool:
    """Return whether ``signature`` (hex) is by the holder of ``public`` (hex) over ``message``; None signs nothing."""
    if public is None:
        return False
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # optional

    try:
        if len(signature) != _SIGNATURE_DIGITS or signature != signature.lower():
            return False
        _public_key(public).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def operator_key(directory: Path | None = None) -> SigningKey:
    """Return this machine's operator key, made if there is none.

    Args:
        directory: of the secret state; by default $FEDLEARN_STATE, else the user's state directory.

    Raises:
        PrivacyError: the file is damaged, others can read it, or it cannot be made.
        MissingDependency: ``cryptography`` is not installed.
    """
    path = _operator_path(directory)
    if not path.exists():
        try:
            make_private_directory(path.parent)
            create_private(path, SigningKey.fresh().pem())
        except OSError as error:
            raise PrivacyError(f"{path}: cannot be made ({error}); set FEDLEARN_STATE to a local disk.") from error
    return read_key(path)


def held_operator_key(public: str, directory: Path | None = None) -> SigningKey | None:
    """Return the operator key if this machine has it and it is the one of ``public``."""
    path = _operator_path(directory)
    key = read_key(path) if path.exists() else None
    return key if key is not None and key.public == public else None


def make_key_pair(path: Path) -> str:
    """Write a new private key to ``path`` and its public key to ``path.pub``; return the public key.

    Raises:
        OutOfRange: one of the files exists, or they cannot be written.
    """
    public_path = path.with_name(path.name + PUBLIC_SUFFIX)
    for there in (path, public_path):
        if there.exists():
            raise OutOfRange(f"{there}: exists; a key is never replaced. Choose another file name.")
    key = SigningKey.fresh()
    try:
        create_private(path, key.pem())
        if read_key(path).public != key.public:
            raise OutOfRange(f"{path}: another process made it just now; choose another file name.")
        write_durably(public_path, f"{key.public}\n".encode("ascii"))
    except OSError as error:
        raise OutOfRange(f"{path}: cannot be made ({error}); name a file in a folder that can be written.") from error
    return key.public


def read_key(path: Path) -> SigningKey:
    """Read a private key file.

    Raises:
        PrivacyError: it is absent, damaged, of another kind, or others can read it.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # optional
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(read_private(path), password=None)
    except OSError as error:
        raise PrivacyError(f"{path}: cannot be read ({error}); name the private key file.") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PrivacyError(f"{path}: no private key in PEM; `fedlearn ledger keygen` makes one.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise PrivacyError(f"{path}: not an Ed25519 key; `fedlearn ledger keygen` makes one.")
    return SigningKey(key)


def read_public(text: str) -> str:
    """Return a public key that is given as 64 hexadecimal digits or as the name of a file that holds them.

    Raises:
        OutOfRange: it is neither.
    """
    value = text
    path = Path(text)
    if len(text) != _KEY_DIGITS and path.is_file():
        value = path.read_text(encoding="utf-8", errors="replace").strip()
    try:
        _public_key(value)
    except (ValueError, TypeError) as error:
        raise OutOfRange(
            f"{text}: no public key; give the .pub file that `fedlearn ledger keygen` wrote, or its 64 digits."
        ) from error
    return value


def require_key(key: SigningKey | None, public: str, name: str) -> SigningKey:
    """Return ``key``; raise LedgerError if this machine does not hold the key of ``public``."""
    if key is None:
        raise LedgerError(
            f"{name}: entries are signed by the operator key {public[:16]}..., which is not on this machine; "
            "set FEDLEARN_STATE to the directory that has it, or make a ledger of your own."
        )
    return key


def _operator_path(directory: Path | None) -> Path:
    return (state_directory() if directory is None else directory) / "keys" / OPERATOR_FILE


@lru_cache(maxsize=64)
def _public_key(public: str) -> Ed25519PublicKey:
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  # optional

    if len(public) != _KEY_DIGITS or public != public.lower():
        raise ValueError("not a public key")
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401, PLC0415  # optional
    except ImportError as error:
        raise MissingDependency("The ledger's signatures need cryptography: pip install 'fedlearn[ledger]'") from error
