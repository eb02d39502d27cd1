"""Linux default of the ``Attestation`` hook: there is nothing to attest with."""

from __future__ import annotations


class NoAttestation:
    """Gives no evidence. A gateway that demands some refuses this phone."""

    def evidence(self, challenge: bytes) -> bytes:  # noqa: ARG002  # the hook's signature
        return b""
