"""The trainer's contribution, checked byte by byte and in integers; weights; and what a refused task leaves behind."""

from __future__ import annotations

import hashlib
import importlib.util
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.clip import clip_l2
from fedlearn.device.plan import ParameterSpec, Scope
from fedlearn.errors import Refusal, TaskRefused, WorkerFailed
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.proto import wire_pb2 as pb
from fedlearn.wire import decode_contribution
from fedlearn_client import guard

_spec = importlib.util.spec_from_file_location("guard_cases", Path(__file__).with_name("guard_cases.py"))
table = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = table
_spec.loader.exec_module(table)
town, world = table.town, table.world

WEIGHTS = 6
PLAN = town.small_plan(
    parameters=(
        ParameterSpec("a", (2, 2), Scope.SHARED),
        ParameterSpec("b", (2,), Scope.SHARED),
        ParameterSpec("own", (100,), Scope.PRIVATE),
    )
)
TASK = world.task(0, digest=os.urandom(32))
STEP = TASK.mechanism.grid_step


def body(vector: np.ndarray | None = None, **changes) -> pb.Contribution:
    made = {
        "codec": "grid64",
        "scale": STEP,
        "level": pb.Contribution.LEVEL_PHONE,
        "count": 1,
        "l2_bound": TASK.mechanism.l2_clip_norm,
        "task_digest": TASK.digest,
        "nonce": os.urandom(16),
        "dimension": WEIGHTS,
        "values": (np.arange(WEIGHTS) if vector is None else vector).astype("<i8").tobytes(),
    }
    return pb.Contribution(**{**made, **changes})


def envelope(contribution: pb.Contribution, version: int = 1) -> bytes:
    return pb.Envelope(version=version, contribution=contribution).SerializeToString(deterministic=True)


def check(data: bytes, task=TASK) -> None:
    guard.check_contribution(data, task, PLAN)


class TestContribution:
    def test_an_honest_one(self) -> None:
        check(envelope(body()))
        check(envelope(body(np.zeros(WEIGHTS))))
        assert decode_contribution(envelope(body())).count == 1  # and the operator's reader reads it

    @pytest.mark.parametrize(
        "changes",
        [
            {"codec": "f32"},
            {"codec": "ring64"},
            {"codec": ""},
            {"scale": STEP * 2},
            {"scale": math.nan},
            {"scale": 0.0},
            {"level": pb.Contribution.LEVEL_COHORT},
            {"level": pb.Contribution.LEVEL_UNSPECIFIED},
            {"level": 7},
            {"count": 0},
            {"count": 2},
            {"count": 2**63},
            {"l2_bound": 0.5},
            {"l2_bound": math.nan},
            {"l2_bound": math.inf},
            {"task_digest": bytes(32)},
            {"task_digest": b""},
            {"nonce": b""},
            {"nonce": bytes(15)},
            {"nonce": bytes(17)},
            {"dimension": WEIGHTS + 1},
            {"dimension": 0, "values": b""},
            {"values": bytes(8 * WEIGHTS - 1)},
            {"values": bytes(8 * WEIGHTS + 8)},
            {"values": b""},
        ],
    )
    def test_a_field_that_is_not_the_task_s(self, changes) -> None:
        with pytest.raises(WorkerFailed):
            check(envelope(body(**changes)))

    @pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
    def test_another_version(self, version) -> None:
        with pytest.raises(WorkerFailed):
            check(envelope(body(), version))

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"\x00",
            bytes(range(100, 200)),
            pb.Envelope(version=1).SerializeToString(),
            pb.Envelope(version=1, task=pb.RoundTask(run_id="x")).SerializeToString(),
            pb.Envelope(version=1, reply=pb.CohortReply(contribution=body())).SerializeToString(),
        ],
    )
    def test_no_contribution(self, data) -> None:
        with pytest.raises(WorkerFailed):
            check(data)

    def test_hidden_bytes(self) -> None:
        """A field that no reader knows, in the envelope or inside it; a field given twice; another order; padding."""
        data = envelope(body())
        unknown = b"\x9a\x06\x05canry"  # field 99, 5 bytes
        inner = body().SerializeToString(deterministic=True) + unknown
        nested = b"\x08\x01\x1a" + bytes([len(inner) & 0x7F | 0x80, len(inner) >> 7]) + inner
        assert pb.Envelope.FromString(nested).WhichOneof("body") == "contribution"
        for hidden in (data + unknown, nested, data + data, data + b"\x08\x01", data[2:] + data[:2], data + b"\x00"):
            with pytest.raises(WorkerFailed):
                check(hidden)

    def test_far_too_long(self) -> None:
        with pytest.raises(WorkerFailed, match="too many"):
            check(envelope(body(np.zeros(WEIGHTS + 1000))))

    def test_no_message_names_a_value(self) -> None:
        with pytest.raises(WorkerFailed) as caught:
            check(envelope(body(np.full(WEIGHTS, 123456789012345))))
        assert "123456789" not in str(caught.value)


