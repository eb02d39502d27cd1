"""Checks a catalogue bundle in a process of its own: 5 MB of JSON become 50 MB of objects, and the daemon must not grow
by them. ``python -m fedlearn_client.catalogue_check`` is that process; it reads one request and answers once.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Final

from fedlearn.device.catalogue_bundle import open_catalogue_bundle
from fedlearn.device.plan import CatalogueSpec
from fedlearn.errors import BundleRefused, SignatureRefused, TrustError
from fedlearn.policy.roster import Roster, roster_bytes, roster_from_bytes

TIMEOUT_S: Final = 120.0
_HEAD_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class Checked:
    """What is known of a catalogue bundle that passed every check; fields as in ``CatalogueBundle``."""

    digest: str
    contents: str
    catalogue_digest: str
    version: int
    expires: float
    items: int


def check_catalogue(data: bytes, *, roster: Roster, spec: CatalogueSpec, now: float, seen_version: int) -> Checked:
    """Return what ``open_catalogue_bundle`` says about a bundle.

    Raises:
        TrustError: what it refuses with; BundleRefused too where it cannot be checked.
    """
    head = json.dumps(
        {"roster": roster_bytes(roster).decode(), "spec": asdict(spec), "now": now, "seen_version": seen_version}
    ).encode()
    request = len(head).to_bytes(_HEAD_BYTES, "big") + head + data
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-m", "fedlearn_client.catalogue_check"],
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            cwd="/",
            check=True,
        )
        answer = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise BundleRefused(f"catalogue_bundle: cannot be checked here ({type(error).__name__}).") from error
    if "refused" in answer:
        kind = SignatureRefused if answer["code"] == SignatureRefused.code else BundleRefused
        raise kind(answer["refused"])
    return Checked(**answer)


def answer(request: bytes) -> dict[str, object]:
    """Answer one request: the fields of ``Checked``, or ``refused`` and ``code``."""
    end = _HEAD_BYTES + int.from_bytes(request[:_HEAD_BYTES], "big")
    head = json.loads(request[_HEAD_BYTES:end])
    spec = CatalogueSpec(**{**head["spec"], "attributes": tuple(head["spec"]["attributes"])})
    roster = roster_from_bytes(head["roster"].encode())
    try:
        opened = open_catalogue_bundle(
            request[end:], roster=roster, spec=spec, now=head["now"], seen_version=head["seen_version"]
        )
    except TrustError as error:
        return {"refused": str(error), "code": error.code}
    return asdict(
        Checked(
            digest=opened.digest,
            contents=opened.contents,
            catalogue_digest=opened.catalogue_digest,
            version=opened.version,
            expires=opened.expires,
            items=opened.items,
        )
    )


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answer(sys.stdin.buffer.read())))
