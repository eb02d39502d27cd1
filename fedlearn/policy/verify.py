"""Whether a policy may be acted on: the one function that devices and servers both call."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from fedlearn.errors import PolicyInvalid
from fedlearn.policy.canonical import parse_strict, sha256_hex
from fedlearn.policy.document import Policy
from fedlearn.policy.dsse import MAX_BYTES, POLICY_TYPE, open_envelope
from fedlearn.policy.load import policy_bytes, policy_from_json
from fedlearn.policy.roster import Roster, open_roster
from fedlearn.policy.rules import forbidden
from fedlearn.policy.times import parse_time


@dataclass(frozen=True, slots=True)
class VerifiedPolicy:
    """A policy that enough approvers signed. Only ``verify_policy`` makes one.

    Args:
        policy: what it says.
        digest: SHA-256 (hex) of its canonical bytes: what a status names.
        roster: under which it was accepted.
    """

    policy: Policy
    digest: str
    roster: Roster


def verify_policy(
    policy_envelope: bytes, roster_envelope: bytes, root_keys: Collection[str], now: float, *, seen_roster: int = 0
) -> VerifiedPolicy:
    """Return a policy that holds now.

    The status is not part of it: call ``status.require_live`` with the digest before every use.

    Args:
        policy_envelope: signed by as many approvers as the roster asks for.
        roster_envelope: signed by one of ``root_keys``.
        root_keys: the phone maker's root keys, in hexadecimal.
        now: seconds since the Unix epoch.
        seen_roster: the highest roster version that was ever accepted here.

    Raises:
        SignatureRefused: a missing signature, an expired roster, or one older than seen before.
        PolicyInvalid: signed, but no policy, not in canonical form, expired, or one that no signature can allow (a
            source that is scraped, an enrolled population with a placeholder key).
    """
    roster = open_roster(roster_envelope, root_keys, now, seen_roster)
    payload = open_envelope(policy_envelope, POLICY_TYPE, roster.approvers, roster.threshold, "policy")
    policy = policy_from_json(parse_strict(payload, MAX_BYTES, "policy"))
    if policy_bytes(policy) != payload:
        raise PolicyInvalid("policy: signed in a form that is not canonical; sign it with `fedlearn policy sign`.")
    for finding in forbidden(policy):
        raise PolicyInvalid(finding)
    if not now < parse_time(policy.expires, "expires"):
        raise PolicyInvalid(f"expires={policy.expires}: has passed; have a new version approved.")
    return VerifiedPolicy(policy, sha256_hex(payload), roster)
