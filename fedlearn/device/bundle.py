"""A task bundle: everything a phone needs for one training, approved as a whole. Format: docs/bundle.md."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.device.archive import read_archive
from fedlearn.device.fields import checked_version, version_key
from fedlearn.device.graphs import require_graphs
from fedlearn.device.manifest import countersign, manifest_bytes, require_manifest, seal
from fedlearn.device.plan import DevicePlan
from fedlearn.device.plan_codec import plan_from_bytes
from fedlearn.device.weights import all_finite, expected_bytes
from fedlearn.errors import BundleRefused
from fedlearn.policy.canonical import sha256_hex
from fedlearn.policy.dsse import BUNDLE_TYPE, Signer
from fedlearn.policy.floors import plan_breaches
from fedlearn.policy.roster import open_roster
from fedlearn.policy.times import parse_time
from fedlearn.policy.verify import VerifiedPolicy, verify_policy

SCHEMA: Final = "fedlearn.bundle/1"
MOST_BUNDLE_BYTES: Final = 8 * 2**20 - 1024  # an Install request of 8 MiB holds it

PLAN: Final = "plan.json"
STEP: Final = "step.onnx"
PRIVATE_STEP: Final = "private_step.onnx"
INFER: Final = "infer.onnx"
WEIGHTS: Final = "weights.bin"
PRIVATE: Final = "private.bin"
GOLDEN: Final = "golden.json"
POLICY: Final = "policy.dsse.json"
ROSTER: Final = "roster.dsse.json"

ALWAYS: Final = frozenset((PLAN, STEP, INFER, WEIGHTS, GOLDEN, POLICY, ROSTER))


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that passed every check. Only ``open_bundle`` makes one.

    Args:
        plan: what is trained and how.
        plan_digest: SHA-256 (hex) of ``plan.json``: what a task names.
        digest: SHA-256 (hex) of the whole bundle: what a gateway hands out.
        contents: SHA-256 (hex) of the manifest without its signatures: the same however many approved it.
        expires: seconds since the Unix epoch; the earliest of the bundle's, the policy's and the roster's.
        verified: the policy, with the roster it was accepted under.
        files: name -> content, without the manifest.
    """

    plan: DevicePlan
    plan_digest: str
    digest: str
    contents: str
    expires: float
    verified: VerifiedPolicy
    files: Mapping[str, bytes] = field(repr=False)

    @property
    def digests(self) -> tuple[str, ...]:
        """What a status may stop or revoke; ``require_live`` takes all of them, before each use.

        ``contents`` is the one to revoke a bundle by: one more signature would change ``digest``.
        """
        return (self.contents, self.digest, self.plan_digest, self.verified.digest)

    @property
    def step(self) -> bytes:
        """The graph that trains: the private step where the plan's steps are private."""
        return self.files[STEP if self.plan.training.example_privacy is None else PRIVATE_STEP]


def build_bundle(files: Mapping[str, bytes], *, expires: float, signers: Sequence[Signer]) -> bytes:
    """Return a bundle, signed by each of ``signers``: a pure function of its arguments.

    Args:
        files: plan.json, step.onnx, infer.onnx, weights.bin, golden.json, policy.dsse.json, roster.dsse.json; and
            private_step.onnx where the plan's steps are private, private.bin where a parameter is.
        expires: seconds since the Unix epoch; cut to the second.
        signers: approvers; more can sign later (``add_approval``).

    Raises:
        BundleRefused: a phone would refuse it, whoever signs.
        SignatureRefused: no signer, or one twice.
    """
    plan = plan_from_bytes(_one(files, PLAN))
    _require_contents(plan, files)
    payload = manifest_bytes(SCHEMA, files, expires, {"minimum_runtime": plan.minimum_runtime})
    data = seal(files, BUNDLE_TYPE, payload, signers)
    if len(data) > MOST_BUNDLE_BYTES:
        raise BundleRefused(f"bundle: {len(data)} bytes; at most {MOST_BUNDLE_BYTES}.")
    return data


