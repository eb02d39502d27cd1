"""Workers that die, hang, babble or lie: each is a WorkerFailed, and the next call works."""

from __future__ import annotations

import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import SignalRefused, WorkerFailed
from fedlearn.proto import device_pb2
from fedlearn.proto import worker_pb2 as pb
from fedlearn.terms import ExamplePrivacy
from fedlearn.wire import decode_contribution
from fedlearn_client.hooks import Occasion
from fedlearn_client.worker import layers
from fedlearn_client.worker.process import WorkerProcess, clean_environment
from fedlearn_client.worker.train import train
from fedlearn_client.workers import Workers, occasion_message

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

ZEROS = np.zeros(made.WIDTH, np.float32)
SAID = device_pb2.Signal(
    id="1",
    time_ms=1,
    message=device_pb2.MessageSignal(text="noodles tonight", direction=device_pb2.DIRECTION_OUTGOING),
)
CHOSEN = device_pb2.Signal(id="2", time_ms=2, choice=device_pb2.ChoiceSignal(item="restaurant:place 3"))


class Clock:
    """The real one."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)


READY = """
import os, struct, sys, time
from fedlearn.proto import worker_pb2 as pb

def say(reply, more=b""):
    data = reply if isinstance(reply, bytes) else reply.SerializeToString()
    os.write(1, struct.pack("<I", len(data)) + data + more)

def hear():
    (length,) = struct.unpack("<I", os.read(0, 4))
    data = b""
    while len(data) < length:
        data += os.read(0, length - len(data))
    return pb.Request.FromString(data)

def ready(*layers, more=b""):
    say(pb.Reply(ready=pb.Ready(layers=layers or ("seccomp", "resource_limits"))), more)
