"""Who signs a bundle, and whether a phone would take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedlearn import __version__
from fedlearn.device.bundle import POLICY, ROSTER, build_bundle, open_bundle
from fedlearn.errors import BundleRefused, PolicyInvalid, SignatureRefused
from fedlearn.export.dev_keys import make_dev_documents
from fedlearn.policy.canonical import parse_strict
from fedlearn.policy.document import Policy
from fedlearn.policy.dsse import (
    MAX_BYTES,
    POLICY_TYPE,
    ROSTER_TYPE,
    Signer,
    sign_envelope,
    signed_by,
    unverified_payload,
)
from fedlearn.policy.lint import errors_of, lint
from fedlearn.policy.load import load_policy, policy_bytes, policy_from_json
from fedlearn.policy.roster import Roster, roster_from_bytes


@dataclass(frozen=True, slots=True)
class Approval:
    """Policy, roster and signers of an export.

    Args:
        policy: the rules.
        policy_envelope: signed by approvers, not necessarily by enough.
        roster_envelope: signed by the root.
        roster: what it says.
        signers: approvers whose keys are here.
        root: the root's public key where it is known, else "".
    """

    policy: Policy
    policy_envelope: bytes = field(repr=False)
    roster_envelope: bytes = field(repr=False)
    roster: Roster
    signers: Sequence[Signer] = field(repr=False)
    root: str

    @property
    def is_enough(self) -> bool:
        """Whether policy and bundle carry as many approvals as the roster asks for."""
        approved = len(set(signed_by(self.policy_envelope)) & set(self.roster.approvers))
        return min(approved, len(self.signers)) >= self.roster.threshold

    def sign(self, files: dict[str, bytes], expires: float) -> bytes:
        """Return the bundle of ``files`` with policy and roster."""
        whole = {**files, POLICY: self.policy_envelope, ROSTER: self.roster_envelope}
        return build_bundle(whole, expires=expires, signers=self.signers)

    def require_acceptable(self, bundle: bytes, now: float) -> None:
        """Raise what a phone would raise, where the root is known and there are enough approvals."""
        if self.root and self.is_enough:
            open_bundle(bundle, root_keys=[self.root], now=now, runtime=__version__)


def read_approval(policy: Path, roster: Path, signers: Sequence[Signer], root: str, now: float) -> Approval:
    """Read what was signed before, and sign the policy where it comes as a plain file.

    Args:
        policy: YAML or JSON, or an envelope that holds one.
        roster: envelope.
        signers: approvers, at least one.
        root: public key, 64 hexadecimal digits, or "".
        now: seconds since the Unix epoch.

    Raises:
        PolicyInvalid: no policy or roster, or a policy with an error (``fedlearn policy lint``).
        SignatureRefused: no signer, or one that is not on the roster.
    """
    roster_envelope = _read(roster)
    kind, payload = unverified_payload(roster_envelope)
    if kind != ROSTER_TYPE:
        raise PolicyInvalid(f"--roster {roster}: an envelope of {kind[:60]}, not of a roster.")
    listed = roster_from_bytes(payload)
    if not signers:
        raise SignatureRefused("--approver-key: name at least one; an unsigned bundle is of no use to a phone.")
    strangers = [signer.public for signer in signers if signer.public not in listed.approvers]
    if strangers:
        raise SignatureRefused(f"--approver-key: {strangers[0][:16]}... is not among the roster's approvers.")
    rules, envelope = _policy(policy, signers)
    wrong = errors_of(lint(rules, now))
    if wrong:
        raise PolicyInvalid(f"--policy {policy}: {' '.join(wrong)}")
    return Approval(rules, envelope, roster_envelope, listed, tuple(signers), root)


def dev_approval(directory: Path, policy: Path, now: float) -> Approval:
    """Return an approval by keys of a demonstration (``dev_keys``); raises as ``read_approval`` does."""
    rules, _ = _policy(policy, ())
    made = make_dev_documents(directory, rules, now)
    wrong = errors_of(lint(made.policy, now))
    if wrong:
        raise PolicyInvalid(f"--policy {policy}: {' '.join(wrong)}")
    listed = roster_from_bytes(unverified_payload(made.roster_envelope)[1])
    return Approval(made.policy, made.policy_envelope, made.roster_envelope, listed, made.approvers, made.root)


def _policy(path: Path, signers: Sequence[Signer]) -> tuple[Policy, bytes]:
    """Return a policy and its envelope; a plain file is signed here, b"" without signers."""
    if path.suffix == ".json":
        data = _read(path)
        body = parse_strict(data, MAX_BYTES, path.name)
        if isinstance(body, dict) and "payloadType" in body:
            kind, payload = unverified_payload(data)
            if kind != POLICY_TYPE:
                raise PolicyInvalid(f"--policy {path}: an envelope of {kind[:60]}, not of a policy.")
            return policy_from_json(parse_strict(payload, MAX_BYTES, path.name)), data
    policy = load_policy(path)
    return policy, sign_envelope(POLICY_TYPE, policy_bytes(policy), list(signers)) if signers else b""


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyInvalid(f"{path}: cannot be read ({error.strerror or error}); name a file.") from error


def require_bundle_file(path: Path, most: int) -> bytes:
    """Read a bundle that is to get one more signature."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise BundleRefused(f"{path}: cannot be read ({error.strerror or error}); name a bundle.") from error
    if len(data) > most:
        raise BundleRefused(f"{path}: over {most} bytes; no bundle is as large.")
    return data
