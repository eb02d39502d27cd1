"""Contributions at a gateway: every bad kind for its reason, each good one counted once, whatever races or dies."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from fedlearn.codec import codec_by_name
from fedlearn.device.requests import Denial
from fedlearn.errors import GatewayStoreFailed, Reason
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.proto import wire_pb2
from fedlearn.types import Level
from fedlearn.wire import encode_task
from fedlearn_server.gateway.intake import MOST_IN_BATCH, MOST_WAITING, Intake
from fedlearn_server.gateway.state import GatewayState, Offer, Upload, Verdict

_spec = importlib.util.spec_from_file_location("gateway_fleet", Path(__file__).with_name("gateway_fleet.py"))
fleet = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
if not hasattr(fleet, "Fleet"):
    _spec.loader.exec_module(fleet)

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("gateway_worker.py")
ACCEPTED = Verdict(pb.UploadReply.OUTCOME_ACCEPTED, "")
LATE = Verdict(pb.UploadReply.OUTCOME_LATE, "late")


def rejected(reason: str) -> Verdict:
    return Verdict(pb.UploadReply.OUTCOME_REJECTED, reason)


@pytest.fixture
def where(tmp_path: Path) -> str:
    return str(tmp_path / "gateway.sqlite")


@pytest.fixture
def state(where: str) -> Iterator[GatewayState]:
    opened = GatewayState.open(where)
    yield opened
    opened.disconnect()


def town(state: GatewayState, phones: int = 4, **changes) -> fleet.Fleet:
    made = fleet.Fleet(state, fleet.terms(**changes))
    made.enrol(*range(phones))
    made.open()
    return made


# --- 25 kinds of bad contribution ------------------------------------------------------------------------------------

D = fleet.WIDTH
Edit = Callable[[wire_pb2.Envelope], object]


def one(value: int) -> np.ndarray:
    values = np.zeros(D, "<i8")
    values[3] = value
    return values


FIELDS = {
    "another_task": (Reason.WRONG_TASK, {"task_digest": bytes(32)}),
    "too_short": (Reason.WRONG_SHAPE, {"values": np.ones(D - 1, "<i8")}),
    "too_long": (Reason.WRONG_SHAPE, {"values": np.ones(D + 1, "<i8")}),
    "no_values": (Reason.WRONG_SHAPE, {"values": np.ones(0, "<i8")}),
    "scale_doubled": (Reason.WRONG_DTYPE, {"scale": 2 * fleet.GRID}),
    "scale_zero": (Reason.WRONG_DTYPE, {"scale": 0.0}),
    "scale_nan": (Reason.WRONG_DTYPE, {"scale": float("nan")}),
    "scale_negative": (Reason.WRONG_DTYPE, {"scale": -fleet.GRID}),
    "scale_infinite": (Reason.WRONG_DTYPE, {"scale": float("inf")}),
    "norm_barely_over": (Reason.OVER_NORM, {"values": one(2**30 + 1)}),
    "norm_of_many": (Reason.OVER_NORM, {"values": np.full(D, 2**29, "<i8")}),
    "norm_huge": (Reason.OVER_NORM, {"values": one(2**62)}),
    "norm_wraps": (Reason.OVER_NORM, {"values": np.full(D, -(2**63), "<i8")}),
    "bound_claimed": (Reason.OVER_NORM, {"l2_bound": 1e9}),
    "two_phones": (Reason.OVER_COUNT, {"count": 2}),
    "no_phone": (Reason.OVER_COUNT, {"count": 0}),
    "a_cohort": (Reason.WRONG_LEVEL, {"level": Level.COHORT}),
}
BYTES: dict[str, tuple[Reason, Edit]] = {
    "codec_f64": (Reason.WRONG_DTYPE, lambda sent: _floats(sent.contribution, "f64", "<f8")),
    "codec_f32": (Reason.WRONG_DTYPE, lambda sent: _floats(sent.contribution, "f32", "<f4")),
    "codec_unknown": (Reason.WRONG_DTYPE, lambda sent: setattr(sent.contribution, "codec", "f16")),
    "codec_reserved": (Reason.WRONG_DTYPE, lambda sent: setattr(sent.contribution, "codec", "ring64")),
    "codec_absent": (Reason.WRONG_DTYPE, lambda sent: sent.contribution.ClearField("codec")),
    "values_cut": (Reason.MALFORMED, lambda sent: setattr(sent.contribution, "values", bytes(8 * D - 1))),
    "dimension_huge": (Reason.MALFORMED, lambda sent: setattr(sent.contribution, "dimension", 2**61)),
    "bound_nan": (Reason.MALFORMED, lambda sent: setattr(sent.contribution, "l2_bound", float("nan"))),
    "bound_negative": (Reason.MALFORMED, lambda sent: setattr(sent.contribution, "l2_bound", -1.0)),
    "level_absent": (Reason.MALFORMED, lambda sent: sent.contribution.ClearField("level")),
    "digest_short": (Reason.MALFORMED, lambda sent: setattr(sent.contribution, "task_digest", bytes(31))),
    "nonce_short": (Reason.MALFORMED, lambda sent: setattr(sent.contribution, "nonce", bytes(15))),
    "version_2": (Reason.MALFORMED, lambda sent: setattr(sent, "version", 2)),
    "no_body": (Reason.MALFORMED, lambda sent: sent.ClearField("contribution")),
    "another_body": (Reason.MALFORMED, lambda sent: sent.ParseFromString(encode_task(fleet.round_task()))),
    "a_reply": (Reason.MALFORMED, lambda sent: sent.reply.contribution.CopyFrom(sent.contribution)),
    "oversize": (Reason.OVERSIZE, lambda sent: setattr(sent.contribution, "values", bytes(8 * D + 5000))),
}
RAW = {
    "empty": (Reason.MALFORMED, b""),
    "garbage": (Reason.MALFORMED, b"\xff\xfe garbage"),
    "oversize_garbage": (Reason.OVERSIZE, bytes(100_000)),
}


def _floats(contribution: wire_pb2.Contribution, codec: str, dtype: str) -> None:
    contribution.codec, contribution.scale = codec, 1.0
    contribution.values = (np.ones(D, dtype) / 8).astype(codec_by_name(codec).dtype).tobytes()


def spoiled(phones: fleet.Fleet, number: int, kind: str) -> tuple[Reason, Upload]:
    if kind in FIELDS:
        reason, changes = FIELDS[kind]
        return reason, phones.upload(number, **changes)
    good = phones.upload(number)
    if kind in RAW:
        return RAW[kind][0], Upload(good.token, RAW[kind][1])
    envelope = wire_pb2.Envelope.FromString(good.contribution)
    BYTES[kind][1](envelope)
    return BYTES[kind][0], Upload(good.token, envelope.SerializeToString())


def test_there_are_enough_kinds() -> None:
    assert len(FIELDS) + len(BYTES) + len(RAW) >= 25


def test_each_kind_for_its_reason_and_the_rest_is_summed(state: GatewayState) -> None:
    """One batch: every bad kind between two good phones. Sent again, each is told the same; other bytes are refused."""
    kinds = [*FIELDS, *BYTES, *RAW]
    phones = town(state, len(kinds) + 2, target=len(kinds) + 2)
    collection = phones.open()
    bad = [spoiled(phones, number, kind) for number, kind in enumerate(kinds, start=2)]
    batch = [phones.upload(0), *(upload for _, upload in bad), phones.upload(1)]
    expected = [ACCEPTED, *(rejected(reason.value) for reason, _ in bad), ACCEPTED]
    found = phones.send(*batch)
    assert dict(zip(kinds, found[1:-1], strict=True)) == dict(zip(kinds, expected[1:-1], strict=True))
    assert found == expected
    assert phones.send(*batch) == expected
    other = [Upload(upload.token, upload.contribution + b" ") for upload in batch]
    assert set(phones.send(*other)) == {rejected("token_used")}
    count, total = state.close(collection, phones.now)
    assert count == 2
    assert np.array_equal(total, fleet.canary(0) + fleet.canary(1))


def test_a_phone_that_was_rejected_may_not_try_with_a_good_one(state: GatewayState) -> None:
    phones = town(state)
    task = phones.task(0)
    assert phones.send(phones.upload(0, task, count=2)) == [rejected("over_count")]
    assert phones.send(phones.upload(0, task)) == [rejected("token_used")]


def test_tokens_that_are_not_ours(state: GatewayState) -> None:
    phones = town(state)
    good = phones.upload(0)
    strange = [Upload(token, good.contribution) for token in (b"", bytes(16), good.token[:-1], good.token + b"\0")]
    assert set(phones.send(*strange)) == {rejected("unknown_token")}
    assert phones.send(good) == [ACCEPTED]


def test_anothers_contribution_under_ones_own_token(state: GatewayState) -> None:
    phones = town(state)
    mine, theirs = phones.upload(0), phones.upload(1)
    assert phones.send(Upload(mine.token, theirs.contribution)) == [rejected("wrong_task_digest")]
    assert phones.send(theirs) == [ACCEPTED]


def test_late_is_not_read(state: GatewayState, monkeypatch: pytest.MonkeyPatch) -> None:
    phones = town(state)
    collection = phones.open()
    uploads = [phones.upload(number) for number in range(3)]
    phones.send(*uploads[:2])
    state.close(collection, phones.now)
    monkeypatch.setattr("fedlearn_server.gateway.accepting.decode_contribution", lambda *_: pytest.fail("read"))
    assert phones.send(uploads[2], Upload(uploads[2].token, b"garbage")) == [LATE, LATE]
    phones.open(step=1)
    expired = Upload(phones.task(3).token, b"garbage")
    phones.now += 300
    assert phones.send(expired) == [LATE]


def test_the_same_upload_twice_in_one_batch(state: GatewayState) -> None:
    phones = town(state)
    collection = phones.open()
    first, second = phones.upload(0), phones.upload(1)
    assert phones.send(first, first, second, first) == [ACCEPTED] * 4
    count, total = state.close(collection, phones.now)
    assert count == 2
    assert np.array_equal(total, fleet.canary(0) + fleet.canary(1))


# --- one phone's influence -------------------------------------------------------------------------------------------


SENT = st.tuples(
    st.lists(
        st.one_of(st.integers(-(2**30) - 2, 2**30 + 2), st.integers(-(2**63), 2**63 - 1), st.just(0), st.just(2**28)),
        min_size=fleet.WIDTH,
        max_size=fleet.WIDTH,
    ),
    st.sampled_from([fleet.GRID, fleet.GRID / 2, 2.0**10]),
    st.sampled_from([1, 0, 2, 1000]),
    st.sampled_from([fleet.CLIP, 0.0, 1e6]),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    sent=st.lists(SENT, min_size=1, max_size=4), alone=st.lists(st.integers(-(2**30), 2**30), min_size=1, max_size=1)
)
def test_one_phone_moves_the_sum_by_at_most_the_clip(sent: list[tuple], alone: list[int]) -> None:
    """Whatever one phone sends, as often as it likes: with and without it the sums differ by at most C in norm."""
    with tempfile.TemporaryDirectory() as folder:
        state = GatewayState.open(Path(folder) / "gateway.sqlite")
        phones = town(state, 2, round_size=1)
        collection = phones.open()
        phones.send(phones.upload(1))
        task = phones.task(0)
        uploads = [
            phones.upload(0, task, values=values, scale=scale, count=count, l2_bound=bound)
            for values, scale, count, bound in [*sent, (alone + [0] * (fleet.WIDTH - 1), fleet.GRID, 1, fleet.CLIP)]
        ]
        verdicts = [phones.send(*batch)[0] for batch in (uploads[:1] * 2, uploads, uploads[::-1])]
        count, total = state.close(collection, phones.now)
        state.disconnect()
    moved = [int(value) for value in total - fleet.canary(1)]
    assert sum(value * value for value in moved) <= round(fleet.CLIP / fleet.GRID) ** 2
    assert count == 1 + (ACCEPTED in verdicts)
    assert any(moved) <= (ACCEPTED in verdicts)


# --- races -----------------------------------------------------------------------------------------------------------


def test_two_gateways_of_many_threads_and_one_task(state: GatewayState, where: str) -> None:
    """Every phone asks both gateways at once, and sends each another contribution: one counts."""
    other = GatewayState.open(where)
    both = [town(state, 6, target=6, over_selection=1.0), fleet.Fleet(other, fleet.terms(target=6, over_selection=1.0))]
    collection = both[0].open()
    turns = [(number, gateway) for number in range(6) for gateway in (0, 1)]
    with ThreadPoolExecutor(12) as pool:
        tasks = list(pool.map(lambda turn: both[turn[1]].task(turn[0]), turns))
        assert len({task.token for task in tasks}) == 6
        uploads = [
            both[gateway].upload(number, task, values=fleet.canary(number) + gateway)
            for (number, gateway), task in zip(turns, tasks, strict=True)
        ]
        verdicts = list(pool.map(lambda n: both[n % 2].send(uploads[n])[0], range(12)))
    assert verdicts.count(ACCEPTED) == 6
    assert verdicts.count(rejected("token_used")) == 6
    count, total = other.close(collection, fleet.NOW)
    added = [0 if verdicts[2 * number] == ACCEPTED else 1 for number in range(6)]
    assert count == 6
    assert np.array_equal(total, sum(fleet.canary(n) + gateway for n, gateway in enumerate(added)))
    other.disconnect()


def test_two_gateways_give_no_task_too_many(state: GatewayState, where: str) -> None:
    other = GatewayState.open(where)
    both = [town(state, 16, target=4, over_selection=1.0), fleet.Fleet(other, fleet.terms())]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda number: both[number % 2].ask(number), range(16)))
    assert sum(isinstance(offer, Offer) for offer in found) == 4
    assert found.count(Denial.NO_TASK) == 12
    other.disconnect()


def started(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(WORKER), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "server")))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_and_one_task(state: GatewayState, where: str, tmp_path: Path) -> None:
    phones = town(state, 20, target=20, over_selection=1.0)
    collection = phones.open()
    tasks = [phones.task(number) for number in range(20)]
    for gateway in (0, 1):
        sent = [phones.upload(n, task, values=fleet.canary(n) + gateway) for n, task in enumerate(tasks)]
        lines = [f"{upload.token.hex()} {upload.contribution.hex()}" for upload in sent]
        (tmp_path / f"{gateway}").write_text("\n".join(lines))
    processes = [started("race", where, tmp_path, gateway) for gateway in (0, 1)]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        outcomes = [json.loads(process.communicate(timeout=60)[0]) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    ones = [pair.index(ACCEPTED.outcome) for pair in zip(*outcomes, strict=True)]
    assert [sorted(pair) for pair in zip(*outcomes, strict=True)] == [[1, 3]] * 20
    count, total = state.close(collection, phones.now)
    assert count == 20
    assert np.array_equal(total, sum(fleet.canary(n) + gateway for n, gateway in enumerate(ones)))


def kill(where: str, folder: Path, width: int, kills: int, seed: int) -> None:
    """Kill workers, then let a last one finish; whatever was told, is in the sum once."""
    folder.mkdir()
    state = GatewayState.open(where)
    phones = fleet.Fleet(state, fleet.terms(target=width, round_size=1, over_selection=1.0), width)
    phones.enrol(*range(width))
    collection = phones.open()
    state.disconnect()
    killer = started("kills", where, folder, width, kills, seed)
    _, said = killer.communicate(timeout=240)
    assert killer.returncode == 0, said
    told = {int(path.stem) for path in folder.glob("*.told")}
    sent = {int(path.stem) for path in folder.glob("*.sent")}
    assert kills // 2 < len(told) < width, "all of it was done before the last kill: more phones, or fewer kills"
    state = GatewayState.open(where)
    phones.state = state
    counted = state.figures().accepted
    assert len(told) <= counted <= len(sent)
    for number in sorted(sent - told):  # told or not, the phone sends again what it has
        token, contribution = (folder / f"{number}.sent").read_text().split()
        assert phones.send(Upload(bytes.fromhex(token), bytes.fromhex(contribution))) == [ACCEPTED]
    count, total = state.close(collection, phones.now)
    assert count == len(sent)
    assert np.array_equal(total, sum(fleet.canary(number, width) for number in sent))
    state.disconnect()


def test_killed_again_and_again(where: str, tmp_path: Path) -> None:
    kill(where, tmp_path / "phones", width=400, kills=8, seed=5)


def test_stopped_at_every_statement(state: GatewayState) -> None:
    """Wherever an accept ends before its commit, nothing of it is there, and it can be sent again."""
    phones = town(state)
    collection = phones.open()
    uploads = [phones.upload(0), phones.upload(1, count=2), phones.upload(2)]
    for stop in range(100):
        statements = iter(range(stop))

        def stop_there(*_: object, left: Iterator[int] = statements) -> None:
            if next(left, None) is None:
                event.remove(state._store._engine, "before_cursor_execute", stop_there)
                raise InterruptedError

        event.listen(state._store._engine, "before_cursor_execute", stop_there)
        try:
            verdicts = phones.send(*uploads)
        except InterruptedError:
            assert state.figures().accepted == 0
            continue
        event.remove(state._store._engine, "before_cursor_execute", stop_there)
        break
    assert stop > 8
    assert verdicts == [ACCEPTED, rejected("over_count"), ACCEPTED]
    assert phones.send(*uploads) == verdicts
    count, total = state.close(collection, phones.now)
    assert count == 2
    assert np.array_equal(total, fleet.canary(0) + fleet.canary(2))


# --- a store that fails ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "disk"
    made.mkdir()
    options = ["-t", "tmpfs", "-o", "size=8m", "tmpfs", str(made)]
    if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield made
    subprocess.run(["umount", "-l", str(made)], check=True)


def test_a_full_disk_acknowledges_nothing(small_disk: Path) -> None:
    """Whatever fits is told ACCEPTED and stays; what does not is an error, and is taken when there is room."""
    state = GatewayState.open(small_disk / "gateway.sqlite")
    phones = fleet.Fleet(state, fleet.terms(target=40, round_size=1, over_selection=1.0), width=2000)
    phones.enrol(*range(40))
    collection = phones.open()
    uploads = [phones.upload(number) for number in range(40)]
    found = os.statvfs(small_disk)
    (small_disk / "filler").write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - 64 * 1024)))
    verdicts: list[Verdict | None] = []
    for upload in uploads:
        try:
            verdicts.extend(phones.send(upload))
        except GatewayStoreFailed as error:
            assert "full" in str(error)  # noqa: PT017 - not every one fails
            verdicts.append(None)
    told = [number for number, verdict in enumerate(verdicts) if verdict == ACCEPTED]
    assert 0 < len(told) < 40
    assert verdicts.count(None) == 40 - len(told)
    with pytest.raises(GatewayStoreFailed):
        state.put_object(bytes(200_000))
    assert state.figures().accepted == len(told)
    (small_disk / "filler").unlink()
    assert phones.send(*uploads) == [ACCEPTED] * 40
    count, total = state.close(collection, phones.now)
    assert count == 40
    assert np.array_equal(total, sum(fleet.canary(number, 2000) for number in range(40)))
    state.disconnect()


# --- group commit ----------------------------------------------------------------------------------------------------


class Slow:
    """Accepts when it is let; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.going = threading.Event()
        self.entered = threading.Event()
        self.problem: Exception | None = None

    def accept(self, uploads: list[Upload], now: float) -> list[Verdict]:
        self.entered.set()
        assert self.going.wait(30)
        self.batches.append(len(uploads))
        if self.problem is not None:
            raise self.problem
        return [rejected(upload.token.decode()) for upload in uploads]


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Intake]]:
    accepting = Slow()
    intake = Intake(accepting, lambda: fleet.NOW)
    yield accepting, intake
    accepting.going.set()
    intake.close()


