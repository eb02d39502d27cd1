"""A catalogue bundle: public items that can be replaced without approving a training again.

Its items decide which words of the owner are kept, so it needs as many approvers as everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.catalogue import Catalogue
from fedlearn.device.archive import read_archive
from fedlearn.device.catalogue_file import attributes_of, catalogue_bytes, catalogue_from_bytes
from fedlearn.device.manifest import countersign, manifest_bytes, require_manifest, seal
from fedlearn.device.plan import CatalogueSpec
from fedlearn.device.plan_codec import MOST_CATALOGUE_BYTES
from fedlearn.errors import BundleRefused
from fedlearn.policy.canonical import sha256_hex
from fedlearn.policy.dsse import CATALOGUE_TYPE, Signer
from fedlearn.policy.roster import Roster

SCHEMA: Final = "fedlearn.catalogue-bundle/1"
CATALOGUE: Final = "catalogue.json"
DEFAULT_MAX_BYTES: Final = 5_000_000
"""Of ``catalogue.json``, where an exporter is not told another cap."""

_ROOM: Final = 2**18  # for the manifest


@dataclass(frozen=True, slots=True)
class CatalogueBundle:
    """A catalogue bundle that passed every check. Only ``open_catalogue_bundle`` makes one.

    Args:
        catalogue_bytes: ``catalogue.json``.
        digest: SHA-256 (hex) of the whole bundle.
        contents: SHA-256 (hex) of the manifest without its signatures.
        catalogue_digest: ``Catalogue.digest``: what Queries are made against.
        version: rises with every new catalogue of the same name; to be kept as the next ``seen_version``.
        expires: seconds since the Unix epoch; the earlier of the bundle's and the roster's.
        items: number of items of the ranked domain.
    """

    catalogue_bytes: bytes = field(repr=False)
    digest: str
    contents: str
    catalogue_digest: str
    version: int
    expires: float
    items: int

    @property
    def digests(self) -> tuple[str, ...]:
        """What a status may stop or revoke."""
        return (self.catalogue_digest, self.contents, self.digest)


def spec_of(catalogue: Catalogue, max_bytes: int = DEFAULT_MAX_BYTES) -> CatalogueSpec:
    """Return the spec that catalogues like this one fit."""
    return CatalogueSpec(catalogue.name, catalogue.domain, attributes_of(catalogue), max_bytes)


def build_catalogue_bundle(catalogue: Catalogue, *, version: int, expires: float, signers: Sequence[Signer]) -> bytes:
    """Return a signed catalogue bundle: a pure function of its arguments.

    Args:
        catalogue: public data.
        version: >= 1, higher than that of the catalogue it replaces.
        expires: seconds since the Unix epoch; cut to the second.
        signers: approvers of the roster; a phone asks for as many as the roster's threshold.

    Raises:
        BundleRefused: a phone would refuse it, whoever signs.
        SignatureRefused: no signer, or one twice.
    """
    if version < 1:
        raise BundleRefused(f"version={version}: must be >= 1.")
    files = {CATALOGUE: catalogue_bytes(catalogue)}
    return seal(files, CATALOGUE_TYPE, manifest_bytes(SCHEMA, files, expires, {"version": version}), signers)


def add_catalogue_approval(data: bytes, signer: Signer) -> bytes:
    """Return the bundle with one more approver's signature, e.g. to hand it over to another roster's keys."""
    return countersign(data, signer, CATALOGUE_TYPE, SCHEMA, MOST_CATALOGUE_BYTES + _ROOM)


def open_catalogue_bundle(
    data: bytes, *, roster: Roster, spec: CatalogueSpec, now: float, seen_version: int = 0
) -> CatalogueBundle:
    """Return a catalogue that may be used now with a plan.

    Args:
        data: the bundle.
        roster: under which the plan's policy was accepted (``Bundle.verified.roster``).
        spec: of the plan.
        now: seconds since the Unix epoch.
        seen_version: the highest version of this catalogue that was ever accepted here, 0 for none.

    Raises:
        SignatureRefused: signed by fewer approvers than the roster asks for, with a foreign or bad signature, or the
            roster has expired.
        BundleRefused: too large for ``spec``, damaged, expired, older than one seen before, or a catalogue of another
            name, domain, or with an attribute that ``spec`` does not list.
    """
    archive = read_archive(data, spec.max_bytes + _ROOM)
    roster.require_current(now)
    manifest, files = require_manifest(archive, CATALOGUE_TYPE, SCHEMA, roster.approvers, roster.threshold)
    if set(files) != {CATALOGUE}:
        raise BundleRefused(f"catalogue bundle: must hold {CATALOGUE} and its manifest alone.")
    if not now < manifest.expires:
        raise BundleRefused("manifest.expires: has passed; sign a new catalogue bundle.")
    version = manifest.rest.integer("version", least=1)
    manifest.rest.end()
    if version < seen_version:
        raise BundleRefused(f"manifest.version: {version}; version {seen_version} was seen before, it never goes back.")
    catalogue = catalogue_from_bytes(files[CATALOGUE], spec.max_bytes)
    _require_fit(catalogue, spec)
    return CatalogueBundle(
        catalogue_bytes=files[CATALOGUE],
        digest=sha256_hex(data),
        contents=manifest.contents,
        catalogue_digest=catalogue.digest,
        version=version,
        expires=min(manifest.expires, roster.expires_at),
        items=len(catalogue),
    )


def _require_fit(catalogue: Catalogue, spec: CatalogueSpec) -> None:
    for name, found, wanted in (("name", catalogue.name, spec.name), ("domain", catalogue.domain, spec.domain)):
        if found != wanted:
            raise BundleRefused(f"catalogue.{name}: {found!r}; the plan was approved for {wanted!r}.")
    surplus = sorted(set(attributes_of(catalogue)) - set(spec.attributes))
    if surplus:
        raise BundleRefused(f"catalogue.attributes: {surplus[0]!r} is not among those the plan was approved for.")
