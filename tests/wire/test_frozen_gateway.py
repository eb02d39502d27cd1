"""What phones and gateways say to each other reads the same for ever, and is written the same while it is version 1."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.credential import open_credential
from fedlearn.device.requests import Denial, challenge_bytes, is_signed
from fedlearn.device.task import SIGNING_CONTEXT, VERSION
from fedlearn.device.task_codec import open_task, sign_task, task_bytes, task_from_bytes
from fedlearn.proto import gateway_pb2 as pb

_spec = importlib.util.spec_from_file_location("gateway_examples", Path(__file__).with_name("gateway_examples.py"))
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

DIGESTS = {
    "device_task_banded": "4c53051412fbd110910bb2f378f6de3f1c54d30db4d26a853aae313fcf3da3ac",
    "device_task_blt": "b26686c1cb7201d03796ef141b3f97da47d7fd27522f58e3b782fd413eb4ba75",
    "device_task_gaussian": "a76bb7cca2786e6e5aaf36616fbaa792eab319ceed72fe64ed658214698a6bb3",
    "device_task_independent": "ae4ab259c72936966bac5eb198a4174769f4c1be9c7fcc685c345dd038447af2",
    "device_task_tree": "adcfc28a88ce80139526f938b86a90d680201abeb854d50a64d71988b1de5277",
}


def frozen(name: str) -> bytes:
    return bytes.fromhex((examples.FROZEN / f"{name}.hex").read_text(encoding="ascii"))


def test_every_example_is_frozen_and_nothing_else() -> None:
    assert {path.stem for path in examples.FROZEN.glob("*.hex")} == set(examples.FRAMES)


def test_constants() -> None:
    assert VERSION == 1
    assert SIGNING_CONTEXT == b"fedlearn.task.v1\x00"
    assert pb.DESCRIPTOR.package == "fedlearn.gateway.v1"
    methods = {method.name: (method.input_type.name, method.output_type.name) for method in _service().methods}
    assert methods == {name: (f"{name}Request", f"{name}Reply") for name in ("Enrol", "CheckIn", "Fetch", "Upload")}


def _service() -> Any:
    return pb.DESCRIPTOR.services_by_name["Gateway"]


@pytest.mark.parametrize("name", sorted(examples.FRAMES))
def test_bytes(name: str) -> None:
    expected = examples.MESSAGES[name]
    assert examples.FRAMES[name] == frozen(name)
    assert type(expected).FromString(frozen(name)) == expected


def test_every_field_of_every_message_is_in_an_example() -> None:
    """So that no number, type or meaning can change unnoticed."""
    seen: set[str] = set()

    def visit(message: Any) -> None:
        for field, value in message.ListFields():
            seen.add(field.full_name)
            if field.message_type is not None:
                visit(value)

    for message in examples.MESSAGES.values():
        visit(message)
    every = {field.full_name for kind in pb.DESCRIPTOR.message_types_by_name.values() for field in kind.fields}
    assert seen == every


def test_outcomes() -> None:
    assert pb.EnrolReply.Outcome.items() == [
        ("OUTCOME_UNSPECIFIED", 0),
        ("OUTCOME_ENROLLED", 1),
        ("OUTCOME_REFUSED", 2),
    ]
    assert pb.UploadReply.Outcome.items() == [
        ("OUTCOME_UNSPECIFIED", 0),
        ("OUTCOME_ACCEPTED", 1),
        ("OUTCOME_LATE", 2),
        ("OUTCOME_REJECTED", 3),
    ]


@pytest.mark.parametrize("name", sorted(examples.TASKS))
def test_task(name: str) -> None:
    task = task_from_bytes(frozen(name))
    assert task == examples.TASKS[name]
    assert task_bytes(task) == frozen(name)
    assert task.digest.hex() == hashlib.sha256(frozen(name)).hexdigest() == DIGESTS[name]


@pytest.mark.parametrize(
    ("name", "kind", "challenge"),
    [
        (
            "check_in_request_signed",
            pb.CheckInRequest,
            "369f66dcc836c37a2c7113f8bb3aa38ce39438692ba3623411c226a3dbdb9203",
        ),
        ("enrol_request", pb.EnrolRequest, "eaffd7f7589d362892e772a05b9f7e9fe6e433a6a95367f3e4a16aac3ea2c9d8"),
    ],
)
def test_what_a_phone_signs(name: str, kind: Any, challenge: str) -> None:
    """The signature in a frozen file is over context and fields as they were when it was made."""
    request = kind.FromString(frozen(name))
    assert is_signed(request)
    assert hashlib.sha256(challenge_bytes(request)).hexdigest() == challenge
    request.padding = bytes(100)
    assert is_signed(request)
    for field, value in (("time_ms", 1), ("nonce", bytes(16)), ("attestation", b"other")):
        changed = kind.FromString(frozen(name))
        setattr(changed, field, value)
        assert not is_signed(changed)


def test_a_credential() -> None:
    credential = pb.EnrolRequest.FromString(frozen("enrol_request")).credential
    assert open_credential(credential, [examples.Operator.public], 1_800_000_000.0) == examples.CREDENTIAL


def test_denials() -> None:
    assert [denial.value for denial in Denial] == [
        *("malformed", "version", "bad_signature", "clock", "replayed", "too_often", "credential", "attestation"),
        *("not_enrolled", "revoked", "population", "bundle", "too_soon", "participations_used_up", "no_task", "busy"),
    ]


def test_signature() -> None:
    assert open_task(frozen("signed_task"), examples.Operator.public) == examples.TASKS["device_task_blt"]
    assert sign_task(examples.TASKS["device_task_blt"], examples.Operator()) == frozen("signed_task")
