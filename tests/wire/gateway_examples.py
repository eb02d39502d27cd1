"""The messages behind ``tests/wire/frozen/gateway``, and the script that wrote them.

Run it only to add a file for a new message: a frozen file that changes means that phones in the field and a gateway
cannot talk any more. Phones are updated last, if ever.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import Message

from fedlearn.device.credential import Credential, issue_credential
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.requests import Denial, Signed, signed_bytes
from fedlearn.device.task import DeviceTask
from fedlearn.device.task_codec import sign_task, task_bytes, with_digest
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Toeplitz, Tree
from fedlearn.proto import gateway_pb2 as pb

FROZEN = Path(__file__).with_name("frozen") / "gateway"
DIGEST = bytes(range(32))
TOKEN = bytes(range(200, 216))


class Operator:
    """A key that everybody knows: RFC 8032, 7.1, test 1. Ed25519 is deterministic, so signatures can be frozen too."""

    _key = Ed25519PrivateKey.from_private_bytes(
        bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    )
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"

    def sign(self, message: bytes) -> str:
        """Return the signature in hexadecimal."""
        return self._key.sign(message).hex()


def mechanism(kind: str, factorization: Factorization) -> MechanismTerms:
    """Terms whose every field differs from its default."""
    return MechanismTerms(
        kind=kind,
        factorization=factorization,
        noise_multiplier=0.7 if kind == "tree" else 1.25,
        l2_clip_norm=0.1,
        grid_step=2.0**-34,
        steps=2000,
        min_separation=100,
        max_participations=20,
    )


def task(terms: MechanismTerms) -> DeviceTask:
    """A task whose every field differs from its default."""
    return with_digest(
        DeviceTask(
            run_id="run-7.main",
            population="city",
            purpose="train-restaurants",
            recipient="city-lab",
            step=12,
            attempt=1,
            plan_digest=DIGEST.hex(),
            weights_digest=DIGEST[::-1].hex(),
            token=TOKEN,
            issued=1_800_000_000.125,
            expires=1_800_003_600.5,
            round_size=1000,
            mechanism=terms,
            shuffle_seed=-7,
            digest=b"",
        )
    )


TASKS = {
    "device_task_independent": task(mechanism("independent", INDEPENDENT)),
    "device_task_gaussian": task(mechanism("gaussian", INDEPENDENT)),
    "device_task_banded": task(mechanism("banded", Toeplitz((1.0, 0.5, 0.375, 1e-7)))),
    "device_task_blt": task(mechanism("blt", Blt((0.9921875, 0.1), (0.25, 1e-05)))),
    "device_task_tree": task(mechanism("tree", Tree())),
}


def signed(request: Signed) -> Signed:
    """The request as a phone with the operator's key would send it: the key is nobody's secret."""
    request.device_key = bytes.fromhex(Operator.public)
    request.signature = bytes.fromhex(Operator().sign(signed_bytes(request)))
    return request


CREDENTIAL = Credential("city", TOKEN, 1_900_000_000.5)
SIGNED = pb.SignedTask.FromString(sign_task(TASKS["device_task_blt"], Operator()))

MESSAGES: dict[str, Message] = {
    **{name: pb.DeviceTask.FromString(task_bytes(task)) for name, task in TASKS.items()},
    "signed_task": SIGNED,
    "check_in_request": pb.CheckInRequest(
        version=1,
        population="city",
        purpose="train-restaurants",
        bundle_digest=DIGEST,
        runtime="0.1.0",
        status_version=300,
        attestation=b"evidence",
        padding=bytes(5),
        nonce=TOKEN,
    ),
    "check_in_request_signed": signed(
        pb.CheckInRequest(
            version=1,
            population="city",
            purpose="train-restaurants",
            bundle_digest=DIGEST,
            runtime="0.1.0",
            status_version=300,
            attestation=b"evidence",
            padding=bytes(5),
            nonce=TOKEN,
            time_ms=1_800_000_000_125,
            release=7,
        )
    ),
    "enrol_request": signed(
        pb.EnrolRequest(
            version=1,
            credential=issue_credential(CREDENTIAL, Operator()),
            attestation=b"evidence",
            nonce=TOKEN,
            time_ms=1_800_000_000_125,
            padding=bytes(5),
        )
    ),
    "enrol_reply_enrolled": pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_ENROLLED),
    "enrol_reply_refused": pb.EnrolReply(outcome=pb.EnrolReply.OUTCOME_REFUSED, reason=Denial.CREDENTIAL),
    "check_in_reply_denied": pb.CheckInReply(retry_after_s=900, reason=Denial.CLOCK, time_ms=1_800_000_000_125),
    "check_in_reply_release": pb.CheckInReply(retry_after_s=900, release=b"release", reason=Denial.NO_TASK),
    "check_in_reply_task": pb.CheckInReply(
        task=SIGNED, retry_after_s=900, status=b'{"payload":""}', ledger_checkpoint=b"checkpoint"
    ),
    "check_in_reply_later": pb.CheckInReply(retry_after_s=14_400),
    "fetch_request": pb.FetchRequest(digest=DIGEST, offset=1 << 33, max_bytes=1 << 20, padding=bytes(2)),
    "fetch_reply": pb.FetchReply(data=b"\x00\x01\xff", total=(1 << 33) + 3),
    "upload_request": pb.UploadRequest(token=TOKEN, contribution=b"envelope", padding=bytes(3)),
    "upload_reply_accepted": pb.UploadReply(outcome=pb.UploadReply.OUTCOME_ACCEPTED, ledger_checkpoint=b"checkpoint"),
    "upload_reply_late": pb.UploadReply(outcome=pb.UploadReply.OUTCOME_LATE),
    "upload_reply_rejected": pb.UploadReply(outcome=pb.UploadReply.OUTCOME_REJECTED, reason="over_norm"),
}

FRAMES = {name: message.SerializeToString(deterministic=True) for name, message in MESSAGES.items()}


if __name__ == "__main__":
    FROZEN.mkdir(exist_ok=True)
    for name, frame in FRAMES.items():
        path = FROZEN / f"{name}.hex"
        if not path.exists():
            path.write_text(frame.hex() + "\n", encoding="ascii")
