"""What phones and gateways say to each other reads the same for ever, and is written the same while it is version 1."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import pytest

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
    assert methods == {name: (f"{name}Request", f"{name}Reply") for name in ("CheckIn", "Fetch", "Upload")}


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


def test_signature() -> None:
    assert open_task(frozen("signed_task"), examples.Operator.public) == examples.TASKS["device_task_blt"]
    assert sign_task(examples.TASKS["device_task_blt"], examples.Operator()) == frozen("signed_task")
