"""Documents that the kit signs when it runs, since they expire: policy, roster, status, bundles; and broken ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

from fedlearn.device.archive import read_archive, write_archive
from fedlearn.device.bundle import (
    GOLDEN,
    INFER,
    MOST_BUNDLE_BYTES,
    PLAN,
    POLICY,
    ROSTER,
    STEP,
    WEIGHTS,
    build_bundle,
)
from fedlearn.device.catalogue_bundle import CATALOGUE, build_catalogue_bundle
from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.device.manifest import MANIFEST_FILE
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.policy.document import Policy
from fedlearn.policy.dsse import POLICY_TYPE, ROSTER_TYPE, STATUS_TYPE, sign_envelope
from fedlearn.policy.load import policy_bytes
from fedlearn.policy.roster import Roster, roster_bytes
from fedlearn.policy.status import Status, status_bytes
from fedlearn.policy.times import format_time
from fedlearn_client.conformance.keys import KitKey
from fedlearn_client.conformance.town import DAY_S, make_policy, version_at

FIXTURES: Final = Path(__file__).parent / "fixtures"
STATIC: Final = (PLAN, STEP, INFER, WEIGHTS, GOLDEN)
"""Files of a task bundle that do not expire."""

_LARGEST_CATALOGUE: Final = 5_000_000
_STATUSES: Final = 1000  # more than one run of the kit issues, so that the next run's are newer


@cache
def fixture(name: str) -> bytes:
    """Return a file that was exported once (``tests/conformance/kit_fixtures.py``)."""
    return (FIXTURES / name).read_bytes()


@dataclass(frozen=True, slots=True)
class Papers:
    """Signs with the keys of one directory.

    Args:
        keys: by their names in ``keys.NAMES``.
        now: seconds since the Unix epoch: when everything is issued. Versions are made from it, so that they grow.
    """

    keys: Mapping[str, KitKey] = field(repr=False)
    now: float

    @property
    def root(self) -> str:
        """The root's public key, which the target must trust."""
        return self.keys["root"].public

    @property
    def approvers(self) -> tuple[KitKey, KitKey]:
        """Both; the roster asks for two."""
        return self.keys["approver-1"], self.keys["approver-2"]

    @property
    def policy(self) -> Policy:
        """The policy."""
        return make_policy(self.now, self.keys["task"].public)

    def roster(self, root: KitKey | None = None) -> bytes:
        """Return the roster, signed by the root, or by somebody else."""
        made = Roster(
            version=version_at(self.now),
            expires=format_time(self.now + 300 * DAY_S),
            threshold=2,
            approvers=tuple(key.public for key in self.approvers),
            status_keys=(self.keys["status"].public,),
        )
        return sign_envelope(ROSTER_TYPE, roster_bytes(made), [self.keys["root"] if root is None else root])

    def task_bundle(
        self, *, signers: Sequence[KitKey] | None = None, days: float = 30.0, root: KitKey | None = None
    ) -> bytes:
        """Return the task bundle; a good one unless told otherwise."""
        files = {name: fixture(name) for name in STATIC}
        files[POLICY] = sign_envelope(POLICY_TYPE, policy_bytes(self.policy), self.approvers)
        files[ROSTER] = self.roster(root)
        used = self.approvers if signers is None else signers
        return build_bundle(files, expires=self.now + days * DAY_S, signers=used)

    def unsigned_bundle(self) -> bytes:
        """Return the task bundle with no signature on its manifest."""
        files = read_archive(self.task_bundle(), MOST_BUNDLE_BYTES)
        manifest = json.loads(files[MANIFEST_FILE])
        return write_archive({**files, MANIFEST_FILE: canonical_bytes({**manifest, "signatures": []})})

    def tampered_bundle(self) -> bytes:
        """Return the task bundle with one bit of its weights turned, in an archive that is whole."""
        files = read_archive(self.task_bundle(), MOST_BUNDLE_BYTES)
        weights = bytearray(files[WEIGHTS])
        weights[0] ^= 1
        return write_archive({**files, WEIGHTS: bytes(weights)})

    def catalogue_bundle(self, *, signers: Sequence[KitKey] | None = None, days: float = 60.0) -> bytes:
        """Return the catalogue bundle; a good one unless told otherwise."""
        return build_catalogue_bundle(
            catalogue_from_bytes(fixture(CATALOGUE), _LARGEST_CATALOGUE),
            version=version_at(self.now),
            expires=self.now + days * DAY_S,
            signers=self.approvers if signers is None else signers,
        )

    def status(
        self, number: int = 0, *, age_s: float = 0.0, stopped: Sequence[str] = (), signer: KitKey | None = None
    ) -> bytes:
        """Return a signed status.

        Args:
            number: its version lies this much above that of the first.
            age_s: issued so long ago.
            stopped: digests that rest.
            signer: somebody else than the roster's status key.
        """
        made = Status(version_at(self.now) * _STATUSES + number, format_time(self.now - age_s), tuple(stopped), ())
        return sign_envelope(STATUS_TYPE, status_bytes(made), [self.keys["status"] if signer is None else signer])
