"""The resident worker, given the installed catalogue and rankers before it is asked.

A worker is started by the first question, not at the start of the daemon: a phone that is not used pays nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from fedlearn.device.bundle import GOLDEN, INFER, PLAN, PRIVATE, WEIGHTS, Bundle
from fedlearn.errors import BundleRefused, TrustError, WorkerFailed
from fedlearn.proto import device_pb2, worker_pb2
from fedlearn_client import __version__
from fedlearn_client.hooks import Occasion
from fedlearn_client.installed import Installed, InstalledCatalogue
from fedlearn_client.memory import give_back
from fedlearn_client.store.facts import Facts
from fedlearn_client.turns import Turns
from fedlearn_client.workers import Workers

_PIECE_SIGNALS: Final = 100
_PIECE_TEXT: Final = 16 * 1024  # code points
_INDEX: Final = "index"  # JSON: catalogue, runtime, index


@dataclass(frozen=True, slots=True)
class Derived:
    """What is kept of signals, and of which index it speaks."""

    index: str
    bodies: list[bytes] = field(repr=False)


class Reading:
    """Reads signals and ranks, with what is installed. Safe to use from several threads.

    Args:
        workers: the processes; killed and started again by others, as they like.
        installed: catalogue and bundles.
        facts: remembers the index of a catalogue, so that a start needs no worker.
    """

    def __init__(self, workers: Workers, installed: Installed, facts: Facts) -> None:
        self._workers = workers
        self._installed = installed
        self._facts = facts
        # a question and a new catalogue keep apart: what is derived is stamped with the index that it was derived with
        self._lock = Turns()
        self._loaded = ("", "")  # digests of the catalogue that the workers have, and of its index
        self._rankers: set[str] = set()

    def require_catalogue(self) -> None:
        """Raise BundleRefused where there is no catalogue to read with; StatusRefused where it is stopped."""
        self._installed.catalogue()

    def index(self) -> str:
        """Return the digest of the index of the installed catalogue, "" where there is none."""
        try:
            catalogue = self._installed.catalogue()
        except TrustError:
            return ""
        loaded, index = self._loaded
        if loaded == catalogue.digest:
            return index
        known = json.loads(self._facts.get(_INDEX) or b"{}")
        if known.get("catalogue") == catalogue.digest and known.get("runtime") == __version__:
            return str(known["index"])
        with self._lock:
            return self._load(catalogue)

    def ingest(self, signals: Sequence[device_pb2.Signal]) -> Derived:
        """Return what is kept of each signal, b"" for nothing.

        Args:
            signals: at least one.

        Raises:
            BundleRefused: no catalogue is installed.
            SignalRefused: a signal that cannot be read; nothing was derived.
            WorkerFailed: the worker died.
        """
        catalogue = self._installed.catalogue()
        bodies: list[bytes] = []
        index = ""
        for piece in _pieces(signals):  # so that a ranking waits for one piece, not for a whole push
            with self._lock:
                index = self._load(catalogue)
                bodies += self._workers.ingest(piece)
        return Derived(index, bodies)

    def rank(
        self, bundle: Bundle, occasion: Occasion, sources: frozenset[str], count: int
    ) -> Sequence[device_pb2.RankedItem]:
        """Return the best ``count`` items, best first; raises as ``ingest``."""
        with self._lock:
            self._load(self._installed.catalogue())
            if bundle.plan_digest not in self._rankers or not self._workers.has_ranker(bundle.plan_digest):
                self._load_ranker(bundle)
            return self._workers.rank(bundle.plan_digest, occasion, sources, count)

    def install_bundle(self, data: bytes) -> Bundle:
        """Check a task bundle, run its golden vectors on this phone, and install it.

        Raises:
            TrustError: a check failed, a golden vector came out otherwise, or the worker cannot load it.
            StoreFailed: nothing was changed.
        """
        bundle = self._installed.check_bundle(data)
        with self._lock:
            try:
                self._require_golden(bundle)
                self._load_ranker(bundle)
            except WorkerFailed as error:
                raise BundleRefused(f"task_bundle: {error}") from error
            return self._installed.install_bundle(data)

    def install_catalogue(self, data: bytes) -> InstalledCatalogue:
        """Check a catalogue, load it, and install it; raises as ``install_bundle``."""
        index = ""

        def load(catalogue: bytes) -> None:
            nonlocal index
            self._loaded = ("", "")  # where the rest fails, the next question loads the old one
            try:
                index = self._workers.load_catalogue(catalogue).index_digest
            except WorkerFailed as error:
                raise BundleRefused(f"catalogue_bundle: {error}") from error

        with self._lock:
            catalogue = self._installed.install_catalogue(data, load)
            self._remember(catalogue, index)
        return catalogue

    def _load(self, catalogue: InstalledCatalogue) -> str:
        """Have the workers use ``catalogue``; return the digest of its index."""
        loaded, index = self._loaded
        if loaded == catalogue.digest:
            return index
        self._loaded = ("", "")
        index = self._workers.load_catalogue(catalogue.catalogue_bytes).index_digest
        self._remember(catalogue, index)
        return index

    def _remember(self, catalogue: InstalledCatalogue, index: str) -> None:
        self._loaded = (catalogue.digest, index)
        known = {"catalogue": catalogue.digest, "runtime": __version__, "index": index}
        self._facts.set(_INDEX, json.dumps(known).encode())
        give_back()  # a catalogue can be megabytes, and was copied on its way

    def _load_ranker(self, bundle: Bundle) -> None:
        files = bundle.files
        # the bundle's own private parameters, never this phone's: see ``recommend``
        digest = self._workers.load_ranker(files[PLAN], files[INFER], files[WEIGHTS], files.get(PRIVATE, b""))
        self._rankers.add(digest)

    def _require_golden(self, bundle: Bundle) -> None:
        files = bundle.files
        request = worker_pb2.GoldenRequest(
            vectors=files[GOLDEN],
            step=bundle.step,
            infer=files[INFER],
            plan=files[PLAN],
            weights=files[WEIGHTS],
        )
        report = json.loads(self._workers.golden(request))
        for case, difference in sorted(report.items()):
            if difference:
                raise BundleRefused(f"golden.json: this phone computes {case} otherwise: {difference}"[:300])


def _pieces(signals: Sequence[device_pb2.Signal]) -> Iterator[list[device_pb2.Signal]]:
    """Cut a push where its texts reach a few kilobytes, which take the worker some milliseconds."""
    piece: list[device_pb2.Signal] = []
    size = 0
    for signal in signals:
        piece.append(signal)
        size += len(signal.message.text)
        if len(piece) >= _PIECE_SIGNALS or size >= _PIECE_TEXT:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
