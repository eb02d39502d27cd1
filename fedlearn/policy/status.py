"""The signed status: what was stopped or revoked. Short-lived, so that nobody can hold back bad news for long."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import PolicyInvalid, StatusRefused
from fedlearn.policy.canonical import canonical_bytes, parse_strict, sha256_hex
from fedlearn.policy.decode import LARGEST_INTEGER, from_json, to_json
from fedlearn.policy.dsse import MAX_BYTES, STATUS_TYPE, open_envelope
from fedlearn.policy.roster import Roster
from fedlearn.policy.times import parse_time

SCHEMA: Final = "fedlearn.status/1"
MAX_AGE_S: Final = 86_400
MAX_AHEAD_S: Final = 300
MOST_DIGESTS: Final = 10_000
EVERYTHING: Final = "*"
"""In ``stopped``: the kill switch for all policies and bundles at once."""

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Status:
    """What may not be used.

    Args:
        version: rises with every change of content, >= 1. Issued again with the same content and a new time, it rises
            too: one version has one content.
        issued: UTC, ``YYYY-MM-DDTHH:MM:SSZ``; it holds for 24 hours.
        stopped: SHA-256 digests (hex) of policies, plans and bundles that rest until a later status leaves them out;
            ``("*",)`` stops everything.
        revoked: the same, for good: an operator who wants one back makes a new version of it.

    Raises:
        PolicyInvalid: a value out of range; names ``status.<field>``.
    """

    version: int
    issued: str
    stopped: tuple[str, ...]
    revoked: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.version <= LARGEST_INTEGER:
            raise PolicyInvalid(f"status.version={self.version}: must be >= 1.")
        parse_time(self.issued, "status.issued")
        for name, digests in (("stopped", self.stopped), ("revoked", self.revoked)):
            if len(digests) > MOST_DIGESTS or len(set(digests)) != len(digests):
                raise PolicyInvalid(f"status.{name}: list at most {MOST_DIGESTS} digests, none twice.")
            for i, digest in enumerate(digests):
                if not _DIGEST.fullmatch(digest) and not (name == "stopped" and digest == EVERYTHING):
                    raise PolicyInvalid(
                        f"status.{name}[{i}]={digest[:20]!r}: write a SHA-256 digest, 64 lower-case hexadecimal digits"
                        f"{', or * for everything' if name == 'stopped' else ''}."
                    )

    @property
    def issued_at(self) -> float:
        """``issued`` in seconds since the Unix epoch."""
        return parse_time(self.issued, "status.issued")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical bytes: two contents of one version have two digests."""
        return sha256_hex(status_bytes(self))


def status_bytes(status: Status) -> bytes:
    """Return the canonical bytes: what a status key signs."""
    return canonical_bytes({"schema": SCHEMA, **to_json(status)})


def status_from_bytes(data: bytes) -> Status:
    """Read canonical bytes back; raise PolicyInvalid on any other bytes."""
    status = from_json(Status, parse_strict(data, MAX_BYTES, "status"), SCHEMA, "status")
    if status_bytes(status) != data:
        raise PolicyInvalid("status: not in canonical form; write it with `fedlearn policy status`.")
    return status


def open_status(envelope: bytes, roster: Roster, now: float, seen_version: int = 0, *, seen_digest: str = "") -> Status:
    """Return a status that holds now.

    Args:
        envelope: signed by one of the roster's status keys.
        roster: opened by ``open_roster``.
        now: seconds since the Unix epoch.
        seen_version: the highest version that was ever accepted here, 0 for none.
        seen_digest: digest of the status of that version, "" if it was not kept.

    Raises:
        SignatureRefused: not signed by a status key, or the roster has expired.
        StatusRefused: too old, from the future, of a version below ``seen_version``, or of the same version with
            another content.
        PolicyInvalid: signed, but no status.
    """
    roster.require_current(now)
    status = status_from_bytes(open_envelope(envelope, STATUS_TYPE, roster.status_keys, 1, "status"))
    if status.version < seen_version:
        raise StatusRefused(
            f"status.version={status.version}: version {seen_version} was seen before; it never goes back."
        )
    if seen_digest and status.version == seen_version and status.digest != seen_digest:
        raise StatusRefused(f"status.version={status.version}: was seen before with another content.")
    _require_fresh(status, now)
    return status


def require_live(status: Status | None, digests: Iterable[str], now: float) -> None:
    """Return if everything named may be used now.

    Args:
        status: opened by ``open_status``, perhaps a while ago, or None where none has arrived yet.
        digests: of all that is about to be used: policy, plan, bundle.
        now: seconds since the Unix epoch.

    Raises:
        StatusRefused: there is no status, it is too old or from the future, or it stops or revokes one of them.
    """
    if status is None:
        raise StatusRefused("status: none has arrived yet; fetch the signed status.")
    _require_fresh(status, now)
    if EVERYTHING in status.stopped:
        raise StatusRefused(f"status.version={status.version}: everything is stopped.")
    stopped, revoked = frozenset(status.stopped), frozenset(status.revoked)
    for digest in digests:
        if not _DIGEST.fullmatch(digest):
            raise StatusRefused(f"digest={digest[:20]!r}: not a SHA-256 digest in lower-case hexadecimal.")
        if digest in revoked:
            raise StatusRefused(f"status.revoked: {digest[:16]}... is revoked.")
        if digest in stopped:
            raise StatusRefused(f"status.stopped: {digest[:16]}... is stopped.")


def _require_fresh(status: Status, now: float) -> None:
    age = now - status.issued_at
    # written so that a NaN is refused
    if not age <= MAX_AGE_S:
        raise StatusRefused(f"status.issued={status.issued}: more than 24 hours ago; fetch a new one.")
    if not age >= -MAX_AHEAD_S:
        raise StatusRefused(f"status.issued={status.issued}: more than 5 minutes ahead of this clock; set the clock.")