"""


def played(script: str) -> list[str]:
    """How to start something else than a worker."""
    return [sys.executable, "-I", "-c", READY + script]


@pytest.fixture
def workers() -> Iterator[Workers]:
    made_workers = Workers(Clock())
    yield made_workers
    made_workers.close()


def failing(script: str, answer_s: float = 20.0) -> str:
    """What an ingest says when the worker plays a script."""
    false = Workers(Clock(), command=played(script), answer_s=answer_s)
    with pytest.raises(WorkerFailed) as failure:
        false.ingest([SAID])
    assert false._resident is None, "a worker that failed is not asked again"
    false.close()
    return str(failure.value)


def gone(pid: int) -> bool:
    """Whether a process has ended and was waited for: not even a zombie is left."""
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise SystemExit(3)", "ended before"),
        ("raise ImportError('no such module')", "It said: ImportError: no such module"),
        ("say(b'\\xff' * 9)", "nonsense"),
        ("say(pb.Reply(ingest=pb.IngestReply()))", "another message"),
        ("os.write(1, b'\\xff' * 4)", "over the cap"),
        ("ready(); hear()", "ended before"),
        ("ready(more=b'x'); hear()", "unasked"),
        ("ready(); hear(); say(b'\\xff' * 9); time.sleep(60)", "nonsense"),
        ("ready(); hear(); os.write(1, b'\\xff' * 4); time.sleep(60)", "over the cap"),
        ("ready(); hear(); os.write(1, b'\\x09\\0\\0\\0ab')", "ended before"),
        ("ready(); hear(); say(pb.Reply(rank=pb.RankReply())); time.sleep(60)", "something else"),
        ("ready(); hear(); say(pb.Reply(failure=pb.Failure(kind='MemoryError'))); time.sleep(60)", "MemoryError"),
        ("ready('resource_limits')", "network_namespace or seccomp"),
        ("ready('seccomp')", "resource_limits"),
    ],
)
def test_a_worker_that_misbehaves_is_a_failure(script: str, words: str) -> None:
    assert words in failing(script)


def test_a_worker_that_hangs_is_killed() -> None:
    assert "took too long" in failing("ready(); hear(); time.sleep(60)", answer_s=0.3)
    # one that reads nothing either, while more is written than a pipe holds
    false = Workers(Clock(), command=played("ready(); time.sleep(60)"), answer_s=0.3)
    with pytest.raises(WorkerFailed, match="took too long"):
        false.load_catalogue(bytes(1 << 20))
    false.close()


def test_a_wrong_count_is_a_failure() -> None:
    false = Workers(Clock(), command=played("ready(); hear(); say(pb.Reply(ingest=pb.IngestReply())); time.sleep(60)"))
    with pytest.raises(WorkerFailed, match="another number"):
        false.ingest([SAID])
    false.close()


def test_a_weak_sandbox_only_where_allowed_and_marked() -> None:
    script = "ready('resource_limits'); hear(); say(pb.Reply(ingest=pb.IngestReply(derived=[pb.Derived()])))"
    weak = Workers(Clock(), command=played(script), allow_weak_sandbox=True)
    assert weak.ingest([SAID]) == [b""]
    assert weak.weak
    weak.close()


def test_a_program_that_does_not_exist() -> None:
    with pytest.raises(WorkerFailed, match="cannot be started"):
        Workers(Clock(), command=["/nonexistent/python"]).ingest([SAID])


def test_ingest_and_rank(workers: Workers) -> None:
    loaded = workers.load_catalogue(made.CATALOGUE_BYTES)
    assert loaded.items == len(made.CATALOGUE.items)
    assert layers.missing(workers.layers) == ()
    assert not workers.weak
    said, chosen = workers.ingest([SAID, CHOSEN])
    assert said
    assert chosen == b"restaurant:place 3"
    plan = made.match_plan()
    weights = np.zeros(made.WIDTH, np.float32)
    weights[made.NAMES.index("dish")] = 1.0
    digest = workers.load_ranker(made.plan_bytes(plan), made.match_infer(), weights.tobytes())
    ranked = workers.rank(digest, Occasion((said,), (), ""), frozenset({"chat", "catalogue"}), 5)
    assert [item.item for item in ranked] == [f"restaurant:place {i}" for i in range(0, 25, 5)]
    assert workers.rank(digest, Occasion((said,), (), ""), frozenset({"catalogue"}), 1)[0].item == "restaurant:place 0"


def test_a_killed_worker_comes_back_with_all_that_was_loaded(workers: Workers) -> None:
    workers.load_catalogue(made.CATALOGUE_BYTES)
    plan = made.match_plan()
    digest = workers.load_ranker(made.plan_bytes(plan), made.match_infer(), np.ones(made.WIDTH, np.float32).tobytes())
    before = workers.rank(digest, Occasion((), (), ""), frozenset({"catalogue"}), 9)
    assert workers._resident is not None
    pid = workers._resident.pid
    os.kill(pid, 9)
    assert gone(pid)
    assert workers.rank(digest, Occasion((), (), ""), frozenset({"catalogue"}), 9) == before
    assert workers._resident.pid != pid


def test_an_orderly_failure_does_not_end_the_worker(workers: Workers) -> None:
    workers.load_catalogue(made.CATALOGUE_BYTES)
    assert workers._resident is not None
    pid = workers._resident.pid
    with pytest.raises(WorkerFailed, match="no such ranker"):
        workers.rank("0" * 64, Occasion((), (), ""), frozenset(), 1)
    with pytest.raises(WorkerFailed, match="FL804 BundleRefused: schema"):
        workers.load_catalogue(b"{}")
    undirected = device_pb2.Signal(id="1", message=device_pb2.MessageSignal(text="x"))
    with pytest.raises(SignalRefused, match="direction"):
        workers.ingest([SAID, undirected])
    beyond = device_pb2.Signal(id="1", message=device_pb2.MessageSignal(text="x", direction=1))
    beyond.message.foreign_spans.add(start=0, end=9)
    with pytest.raises(SignalRefused, match="foreign_spans"):
        workers.ingest([beyond])
    assert workers.ingest([SAID])[0]
    assert workers._resident.pid == pid


def test_forget_kills_whatever_is_running(workers: Workers) -> None:
    workers.load_catalogue(made.CATALOGUE_BYTES)
    plan = made.match_plan(private=True)
    own = np.ones(made.WIDTH, np.float32).tobytes()
    digest = workers.load_ranker(made.plan_bytes(plan), made.match_infer(), own, own)
    assert workers.has_ranker(digest)
    assert workers._resident is not None
    pid = workers._resident.pid
    workers.forget()
    assert gone(pid)
    assert not workers.has_ranker(digest), "private parameters are the owner's"
    assert workers.ingest([SAID])[0], "the catalogue is public, and stays"


def test_a_training_in_its_own_process(workers: Workers) -> None:
    """Ready-made columns, occasions, and private steps, whose noise needs the system's generator inside the sandbox."""
    plan = made.match_plan(clip=100.0)
    columns = made.columns_for(plan, 9)
    reply = workers.train(made.train_request(plan, made.match_step(), columns, ZEROS), 60)
    here = train(made.train_request(plan, made.match_step(), columns, ZEROS))
    first, second = decode_contribution(reply.contribution), decode_contribution(here.contribution)
    assert reply.examples == 9
    assert first.nonce != second.nonce
    np.testing.assert_array_equal(first.values, second.values)
    workers.load_catalogue(made.CATALOGUE_BYTES)
    (said,) = workers.ingest([SAID])
    asked = made.train_request(plan, made.match_step(), None, ZEROS)
    asked.sources.extend(["chat", "catalogue"])
    asked.occasions.append(occasion_message(Occasion((said,), (), "restaurant:place 3")))
    assert workers.train(asked, 60).examples == 1
    noisy = made.match_plan(privacy=ExamplePrivacy(1.0, 0.5))
    step = made.match_step(noise=True)
    first, second = (
        decode_contribution(workers.train(made.train_request(noisy, step, columns, ZEROS), 60).contribution)
        for _ in range(2)
    )
    assert not np.array_equal(first.values, second.values), "the noise has no seed"


