"""What a release consists of: SHA256SUMS over every file, and a signature over it.

::

    RELEASE/*.whl *.tar.gz sbom/ licences/ images/ release.json
    RELEASE/SHA256SUMS        as sha256sum writes it
    RELEASE/SHA256SUMS.sig    Ed25519 over its bytes, 128 hexadecimal digits

Whoever holds the public key needs nothing of ours to check it: openssl and sha256sum do (docs/release.md).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from fedlearn.errors import SignatureRefused, TrustError
from fedlearn.files import write_durably
from fedlearn.ledger.signing import SigningKey, verified
from tools.release.distributions import digests

SUMS: Final = "SHA256SUMS"
SIGNATURE: Final = "SHA256SUMS.sig"
_LINE: Final = re.compile(r"([0-9a-f]{64})  ([^\\\n]+)")


def sign(release: Path, key: SigningKey) -> None:
    """Write the sums of all that lies in a release, and their signature.

    Raises:
        TrustError: there is a link in it, or something that is neither file nor folder.
    """
    for name in (SUMS, SIGNATURE):
        (release / name).unlink(missing_ok=True)
    _require_plain(release)
    text = "".join(f"{digest}  {name}\n" for name, digest in digests(release).items()).encode()
    write_durably(release / SUMS, text)
    write_durably(release / SIGNATURE, f"{key.sign(text)}\n".encode("ascii"))


def verify(release: Path, public: str) -> tuple[str, ...]:
    """Return the files of a release if it is whole and signed.

    Args:
        release: its folder.
        public: the key that it must be signed by, 64 hexadecimal digits, from somewhere else than the release.

    Raises:
        SignatureRefused: no signature, or not by this key, or over other sums.
        TrustError: a file was changed, is missing, or is surplus; a link; sums that cannot be read.
    """
    sums = _read(release / SUMS)
    signature = _read(release / SIGNATURE).decode("ascii", errors="replace")
    if not verified(public, signature.removesuffix("\n"), sums):
        raise SignatureRefused(
            f"{release / SIGNATURE}: not a signature over {SUMS} by {public[:16]}...; do not install this."
        )
    _require_plain(release)
    signed = _parsed(sums, release / SUMS)
    found = {name: digest for name, digest in digests(release).items() if name not in {SUMS, SIGNATURE}}
    for name in sorted({*signed, *found}):
        if name not in found:
            raise TrustError(f"{name}: is missing from {release}.")
        if name not in signed:
            raise TrustError(f"{name}: is not of this release; remove it from {release}.")
        if found[name] != signed[name]:
            raise TrustError(f"{name}: was changed since it was signed; do not install it.")
    return tuple(signed)


def _parsed(sums: bytes, path: Path) -> dict[str, str]:
    lines = sums.decode("utf-8", errors="replace").splitlines()
    matches = [_LINE.fullmatch(line) for line in lines]
    signed = {match[2]: match[1] for match in matches if match is not None}
    if not signed or len(signed) != len(lines):
        raise TrustError(f"{path}: not the sums of a release.")
    return signed


def _require_plain(release: Path) -> None:
    """A link would be checked as one file and read as another."""
    for path in release.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise TrustError(f"{path}: neither a file nor a folder; a release holds nothing else.")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureRefused(f"{path}: cannot be read ({error.strerror}); an unsigned release is none.") from None
