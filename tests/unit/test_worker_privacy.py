"""What the owner wrote stays inside: a worker that fails over a text does not quote it, and leaves nothing behind."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest

from fedlearn.errors import BundleRefused, DataCorrupt, OutOfRange, SignalRefused, WorkerFailed
from fedlearn.proto import device_pb2
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker import serve
from fedlearn_client.workers import Workers

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

CANARY = "meet me at the vermilion lighthouse, noodles 面条"
SIGNAL = device_pb2.Signal(
    id="1", message=device_pb2.MessageSignal(text=CANARY, direction=device_pb2.DIRECTION_OUTGOING)
)
INGEST = pb.Request(ingest=pb.IngestRequest(signals=[SIGNAL])).SerializeToString()


class Clock:
    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        return os.urandom(count)


def grams(text: str) -> set[bytes]:
    """Every run of 8 bytes of a text."""
    data = text.encode()
    return {data[i : i + 8] for i in range(len(data) - 7)}


def leaks(data: bytes) -> bool:
    return any(gram in data for gram in grams(CANARY))


def test_the_search_finds_a_deliberate_leak() -> None:
    """The negative control of every test below."""
    assert leaks(b"error at 'vermilion l'")
    assert not leaks(b"error at 'vermil'")


@pytest.mark.parametrize("kind", [ValueError, KeyError, OutOfRange, DataCorrupt, RuntimeError, MemoryError])
def test_a_failure_over_a_text_does_not_quote_it(kind: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    worker = serve.Worker()
    worker.answer(pb.Request(load_catalogue=made.CATALOGUE_BYTES).SerializeToString())

    def quoting(text: str, spans: object, index: object) -> None:
        raise kind(f"cannot read {text!r}")

    monkeypatch.setattr("fedlearn_client.worker.ingest.read_message", quoting)
    answer = worker.answer(INGEST)
    failure = pb.Reply.FromString(answer).failure
    assert failure.kind == ("SignalRefused" if kind is OutOfRange else kind.__name__)
    assert not leaks(answer)
    # a document's own reader may say what is wrong: it is public
    assert (
        "schema"
        in pb.Reply.FromString(worker.answer(pb.Request(load_catalogue=b"{}").SerializeToString())).failure.message
    )


def test_errors_that_may_speak_in_an_ingest_are_this_packages_own() -> None:
    """Whoever adds a reader to the data path must not raise one of these with a text in it."""
    assert set(serve._PLAIN) == {BundleRefused, SignalRefused, serve.TaskRefused, WorkerFailed}


QUOTING = """
import os, sys
from fedlearn_client.worker import __main__, sandbox

HOW = sys.argv[1]

def quoting(text, spans, index):
    print(text)
    print(text, file=sys.stderr, flush=True)
    if HOW == "abort":
        os.abort()
    if HOW == "exit":
        raise SystemExit(text)
    raise ValueError(text)

isolate = sandbox.isolate
def isolated():
    layers = isolate()
    from fedlearn_client.worker import ingest
    ingest.read_message = quoting
    return layers
sandbox.isolate = isolated
__main__.main([])
"""


@pytest.mark.parametrize(("how", "words"), [("raise", "ValueError"), ("abort", "ended"), ("exit", "SystemExit")])
def test_a_process_that_fails_over_a_text_leaves_no_word_of_it(
    how: str, words: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    workers = Workers(Clock(), command=[sys.executable, "-I", "-c", QUOTING, how])
    workers.load_catalogue(made.CATALOGUE_BYTES)
    assert "seccomp" in workers.layers
    with pytest.raises(WorkerFailed) as failure:
        workers.ingest([SIGNAL])
    workers.close()
    error = failure.value
    assert words in str(error)
    told = [str(error), repr(error), *traceback.format_exception(error), caplog.text, *capfd.readouterr()]
    if error.__context__ is not None:
        told += traceback.format_exception(error.__context__)
    assert not leaks("\n".join(told).encode())


def test_what_a_worker_loads_and_what_a_daemon_must_not() -> None:
    code = """
import json, sys
{what}
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    loaded = {}
    for side, what in {
        "worker": "from fedlearn_client.worker import serve, warm, __main__",
        "daemon": "import fedlearn_client.workers",
    }.items():
        done = subprocess.run(
            [sys.executable, "-I", "-c", code.format(what=what)], capture_output=True, check=True, timeout=60
        )
        loaded[side] = set(json.loads(done.stdout))
    assert loaded["worker"] >= {"numpy", "onnxruntime"}
    assert not loaded["worker"] & {"grpc", "sqlcipher3", "cryptography", "torch", "flwr", "onnx", "scipy", "sqlite3"}
    assert not loaded["daemon"] & {"numpy", "onnxruntime", "torch", "flwr", "grpc", "cryptography", "ctypes"}
