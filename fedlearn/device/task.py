"""A signed task: what the operator asks of one phone in one step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fedlearn.device.mechanism import MechanismTerms

VERSION: Final = 1
SIGNING_CONTEXT: Final = b"fedlearn.task.v1\x00"
TOKEN_BYTES: Final = 16


@dataclass(frozen=True, slots=True)
class DeviceTask:
    """One step for one phone.

    Args:
        run_id: names the run; also its mechanism: b and k count in its steps.
        population: id in the policy.
        purpose: id in the policy.
        recipient: id of the operator, whose key signed it.
        step: 0-based mechanism step; an abandoned attempt keeps its step.
        attempt: rises when a step is tried again.
        plan_digest: SHA-256 (hex) of the approved plan.
        weights_digest: SHA-256 (hex) of the step's weights.
        token: 16 bytes, single-use.
        issued: seconds since the Unix epoch.
        expires: likewise.
        round_size: least phones in a sum that may be released.
        mechanism: what the phone recomputes its cost from.
        shuffle_seed: order of examples and negatives; protects nobody.
        digest: SHA-256 of the signed bytes, 32 bytes: what a contribution names as its task.
    """

    run_id: str
    population: str
    purpose: str
    recipient: str
    step: int
    attempt: int
    plan_digest: str
    weights_digest: str
    token: bytes = field(repr=False)
    issued: float
    expires: float
    round_size: int
    mechanism: MechanismTerms
    shuffle_seed: int
    digest: bytes
