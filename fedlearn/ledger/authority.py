"""What only a scope's authority may enter: grants, which are also renewals, and recoveries."""

from __future__ import annotations

from collections.abc import Callable

from fedlearn.errors import OutOfRange
from fedlearn.ledger.entries import Granted, Recovered, grant_message, recovery_message
from fedlearn.ledger.scope import Scope
from fedlearn.ledger.signing import SigningKey


def signed_grant(
    scope: Scope, authority: SigningKey, purpose: str, epoch: str, epsilon: float
) -> Callable[[int, float], Granted]:
    """Return what makes the grant's entry, signed for the place it gets; raises as ``require_authority``."""
    require_authority(scope, authority)

    def make(sequence: int, time: float) -> Granted:
        message = grant_message(scope.ledger_id, sequence, purpose, epoch, epsilon)
        return Granted(sequence, time, purpose, epoch, epsilon, authority.sign(message))

    return make


def signed_recovery(scope: Scope, authority: SigningKey, reason: str) -> Callable[[int, float], Recovered]:
    """Return what makes the recovery's entry, signed for the place it gets; raises as ``require_authority``."""
    require_authority(scope, authority)

    def make(sequence: int, time: float) -> Recovered:
        message = recovery_message(scope.ledger_id, sequence, reason)
        return Recovered(sequence, time, reason, authority.sign(message))

    return make


def require_authority(scope: Scope, key: SigningKey) -> None:
    """Raise OutOfRange unless ``key`` is the scope's authority key."""
    if scope.authority_key is None:
        raise OutOfRange("the ledger has no authority, so it has no grants and no recovery; make a new ledger.")
    if key.public != scope.authority_key:
        raise OutOfRange(
            f"authority key {key.public[:16]}...: the ledger's authority is {scope.authority_key[:16]}...; "
            "use that one's key file."
        )