def test_what_waits_is_written_together(slow: tuple[Slow, Intake]) -> None:
    accepting, intake = slow
    said = [intake.submit(Upload(b"0", b"x"))]
    assert accepting.entered.wait(30)  # the first one waits for nobody
    said += [intake.submit(Upload(str(number).encode(), b"x")) for number in range(1, 101)]
    accepting.going.set()
    assert [verdict.result(30).reason for verdict in said] == [str(number) for number in range(101)]
    assert accepting.batches == [1, MOST_IN_BATCH, 100 - MOST_IN_BATCH]


def test_more_than_may_wait(slow: tuple[Slow, Intake]) -> None:
    accepting, intake = slow
    first = intake.submit(Upload(b"0", b"x"))
    assert accepting.entered.wait(30)
    said = [intake.submit(Upload(b"1", b"x")) for _ in range(MOST_WAITING)]
    with pytest.raises(GatewayStoreFailed, match="busy"):
        intake.submit(Upload(b"2", b"x"))
    said[0].cancel()  # a phone that hung up
    accepting.going.set()
    assert {verdict.result(30).reason for verdict in (first, *said[1:])} == {"0", "1"}
    assert intake.submit(Upload(b"3", b"x")).result(30).reason == "3"


def test_an_error_is_everybodys_and_the_next_batch_is_tried(slow: tuple[Slow, Intake]) -> None:
    accepting, intake = slow
    accepting.problem = GatewayStoreFailed("full")
    said = [intake.submit(Upload(b"0", b"x")) for _ in range(3)]
    accepting.going.set()
    for verdict in said:
        with pytest.raises(GatewayStoreFailed, match="full"):
            verdict.result(30)
    accepting.problem = None
    assert intake.submit(Upload(b"1", b"x")).result(30).reason == "1"


def test_closed_it_writes_what_waits(slow: tuple[Slow, Intake]) -> None:
    accepting, intake = slow
    said = [intake.submit(Upload(b"0", b"x")) for _ in range(5)]
    accepting.going.set()
    intake.close()
    assert all(verdict.done() for verdict in said)
    with pytest.raises(GatewayStoreFailed, match="leaving"):
        intake.submit(Upload(b"1", b"x"))


def test_through_an_intake_of_many_threads(state: GatewayState) -> None:
    phones = town(state, 30, target=30, over_selection=1.0)
    collection = phones.open()
    intake = Intake(state, lambda: fleet.NOW)
    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(lambda n: intake.submit(phones.upload(n)).result(30), range(30)))
    intake.close()
    assert said == [ACCEPTED] * 30
    count, total = state.close(collection, phones.now)
    assert count == 30
    assert np.array_equal(total, sum(fleet.canary(number) for number in range(30)))
