"""Bytes that were written once must read the same for ever, and be written the same while the version stands."""

from __future__ import annotations

import importlib.util
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.task import RoundTask
from fedlearn.terms import CohortSchedule, ExamplePrivacy
from fedlearn.types import Contribution
from fedlearn.wire import WIRE_VERSION, decode_contribution, decode_reply, decode_task, task_digest

_spec = importlib.util.spec_from_file_location("wire_examples", Path(__file__).with_name("wire_examples.py"))
examples = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(examples)

DIGESTS = {
    "task_private": "eb0de1a604c441ea318e0cf15f8aab6ad1e04cab0f1c80ba758207b8bf0157d1",
    "task_plain": "6c2e77d1207a80487e02870cf31064b52ccd9769955be5abe414a672a2ed28f1",
    "task_participation": "214f7ce3ad31e28bc8df4df3d0f88656ef4ee51e8636e99f4c4ea1f1e311a61a",
    "task_adaptive": "01eace507ed7ad50a6f0eceb3a0431a87edfb1e074f84d553c1b764e31b9d6de",
}


def frozen(name: str) -> bytes:
    return bytes.fromhex((examples.FROZEN / f"{name}.hex").read_text(encoding="ascii"))


def assert_same_contribution(found: Contribution, expected: Contribution) -> None:
    for field in fields(Contribution):
        if field.name != "values":
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert found.values.dtype == expected.values.dtype
    assert found.values.tobytes() == expected.values.tobytes()


def assert_same_task(found: RoundTask, expected: RoundTask) -> None:
    for field in fields(RoundTask):
        if field.name != "parameters":
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert sorted(found.parameters) == sorted(expected.parameters)
    for name, array in expected.parameters.items():
        assert found.parameters[name].dtype == np.float32
        np.testing.assert_array_equal(found.parameters[name], array)


def test_every_example_is_frozen_and_nothing_else() -> None:
    assert {path.stem for path in examples.FROZEN.glob("*.hex")} == set(examples.FRAMES)


def test_version() -> None:
    assert WIRE_VERSION == 1


@pytest.mark.parametrize("name", sorted(examples.FRAMES))
def test_encoding_reproduces_the_bytes(name: str) -> None:
    assert examples.FRAMES[name] == frozen(name)


@pytest.mark.parametrize("name", sorted(examples.TASKS))
def test_task(name: str) -> None:
    task = decode_task(frozen(name))
    assert_same_task(task, examples.TASKS[name])
    assert task.weights == sum(array.size for array in examples.TASKS[name].parameters.values())
    assert task.dimension == task.weights + (name == "task_adaptive")
    assert task_digest(task).hex() == DIGESTS[name]


@pytest.mark.parametrize("name", sorted(examples.CONTRIBUTIONS))
def test_contribution(name: str) -> None:
    assert_same_contribution(decode_contribution(frozen(name)), examples.CONTRIBUTIONS[name])


def test_reply() -> None:
    reply, expected = decode_reply(frozen("reply")), examples.REPLIES["reply"]
    assert_same_contribution(reply.contribution, expected.contribution)
    for name in ("loss_sum", "trained", "clipped", "norm_sum", "rejected"):
        assert getattr(reply, name) == getattr(expected, name)


def test_the_digest_leaves_the_key_out_and_nothing_else() -> None:
    task = examples.TASKS["task_private"]
    digest = task_digest(task)
    assert task_digest(replace(task, round_key=bytes(32))) == digest
    others = [
        replace(task, run_id="run-8"),
        replace(task, step=13),
        replace(task, attempt=0),
        replace(task, seed=0),
        replace(task, parameters={**task.parameters, "bias": np.zeros(1, np.float32)}),
        replace(task, training=replace(task.training, epochs=1)),
        replace(task, l2_clip_norm=2.0),
        replace(task, grid_step=None),
        replace(task, sampling_probability=0.25),
        replace(task, participation=CohortSchedule(1, 1.0)),
        replace(task, participation=CohortSchedule(2, 1.0)),
        replace(task, participation=CohortSchedule(1, 0.5)),
        replace(task, count_scale=0.5),
        replace(task, training=replace(task.training, example_privacy=ExamplePrivacy(1.0, 1.0))),
        replace(task, training=replace(task.training, example_privacy=ExamplePrivacy(2.0, 1.0))),
        replace(task, training=replace(task.training, example_privacy=ExamplePrivacy(1.0, 2.0))),
    ]
    assert len({task_digest(other) for other in others} | {digest}) == len(others) + 1


def test_the_key_is_in_no_repr() -> None:
    task = examples.TASKS["task_private"]
    assert "round_key" not in repr(task)
    assert repr(task.round_key)[2:10] not in repr(task)