def slow_training() -> pb.TrainRequest:
    plan = made.match_plan(epochs=1000)
    request = made.train_request(plan, made.match_step(), made.columns_for(plan, 4000), ZEROS)
    assert isinstance(request, pb.TrainRequest)
    return request


def when_training(workers: Workers, act: Callable[[int], None]) -> threading.Thread:
    """Do something to a training, once it runs."""

    def wait() -> None:
        for _ in range(1000):
            running = list(workers._training)
            if running:
                time.sleep(0.5)
                act(running[0].pid)
                return
            time.sleep(0.005)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_forget_and_kill_end_a_training(workers: Workers) -> None:
    pids: list[int] = []

    def forget(pid: int) -> None:
        pids.append(pid)
        workers.forget()

    def kill(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, 9)

    for act in (forget, kill):
        thread = when_training(workers, act)
        with pytest.raises(WorkerFailed, match="ended"):
            workers.train(slow_training(), 60)
        thread.join()
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert not workers._training


def test_stop_and_deadline_end_a_training(workers: Workers) -> None:
    started = time.monotonic()
    with pytest.raises(WorkerFailed, match="was stopped"):
        workers.train(slow_training(), 60, lambda: time.monotonic() > started + 0.6)
    with pytest.raises(WorkerFailed, match="took too long"):
        workers.train(slow_training(), 0.8)

    def broken() -> bool:
        raise RuntimeError("conditions")

    with pytest.raises(RuntimeError, match="conditions"):
        workers.train(slow_training(), 60, broken)
    assert not workers._training