def add_approval(data: bytes, signer: Signer) -> bytes:
    """Return the bundle with one more approver's signature; nothing else changes.

    Raises:
        BundleRefused: no bundle, or one whose files are not those of its manifest.
        SignatureRefused: no manifest, or this key has signed it already.
    """
    return countersign(data, signer, BUNDLE_TYPE, SCHEMA, MOST_BUNDLE_BYTES)


def open_bundle(data: bytes, *, root_keys: Collection[str], now: float, runtime: str, seen_roster: int = 0) -> Bundle:
    """Return a bundle that may be used now, if the status lets it live (``require_live`` with its ``digests``).

    Guarantee: a bundle that differs in one byte from one that enough approvers signed is refused, as is one that they
    signed but that a phone must not run. The checks, in order: size; container; roster, by a root key; signatures on
    the manifest; size and SHA-256 of every file, none missing, none surplus; expiry; runtime; policy; plan; plan
    against the policy's floors and caps; graphs against the plan; weights against the plan.

    Args:
        data: the bundle.
        root_keys: the phone maker's root keys, in hexadecimal.
        now: seconds since the Unix epoch.
        runtime: version of this runtime.
        seen_roster: the highest roster version that was ever accepted here.

    Raises:
        BundleRefused: a check of the bundle's own fails.
        SignatureRefused: the roster, the manifest or the policy lacks a signature, or the roster is old.
        PolicyInvalid: the policy or roster inside is none, or has expired.
    """
    archive = read_archive(data, MOST_BUNDLE_BYTES)
    roster = open_roster(_one(archive, ROSTER), root_keys, now, seen_roster)
    manifest, files = require_manifest(archive, BUNDLE_TYPE, SCHEMA, roster.approvers, roster.threshold)
    if not now < manifest.expires:
        raise BundleRefused("manifest.expires: has passed; export and approve it again.")
    least = checked_version(manifest.rest.take("minimum_runtime"), "manifest.minimum_runtime")
    manifest.rest.end()
    if version_key(checked_version(runtime, "runtime")) < version_key(least):
        raise BundleRefused(f"manifest.minimum_runtime: {least}; this runtime is {runtime}. Update it.")
    verified = verify_policy(_one(files, POLICY), files[ROSTER], root_keys, now, seen_roster=seen_roster)
    plan = plan_from_bytes(_one(files, PLAN))
    if plan.minimum_runtime != least:
        raise BundleRefused(f"minimum_runtime: the plan says {plan.minimum_runtime}, the manifest {least}.")
    breaches = plan_breaches(verified.policy, plan)
    if breaches:
        raise BundleRefused(f"plan: breaks the policy. {' '.join(breaches)}")
    _require_contents(plan, files)
    return Bundle(
        plan=plan,
        plan_digest=sha256_hex(files[PLAN]),
        digest=sha256_hex(data),
        contents=manifest.contents,
        expires=min(manifest.expires, roster.expires_at, parse_time(verified.policy.expires, "expires")),
        verified=verified,
        files=files,
    )


def _one(files: Mapping[str, bytes], name: str) -> bytes:
    if name not in files:
        raise BundleRefused(f"{name}: absent.")
    return files[name]


def _require_contents(plan: DevicePlan, files: Mapping[str, bytes]) -> None:
    """Refuse files that do not fit the plan."""
    expected = set(ALWAYS)
    if plan.training.example_privacy is not None:
        expected.add(PRIVATE_STEP)
    if plan.private:
        expected.add(PRIVATE)
    for name in sorted(expected ^ set(files)):
        raise BundleRefused(f"{name}: {'absent' if name in expected else 'no file of such a bundle'}.")
    require_graphs(plan, files)
    for name, specs in ((WEIGHTS, plan.shared), (PRIVATE, plan.private)):
        if name in expected and len(files[name]) != expected_bytes(specs):
            raise BundleRefused(
                f"{name}: {len(files[name])} bytes; the plan's parameters have {expected_bytes(specs)}."
            )
        if name in expected and not all_finite(files[name]):
            raise BundleRefused(f"{name}: a value is not finite.")
