"""The loop of a worker: it ends when it should, and answers what it may."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from fedlearn.errors import MalformedMessage
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker import serve
from fedlearn_client.worker.frames import frame, read_frame

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

LOAD = pb.Request(load_catalogue=made.CATALOGUE_BYTES).SerializeToString()
Pipes = tuple[int, int, int, int]


@pytest.fixture
def pipes() -> Iterator[Pipes]:
    """Worker's source, the other end of it, worker's sink, the other end of it."""
    source, far_in = os.pipe()
    far_out, sink = os.pipe()
    yield source, far_in, sink, far_out
    for descriptor in (source, far_in, sink, far_out):
        try:
            os.close(descriptor)
        except OSError:
            continue


def heard(pipe: int) -> pb.Reply:
    data = read_frame(lambda count: os.read(pipe, count))
    assert data is not None
    return pb.Reply.FromString(data)


def test_ends_when_nobody_asks(pipes: Pipes) -> None:
    source, far_in, sink, far_out = pipes
    os.write(far_in, frame(LOAD) + frame(LOAD))
    serve.serve(serve.Worker(), source, sink, 0.05)
    assert [heard(far_out).loaded_catalogue.items for _ in range(2)] == [24, 24]


def test_ends_with_its_pipe_and_after_one_answer_where_that_is_all(pipes: Pipes) -> None:
    source, far_in, sink, far_out = pipes
    os.write(far_in, frame(LOAD) + frame(LOAD))
    serve.serve(serve.Worker(), source, sink, None)
    assert heard(far_out).loaded_catalogue.items == 24
    os.close(far_in)
    serve.serve(serve.Worker(), source, sink, 60)
    assert heard(far_out).loaded_catalogue.items == 24, "what was asked before the pipe ended"


def test_a_frame_cut_short_ends_it(pipes: Pipes) -> None:
    source, far_in, sink, _ = pipes
    os.write(far_in, frame(LOAD)[:-1])
    os.close(far_in)
    with pytest.raises(MalformedMessage):
        serve.serve(serve.Worker(), source, sink, 60)


def test_notices_that_its_daemon_is_gone(pipes: Pipes) -> None:
    source, far_in, *_ = pipes
    assert not serve.parent_gone(source)
    os.write(far_in, b"x")
    assert not serve.parent_gone(source), "a request that waits is not the end"
    os.close(far_in)
    assert serve.parent_gone(source)


def test_writes_more_than_a_pipe_holds(pipes: Pipes) -> None:
    *_, sink, far_out = pipes
    data = os.urandom(1 << 18)
    found = bytearray()

    def read() -> None:
        while len(found) < len(data):
            found.extend(os.read(far_out, 1 << 12))

    thread = threading.Thread(target=read)
    thread.start()
    serve.write_all(sink, data)
    thread.join()
    assert bytes(found) == data


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (pb.Request(), "FL906"),
        (pb.Request(ingest=pb.IngestRequest()), "FL906"),
        (pb.Request(rank=pb.RankRequest()), "FL906"),
        (pb.Request(train=pb.TrainRequest()), "FL804"),
        (pb.Request(load_ranker=pb.LoadRanker()), "FL804"),
        (pb.Request(golden=pb.GoldenRequest()), "FL801"),
        (pb.Request(load_catalogue=b"\xff"), "FL804"),
        (pb.Request(numerics=b""), "FL906"),
    ],
)
def test_what_it_cannot_answer_is_a_failure_with_a_code(request_: pb.Request, code: str) -> None:
    failure = pb.Reply.FromString(serve.Worker().answer(request_.SerializeToString())).failure
    assert failure.code == code
    assert failure.message


@given(data=st.binary(max_size=64))
def test_nonsense_is_refused_or_a_failure(data: bytes) -> None:
    try:
        reply = pb.Reply.FromString(serve.Worker().answer(data))
    except DecodeError:
        return
    assert reply.WhichOneof("body") in ("failure", "loaded_catalogue")
