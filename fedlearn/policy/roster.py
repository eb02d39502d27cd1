"""The roster: who may sign policies, bundles and statuses. The phone maker's root key signs it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import PolicyInvalid, SignatureRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict
from fedlearn.policy.decode import LARGEST_INTEGER, from_json, to_json
from fedlearn.policy.dsse import MAX_BYTES, ROSTER_TYPE, open_envelope
from fedlearn.policy.keys import require_key
from fedlearn.policy.times import parse_time

SCHEMA: Final = "fedlearn.roster/1"
MOST_KEYS: Final = 32


@dataclass(frozen=True, slots=True)
class Roster:
    """Who may sign.

    Args:
        version: rises with every change, >= 1; a phone never goes back to a lower one.
        expires: UTC, ``YYYY-MM-DDTHH:MM:SSZ``; after it nobody on it may sign.
        threshold: how many different approvers must sign a policy or a task bundle, 1..len(approvers).
        approvers: public keys, 64 hexadecimal digits each, none twice.
        status_keys: public keys of which any one signs the status; at least one, none twice.

    Raises:
        PolicyInvalid: a value out of range; names ``roster.<field>``.
    """

    version: int
    expires: str
    threshold: int
    approvers: tuple[str, ...]
    status_keys: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.version <= LARGEST_INTEGER:
            raise PolicyInvalid(f"roster.version={self.version}: must be >= 1.")
        parse_time(self.expires, "roster.expires")
        for name, keys in (("approvers", self.approvers), ("status_keys", self.status_keys)):
            if not 1 <= len(keys) <= MOST_KEYS or len(set(keys)) != len(keys):
                raise PolicyInvalid(f"roster.{name}: list 1 to {MOST_KEYS} keys, none twice.")
            for i, key in enumerate(keys):
                require_key(key, f"roster.{name}[{i}]")
        if not 1 <= self.threshold <= len(self.approvers):
            raise PolicyInvalid(f"roster.threshold={self.threshold}: must be 1..{len(self.approvers)}, the approvers.")

    @property
    def expires_at(self) -> float:
        """``expires`` in seconds since the Unix epoch."""
        return parse_time(self.expires, "roster.expires")

    def require_current(self, now: float) -> None:
        """Raise SignatureRefused if the roster has expired at ``now``, seconds since the Unix epoch."""
        if not now < self.expires_at:
            raise SignatureRefused(f"roster.expires={self.expires}: has passed; have the root sign a new roster.")


def roster_bytes(roster: Roster) -> bytes:
    """Return the canonical bytes: what the root signs."""
    return canonical_bytes({"schema": SCHEMA, **to_json(roster)})


def roster_from_bytes(data: bytes) -> Roster:
    """Read canonical bytes back; raise PolicyInvalid on any other bytes."""
    roster = from_json(Roster, parse_strict(data, MAX_BYTES, "roster"), SCHEMA, "roster")
    if roster_bytes(roster) != data:
        raise PolicyInvalid("roster: not in canonical form; write it with `fedlearn policy roster`.")
    return roster


def open_roster(envelope: bytes, root_keys: Collection[str], now: float, seen_version: int = 0) -> Roster:
    """Return a roster that may be used now.

    Args:
        envelope: signed by any one of ``root_keys``.
        root_keys: the phone maker's root keys; several while one replaces another.
        now: seconds since the Unix epoch.
        seen_version: the highest version that was ever accepted here, 0 for none.

    Raises:
        SignatureRefused: not signed by a root key, expired, or of a version below ``seen_version``.
        PolicyInvalid: signed, but no roster.
    """
    roster = roster_from_bytes(open_envelope(envelope, ROSTER_TYPE, root_keys, 1, "roster"))
    if roster.version < seen_version:
        raise SignatureRefused(
            f"roster.version={roster.version}: version {seen_version} was seen before; it never goes back."
        )
    roster.require_current(now)
    return roster
