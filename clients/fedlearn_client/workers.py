"""The daemon's door to the sandboxed workers. Needs no numpy.

A resident worker derives what is stored and ranks; it is started when something is asked, ends by itself when nobody
asked for 30 seconds, and is killed by ``forget``. A training has a process of its own that lives for one request. Every
fault of either is a ``WorkerFailed``, and the next call gets a fresh process.
"""

from __future__ import annotations

import hashlib
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.errors import SignalRefused, WorkerFailed
from fedlearn.proto import device_pb2
from fedlearn.proto import worker_pb2 as pb
from fedlearn_client.hooks import ClockAndRng, Occasion
from fedlearn_client.worker.layers import missing
from fedlearn_client.worker.process import Gone, WorkerProcess

START_S: Final = 20.0
ANSWER_S: Final = 20.0
GOLDEN_S: Final = 120.0
_FAST: Final = 1


@dataclass(frozen=True, slots=True)
class LoadedCatalogue:
    """What a worker says about a catalogue: digest of its index, and items to rank."""

    index_digest: str
    items: int


@dataclass(slots=True)
class _Loaded:
    """What a fresh resident worker must be given before it can be asked.

    The catalogue is kept compressed: it is megabytes of names that come again and again, and seldom needed.
    """

    catalogue: bytes | None = None
    rankers: dict[str, pb.LoadRanker] = field(default_factory=dict)