class TestNorm:
    def test_the_last_unit(self) -> None:
        """C = 2^30 grid steps: exactly C passes, one step more does not, whatever floating point would say."""
        bound = 2**30
        for values in ([bound], [-bound], [3 * 2**28, 4 * 2**27, 0]):
            check(envelope(body(np.array([*values, *([0] * (WEIGHTS - len(values)))]))))
        for values in ([bound, 1], [-bound, -1], [bound + 1], [2**63 - 1], [-(2**63)], [2**62] * WEIGHTS):
            with pytest.raises(WorkerFailed, match="l2_clip_norm"):
                check(envelope(body(np.array([*values, *([0] * (WEIGHTS - len(values)))]))))

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=WEIGHTS, max_size=WEIGHTS),
        st.floats(1e-3, 10.0),
    )
    def test_what_was_clipped_and_put_on_the_grid_always_passes(self, values, bound) -> None:
        step = grid_step(bound)
        task = replace(TASK, mechanism=world.terms(l2_clip_norm=bound, grid_step=step))
        grid = to_grid(clip_l2(np.array(values), bound).values, step)
        check(envelope(body(grid, scale=step, l2_bound=bound)), task)

    @settings(derandomize=True, deadline=None, max_examples=200)
    @given(st.lists(st.integers(-(2**31), 2**31), min_size=WEIGHTS, max_size=WEIGHTS), st.integers(1, 2**31))
    def test_exactly(self, values, bound) -> None:
        """Against integers: with a step of 1 the norm is the root of a whole number."""
        inside = sum(value * value for value in values) <= bound * bound
        assert guard.within_norm(np.array(values, dtype="<i8").tobytes(), 1.0, float(bound)) is inside

    def test_a_clip_that_was_left_out_is_found(self) -> None:
        update = np.random.default_rng(0).normal(size=WEIGHTS)
        with pytest.raises(WorkerFailed):
            check(envelope(body(to_grid(update * 3 / np.linalg.norm(update), STEP))))

    @settings(derandomize=True, deadline=None, max_examples=300)
    @given(st.data())
    def test_a_changed_byte_is_refused_or_changes_the_nonce_or_a_value_within_the_norm(self, data) -> None:
        sent = envelope(body())
        where = data.draw(st.integers(0, len(sent) - 1))
        changed = bytearray(sent)
        changed[where] ^= 1 << data.draw(st.integers(0, 7))
        try:
            check(bytes(changed))
        except WorkerFailed:
            return
        read = pb.Envelope.FromString(bytes(changed)).contribution
        assert (read.count, read.level, read.task_digest, len(read.nonce)) == (1, 1, TASK.digest, 16)
        assert guard.within_norm(read.values, STEP, 1.0)


class TestWeights:
    def test_exactly_those_that_the_task_names(self) -> None:
        data = np.arange(WEIGHTS, dtype="<f4").tobytes()
        asked = replace(TASK, weights_digest=hashlib.sha256(data).hexdigest())
        judge = guard.Guard(world.Phone().ledger, world.PlainStore(), world.FakeClock(world.NOW))
        judge.check_weights(data, PLAN, asked)
        for wrong in (data[:-4], data + bytes(4), b"", data[:-1] + b"\x01", bytes(len(data))):
            with pytest.raises(TaskRefused) as caught:
                judge.check_weights(wrong, PLAN, asked)
            assert caught.value.reason is Refusal.WEIGHTS


class TestRefusedTasks:
    @pytest.mark.parametrize(
        "case",
        [case for case in table.cases() if "history" not in case and "mechanism" not in case],
        ids=lambda case: case["name"],
    )
    def test_nothing_is_left_behind(self, case) -> None:
        """A refused task charges nothing and uses no token; only the first sight of a run that may be taken part in."""
        judge = table.Judge(case)
        admitted = judge.verdict()["verdict"] == table.ADMITTED
        assert judge.phone.ledger.spent().participations == 0
        assert judge.phone.store.rows("SELECT * FROM tokens") == []
        known = {"a run met late", "met so late that k may be used up", "the cap"}
        assert judge.phone.kinds() == (["seen"] if admitted or case["name"] in known else [])

    def test_a_day_s_rounds_count_trainings_that_were_abandoned(self) -> None:
        judge = table.Judge({"name": "abandoned"})
        with judge.phone.store.transaction() as connection:
            for number in range(6):
                connection.execute(
                    "INSERT INTO runs (time, purpose, recipient, run_id, step, outcome, examples)"
                    " VALUES (?, '', '', '', 0, 'abandoned: battery_low', 5)",
                    (town.NOW - 3600.0 * number,),
                )
        assert judge.verdict()["verdict"] == Refusal.SEPARATION.value

    def test_rounds_that_never_trained_do_not_count(self) -> None:
        judge = table.Judge({"name": "refused before"})
        with judge.phone.store.transaction() as connection:
            for outcome, time, examples in (("refused: status", town.NOW, 0), ("acknowledged", town.NOW - 90_000, 5)):
                for _ in range(10):
                    connection.execute(
                        "INSERT INTO runs (time, purpose, recipient, run_id, step, outcome, examples)"
                        " VALUES (?, '', '', '', 0, ?, ?)",
                        (time, outcome, examples),
                    )
        assert judge.verdict()["verdict"] == table.ADMITTED

    @pytest.mark.parametrize("field", ["issued", "expires"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_times_that_are_no_times(self, field, value) -> None:
        assert table.Judge({"name": "", "task": {field: value}}).verdict()["verdict"] == Refusal.EXPIRED.value

    @pytest.mark.parametrize("now", [math.nan, -math.inf, math.inf])
    def test_a_clock_that_is_no_clock(self, now) -> None:
        assert table.Judge({"name": "", "now": now}).verdict()["verdict"] in {"clock_moved", "status"}

    def test_a_token_of_another_length(self) -> None:
        verdict = table.Judge({"name": "", "task": {"token": "00"}}).verdict()["verdict"]
        assert verdict == Refusal.PLAN.value
