"""Answers requests until the pipe ends. What goes wrong crosses as a kind and a code; never a word of the data."""

from __future__ import annotations

import os
import select
from collections.abc import Callable

from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.errors import BundleRefused, FedlearnError, SignalRefused, TaskRefused, WorkerFailed
from fedlearn.features.index import CatalogueIndex
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.worker import golden
from fedlearn_client.worker.frames import MAX_FRAME_BYTES, frame, read_frame
from fedlearn_client.worker.ingest import derive
from fedlearn_client.worker.numerics import Numerics
from fedlearn_client.worker.rank import Ranker, load_ranker, rank
from fedlearn_client.worker.train import train

# Requests that hold public documents alone: messages about them may name what is wrong.
_PUBLIC = frozenset({"load_catalogue", "load_ranker", "golden", "numerics"})
# Raised by this package with fixed words and by readers of documents; the rest may quote what they stumbled over.
_PLAIN = (BundleRefused, SignalRefused, TaskRefused, WorkerFailed)
_LONGEST_MESSAGE = 500


class Worker:
    """What a resident worker remembers: public documents, never an occasion.

    Args:
        on_step: called before each step of a training.
        numerics: answers conformance cases; None in every build but those for tests.
    """

    def __init__(self, on_step: Callable[[], None] = lambda: None, numerics: Numerics | None = None) -> None:
        self._on_step = on_step
        self._index: CatalogueIndex | None = None
        self._rankers: dict[str, Ranker] = {}
        self._answers: dict[str, Callable[[pb.Request], pb.Reply]] = {
            "ingest": lambda request: pb.Reply(ingest=derive(request.ingest.signals, self._catalogue())),
            "rank": self._rank,
            "train": lambda request: pb.Reply(train=train(request.train, self._on_step)),
            "load_catalogue": self._load_catalogue,
            "load_ranker": self._load_ranker,
            "golden": lambda request: pb.Reply(golden=golden.run(request.golden)),
        }
        if numerics is not None:
            self._answers["numerics"] = lambda request: pb.Reply(numerics=numerics.answer(request.numerics))

    def answer(self, data: bytes) -> bytes:
        """Return the reply to one request, both in bytes; a failure is a reply too."""
        return self.reply(pb.Request.FromString(data))

    def reply(self, request: pb.Request) -> bytes:
        """Return the reply to a request."""
        kind = request.WhichOneof("body") or ""
        try:
            return self._answers.get(kind, _refuse)(request).SerializeToString()
        except BaseException as error:  # noqa: BLE001 - its words may quote the data, so that only its kind may cross
            return pb.Reply(failure=_failure(error, kind)).SerializeToString()

    def _load_catalogue(self, request: pb.Request) -> pb.Reply:
        self._index = CatalogueIndex.build(catalogue_from_bytes(request.load_catalogue, MAX_FRAME_BYTES))
        return pb.Reply(loaded_catalogue=pb.LoadedCatalogue(index_digest=self._index.digest, items=self._index.n))

    def _load_ranker(self, request: pb.Request) -> pb.Reply:
        ranker = load_ranker(request.load_ranker)
        self._rankers[ranker.digest] = ranker
        return pb.Reply(loaded_ranker=pb.LoadedRanker())

    def _rank(self, request: pb.Request) -> pb.Reply:
        ranker = self._rankers.get(request.rank.plan_digest)
        if ranker is None:
            raise WorkerFailed("plan_digest: no such ranker is loaded.")
        return pb.Reply(rank=rank(ranker, self._catalogue(), request.rank))

    def _catalogue(self) -> CatalogueIndex:
        if self._index is None:
            raise WorkerFailed("catalogue: none is loaded.")
        return self._index


def _refuse(request: pb.Request) -> pb.Reply:
    del request
    raise WorkerFailed("request: not one that this worker answers.")


def serve(worker: Worker, source: int, sink: int, idle_s: float | None) -> None:
    """Answer requests from one pipe on another until it ends, or nobody asks for ``idle_s`` seconds.

    Args:
        worker: who answers.
        source: file descriptor to read from.
        sink: file descriptor to write to.
        idle_s: seconds, or None: one request, and it ends.
    """
    while idle_s is None or _asked(source, idle_s):
        data = read_frame(lambda count: os.read(source, count))
        if data is None:
            return
        request = pb.Request.FromString(data)
        del data  # a catalogue can be megabytes
        write_all(sink, frame(worker.reply(request)))
        if idle_s is None:
            return


def write_all(sink: int, data: bytes) -> None:
    """Write everything to a pipe."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(sink, rest) :]


def parent_gone(source: int) -> bool:
    """Return whether the other side has closed the pipe."""
    poll = select.poll()
    poll.register(source, 0)  # a hang-up is reported without being asked for
    return bool(poll.poll(0))


def _asked(source: int, idle_s: float) -> bool:
    poll = select.poll()
    poll.register(source, select.POLLIN)
    return bool(poll.poll(idle_s * 1000))


def _failure(error: BaseException, request: str) -> pb.Failure:
    code = error.code if isinstance(error, FedlearnError) else ""
    plain = isinstance(error, FedlearnError) and (request in _PUBLIC or type(error) in _PLAIN)
    return pb.Failure(code=code, kind=type(error).__name__[:64], message=str(error)[:_LONGEST_MESSAGE] if plain else "")