class Workers:
    """All worker processes of a daemon; safe to use from many threads.

    Args:
        clock: for deadlines.
        allow_weak_sandbox: go on where the kernel offers neither a network namespace nor seccomp. For development.
        answer_s: seconds for one answer of the resident worker.
        numerics: also answer conformance cases; for test builds.
        command: how to start a worker; tests start others.
    """

    def __init__(
        self,
        clock: ClockAndRng,
        *,
        allow_weak_sandbox: bool = False,
        answer_s: float = ANSWER_S,
        numerics: bool = False,
        command: list[str] | None = None,
    ) -> None:
        self._clock = clock
        self._allow_weak = allow_weak_sandbox
        self._answer_s = answer_s
        self._command = command
        self._resident_arguments = ["--numerics"] if numerics else []
        self._asking = threading.Lock()  # one request to the resident worker at a time
        self._state = threading.Lock()  # of the fields below; held briefly, so that forget never waits
        self._resident: WorkerProcess | None = None
        self._training: set[WorkerProcess] = set()
        self._loaded = _Loaded()
        self._layers: frozenset[str] = frozenset()
        self._closed = False

    @property
    def layers(self) -> frozenset[str]:
        """What confined the newest worker; empty before the first."""
        return self._layers

    @property
    def weak(self) -> bool:
        """Whether the newest worker runs without what ``allow_weak_sandbox`` forgives."""
        return bool(self._layers) and bool(missing(self._layers))

    def load_catalogue(self, data: bytes) -> LoadedCatalogue:
        """Load ``catalogue.json`` into the resident worker, and into each later one.

        Raises:
            WorkerFailed: it is not a catalogue; what was loaded before stays.
        """
        with self._asking:
            reply = self._ask(pb.Request(load_catalogue=data), "loaded_catalogue").loaded_catalogue
            with self._state:
                self._loaded.catalogue = zlib.compress(data, _FAST)
        return LoadedCatalogue(reply.index_digest, reply.items)

    def load_ranker(self, plan: bytes, infer: bytes, weights: bytes, private_parameters: bytes = b"") -> str:
        """Load a ranker and return its plan's digest, by which ``rank`` names it. Loading again replaces it.

        Raises:
            WorkerFailed: graph or weights do not fit the plan.
        """
        request = pb.LoadRanker(plan=plan, infer=infer, weights=weights, private_parameters=private_parameters)
        digest = hashlib.sha256(plan).hexdigest()
        with self._asking:
            self._ask(pb.Request(load_ranker=request), "loaded_ranker")
            with self._state:
                self._loaded.rankers[digest] = request
        return digest

    def has_ranker(self, plan_digest: str) -> bool:
        """Return whether ``rank`` knows this plan."""
        with self._state:
            return plan_digest in self._loaded.rankers

    def ingest(self, signals: Sequence[device_pb2.Signal]) -> list[bytes]:
        """Return the body to store for each signal, in order; b"" where there is nothing to store.

        Raises:
            SignalRefused: a signal without content or direction, or with a span outside its text; none was derived.
            WorkerFailed: otherwise.
        """
        with self._asking:
            reply = self._ask(pb.Request(ingest=pb.IngestRequest(signals=signals)), "ingest").ingest
        if len(reply.derived) != len(signals):
            raise WorkerFailed("worker: answered for another number of signals.")
        return [derived.body for derived in reply.derived]

    def rank(
        self, plan_digest: str, occasion: Occasion, sources: frozenset[str], count: int
    ) -> list[device_pb2.RankedItem]:
        """Return the ``count`` best items for what is known now, best first.

        Args:
            plan_digest: from ``load_ranker``.
            occasion: without ``chosen``.
            sources: granted ones, by their names in ``fedlearn.features``.
            count: >= 1.

        Raises:
            WorkerFailed: no such ranker, no catalogue, or any fault.
        """
        request = pb.RankRequest(
            plan_digest=plan_digest, occasion=occasion_message(occasion), sources=sorted(sources), count=count
        )
        with self._asking:
            return list(self._ask(pb.Request(rank=request), "rank").rank.items)

    def train(
        self, request: pb.TrainRequest, deadline_s: float, stop: Callable[[], bool] | None = None
    ) -> pb.TrainReply:
        """Train in a fresh process and return what it made.

        Args:
            request: all it needs; nothing else of this phone reaches the process.
            deadline_s: seconds until it is killed.
            stop: asked about once a second while it runs; true kills it.

        Raises:
            WorkerFailed: it failed, died, took too long, was stopped or forgotten. Nothing of it is left.
        """
        return self._once(pb.Request(train=request), "train", deadline_s, stop).train

    def golden(self, request: pb.GoldenRequest, deadline_s: float = GOLDEN_S) -> str:
        """Run a bundle's golden vectors in a fresh process; return the JSON report: case -> "" or what differed.

        Raises:
            WorkerFailed: they cannot be run.
        """
        return self._once(pb.Request(golden=request), "golden", deadline_s, None).golden.report

    def numerics(self, case: bytes) -> bytes:
        """Return the Reply to one conformance Case, both in bytes. Built with ``numerics`` only.

        Raises:
            WorkerFailed: not built for it, or the case is not one that a worker answers.
        """
        with self._asking:
            return self._ask(pb.Request(numerics=case), "numerics").numerics

    def forget(self) -> None:
        """Kill every worker at once, whatever it is doing, and drop the owner's own parameters from memory.

        Catalogue and rankers stay known, since they are public; a ranker that holds private parameters does not.
        """
        with self._state:
            doomed = [process for process in (self._resident, *self._training) if process is not None]
            self._resident = None
            own = [digest for digest, ranker in self._loaded.rankers.items() if ranker.private_parameters]
            for digest in own:
                del self._loaded.rankers[digest]
        for process in doomed:
            process.close()

    def close(self) -> None:
        """Kill every worker for good."""
        with self._state:
            self._closed = True
        self.forget()

    def _ask(self, request: pb.Request, kind: str) -> pb.Reply:
        """Ask the resident worker, which may have ended since it was last asked: then once more, of a fresh one."""
        data = request.SerializeToString()
        for _ in range(2):
            process, fresh = self._awake()
            try:
                return self._asked(process, data, kind)
            except Gone:
                if fresh:
                    raise
        raise WorkerFailed("worker: ended before it could be asked.")

    def _asked(self, process: WorkerProcess, data: bytes, kind: str) -> pb.Reply:
        """Return a reply of the resident worker; on every fault but one that it reported itself, it is ended."""
        try:
            return _checked(process.ask(data, self._answer_s), kind)
        except (_Reported, SignalRefused):
            raise
        except WorkerFailed:
            self._drop(process)
            raise

    def _awake(self) -> tuple[WorkerProcess, bool]:
        """Return the resident worker, with all that was loaded, and whether it was just started."""
        with self._state:
            if self._resident is not None:
                return self._resident, False
            process = self._resident = self._start(self._resident_arguments)
            catalogue, rankers = self._loaded.catalogue, list(self._loaded.rankers.values())
        try:
            self._require_confined(process)
            if catalogue is not None:
                request = pb.Request(load_catalogue=zlib.decompress(catalogue))
                _checked(process.ask(request.SerializeToString(), self._answer_s), "loaded_catalogue")
            for ranker in rankers:
                request = pb.Request(load_ranker=ranker)
                _checked(process.ask(request.SerializeToString(), self._answer_s), "loaded_ranker")
        except WorkerFailed:
            self._drop(process)
            raise
        return process, True

    def _once(self, request: pb.Request, kind: str, deadline_s: float, stop: Callable[[], bool] | None) -> pb.Reply:
        """Ask a process of its own that answers once."""
        with self._state:
            process = self._start(["--train"])
            self._training.add(process)
        try:
            self._require_confined(process)
            return _checked(process.ask(request.SerializeToString(), deadline_s, stop), kind)
        finally:
            with self._state:
                self._training.discard(process)
            process.close()

    def _start(self, arguments: list[str]) -> WorkerProcess:
        if self._closed:
            raise WorkerFailed("worker: this daemon is stopping.")
        return WorkerProcess(arguments, self._clock.monotonic, self._command)

    def _require_confined(self, process: WorkerProcess) -> None:
        found = process.first_words(START_S)
        lacks = missing(found)
        if lacks and not self._allow_weak:
            raise WorkerFailed(
                f"worker: runs without {' and '.join(lacks)}, and gets no data so; use a kernel that has them, or, for "
                "development only, allow a weak sandbox."
            )
        self._layers = found

    def _drop(self, process: WorkerProcess) -> None:
        with self._state:
            if self._resident is process:
                self._resident = None
        process.close()


class _Reported(WorkerFailed):
    """A failure that the worker itself reported, in good order."""


def occasion_message(occasion: Occasion) -> pb.Occasion:
    """Return an occasion as the worker takes it."""
    return pb.Occasion(
        said=occasion.said,
        earlier=[pb.EarlierChoice(item=choice.item, app=choice.app) for choice in occasion.earlier],
        chosen=occasion.chosen,
    )


def _checked(reply: pb.Reply, kind: str) -> pb.Reply:
    """Return a reply of the kind that was asked for."""
    found = reply.WhichOneof("body")
    if found == kind:
        return reply
    if found != "failure":
        raise WorkerFailed("worker: answered something else than it was asked.")
    failure = reply.failure
    if failure.code == SignalRefused.code:
        raise SignalRefused(failure.message)
    said = f"worker: {failure.code or 'an unexpected error'} {failure.kind}{': ' if failure.message else ''}"
    raise (_Reported if failure.code else WorkerFailed)(said + failure.message)