def test_forget_never_waits_for_whoever_is_asked_whether_to_stop(workers: Workers) -> None:
    """A withdrawal holds the store's lock while it kills the workers, and ``stop`` may wait for that very lock."""
    lock, asked, failures = threading.Lock(), threading.Event(), []

    def stop() -> bool:
        if workers._training and next(iter(workers._training))._monotonic() > started + 0.3:
            asked.set()
            with lock:
                return False
        return False

    def run() -> None:
        try:
            workers.train(slow_training(), 60, stop)
        except WorkerFailed as failure:
            failures.append(failure)

    started = time.monotonic()
    thread = threading.Thread(target=run)
    with lock:
        thread.start()
        assert asked.wait(30)
        workers.forget()
        assert not failures, "the training's thread still waits"
    thread.join(30)
    assert len(failures) == 1
    assert not workers._training


def test_a_training_ends_with_its_daemon() -> None:
    """The daemon is killed: nobody waits, so the worker must notice by itself."""
    process = WorkerProcess(["--train"], time.monotonic)
    process.first_words(20)
    request = pb.Request(train=slow_training()).SerializeToString()
    failures: list[WorkerFailed] = []

    def ask() -> None:
        try:
            process.ask(request, 60)
        except WorkerFailed as failure:
            failures.append(failure)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.5)
    # what a kill -9 of the daemon does to its pipes, without ending this test
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, process._in)
    os.close(nowhere)
    assert gone(process.pid)
    thread.join()
    process.close()
    assert len(failures) == 1


def test_many_threads_at_once(workers: Workers) -> None:
    workers.load_catalogue(made.CATALOGUE_BYTES)
    results: list[bool] = []

    def many() -> None:
        for _ in range(20):
            said, chosen = workers.ingest([SAID, CHOSEN])
            results.append(bool(said) and chosen == b"restaurant:place 3")

    threads = [threading.Thread(target=many) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 120


def test_after_close_nothing_starts(workers: Workers) -> None:
    workers.load_catalogue(made.CATALOGUE_BYTES)
    workers.close()
    with pytest.raises(WorkerFailed, match="stopping"):
        workers.ingest([SAID])
    with pytest.raises(WorkerFailed, match="stopping"):
        workers.train(pb.TrainRequest(), 1)


def test_what_a_worker_is_started_with(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nonexistent")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:secret@proxy")
    workers.load_catalogue(made.CATALOGUE_BYTES)
    assert workers._resident is not None
    assert not [name for name in clean_environment() if name.startswith("PYTHON")]
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{workers._resident.pid}/status").read_text().splitlines()
    )
    assert status["Threads"].strip() == "1", "no telemetry, no pool"
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    environment = Path(f"/proc/{workers._resident.pid}/environ")
    if os.access(environment, os.R_OK):
        assert b"secret" not in environment.read_bytes()
    descriptors = Path(f"/proc/{workers._resident.pid}/fd")
    if os.access(descriptors, os.R_OK):
        targets = sorted(str(entry.readlink()) for entry in descriptors.iterdir())
        assert [target.split(":")[0] for target in targets] == ["/dev/null", "/dev/null", "pipe", "pipe"]


def test_an_idle_worker_ends_by_itself_and_is_missed_by_nobody(workers: Workers) -> None:
    """Played with a worker that ends after its first answer, as one does after 30 idle seconds."""
    script = """
ready()
for _ in range(2):
    asked = hear()
    if asked.WhichOneof("body") == "load_catalogue":
        say(pb.Reply(loaded_catalogue=pb.LoadedCatalogue(items=1)))
    else:
        say(pb.Reply(ingest=pb.IngestReply(derived=[pb.Derived(body=b"x")])))
        break
"""
    sleepy = Workers(Clock(), command=played(script))
    sleepy.load_catalogue(b"{}")
    for _ in range(3):
        assert sleepy.ingest([SAID]) == [b"x"]
        assert sleepy._resident is not None
        assert gone(sleepy._resident.pid)
    sleepy.close()
