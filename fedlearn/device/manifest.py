"""Files under one signed manifest: what task bundles and catalogue bundles have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.device.archive import read_archive, write_archive
from fedlearn.device.fields import Fields, checked_digest, checked_text
from fedlearn.errors import BundleRefused, PolicyInvalid, SignatureRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict, sha256_hex
from fedlearn.policy.dsse import Signer, add_signature, open_envelope, sign_envelope, signed_by, unverified_payload
from fedlearn.policy.times import format_time, parse_time

MANIFEST_FILE: Final = "manifest.dsse.json"
MOST_MANIFEST_BYTES: Final = 2**18


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose signatures are good and whose files are all there.

    Args:
        contents: SHA-256 (hex) of the signed bytes: the same for any number of signatures.
        expires: seconds since the Unix epoch.
        rest: fields of this kind of bundle.
    """

    contents: str
    expires: float
    rest: Fields = field(repr=False)


def manifest_bytes(schema: str, files: Mapping[str, bytes], expires: float, more: Mapping[str, object]) -> bytes:
    """Return what is signed: name, size and SHA-256 of every file, the expiry (cut to the second), and ``more``."""
    listed = [
        {"name": name, "size": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        for name in sorted(files)
    ]
    return canonical_bytes({"schema": schema, "files": listed, "expires": format_time(expires), **more})


def seal(files: Mapping[str, bytes], payload_type: str, payload: bytes, signers: Sequence[Signer]) -> bytes:
    """Return the archive of ``files`` and the manifest ``payload``, signed by each of ``signers``."""
    if MANIFEST_FILE in files:
        raise BundleRefused(f"{MANIFEST_FILE}: is made here; leave it out.")
    return write_archive({**files, MANIFEST_FILE: sign_envelope(payload_type, payload, signers)})


def countersign(data: bytes, signer: Signer, payload_type: str, schema: str, max_bytes: int) -> bytes:
    """Return the archive with one more signature on its manifest; no file changes and no signature is lost.

    The manifest must be that of the files; whether the other signatures are good is left to who opens the bundle.

    Raises:
        BundleRefused: no such archive, another kind of bundle, or files that are not those of the manifest.
        SignatureRefused: no manifest, or this key has signed it already.
    """
    files = read_archive(data, max_bytes)
    envelope = _take_manifest(files)
    kind, payload = unverified_payload(envelope)
    if kind != payload_type:
        raise BundleRefused(f"manifest: is {kind[:64]!r}; expected {payload_type}.")
    _read(payload, schema, files)
    return write_archive({**files, MANIFEST_FILE: add_signature(envelope, signer)})


def require_manifest(
    files: Mapping[str, bytes], payload_type: str, schema: str, approvers: Collection[str], threshold: int
) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the files that it covers.

    Guarantee: no byte of the archive is outside what was checked. The files are pinned by their digests, the manifest
    by its signatures, and its envelope has one spelling in which every signature is an approver's and good; one more
    signature is welcome, a bad or a foreign one is not.

    Args:
        files: of the archive.
        payload_type: of this kind of bundle.
        schema: likewise.
        approvers: public keys that may sign.
        threshold: how many of them must.

    Raises:
        SignatureRefused: absent, unsigned, signed by too few, or with a signature that is not an approver's.
        BundleRefused: another schema, a file that is missing, surplus, or of another size or digest.
    """
    covered = dict(files)
    envelope = _take_manifest(covered)
    payload = open_envelope(envelope, payload_type, approvers, threshold, "manifest")
    if not set(signed_by(envelope)) <= set(approvers):
        raise SignatureRefused("manifest: carries a signature by a key that is no approver's; leave it out.")
    if canonical_bytes(_strict(envelope, MANIFEST_FILE)) != envelope:
        raise SignatureRefused("manifest: its envelope is not in canonical form; write it with sign_envelope.")
    return _read(payload, schema, covered), covered


def _take_manifest(files: dict[str, bytes]) -> bytes:
    if MANIFEST_FILE not in files:
        raise SignatureRefused(f"{MANIFEST_FILE}: absent; an unsigned bundle is not read.")
    return files.pop(MANIFEST_FILE)


def _read(payload: bytes, schema: str, files: Mapping[str, bytes]) -> Manifest:
    body = _strict(payload, "manifest")
    if canonical_bytes(body) != payload:
        raise BundleRefused("manifest: not canonical JSON; write it with manifest_bytes.")
    fields = Fields(body, "")
    if fields.take("schema") != schema:
        raise BundleRefused(f"manifest.schema: must be {schema}; update the runtime, or export again.")
    listed = fields.rows("files", _entry)
    if [name for name, _, _ in listed] != sorted(files):
        raise BundleRefused("manifest.files: not exactly the files of the archive, in name order.")
    for name, size, digest in listed:
        if len(files[name]) != size or sha256_hex(files[name]) != digest:
            raise BundleRefused(f"{name}: another size or SHA-256 than the manifest says.")
    try:
        expires = parse_time(fields.text("expires"), "manifest.expires")
    except PolicyInvalid as error:
        raise BundleRefused(str(error)) from error
    return Manifest(sha256_hex(payload), expires, fields)


def _entry(body: object, path: str) -> tuple[str, int, str]:
    fields = Fields(body, path)
    name, size = checked_text(fields.take("name"), fields.path("name")), fields.integer("size", least=0)
    digest = checked_digest(fields.take("sha256"), fields.path("sha256"))
    fields.end()
    return name, size, digest


def _strict(data: bytes, what: str) -> object:
    try:
        return parse_strict(data, MOST_MANIFEST_BYTES, what)
    except PolicyInvalid as error:
        raise BundleRefused(str(error)) from error
