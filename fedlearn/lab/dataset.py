"""What the lab asks of a data set: a public catalogue, and phones with sessions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from fedlearn.catalogue import Catalogue
from fedlearn.signals import Device
from fedlearn.types import F64


@dataclass(frozen=True, slots=True)
class TaskProtocol:
    """How results on a data set are to be read; part of every result file.

    Args:
        task: what is predicted, e.g. ``"B1 chat-zh, CrossWOZ -> restaurant"``.
        split: which sessions are tested.
        negatives: what the positive competes with.
        tie_rule: who wins a tie.
    """

    task: str
    split: str
    negatives: str = "full ranking over all items of the domain"
    tie_rule: str = "ties count against the positive"


class SessionDataset(Protocol):
    """A simulated population of phones. Found by name through the entry point group ``fedlearn.data``.

    ``fedlearn.lab.conformance.DatasetConformance`` tests it.
    """

    @property
    def catalogue(self) -> Catalogue:
        """The public catalogue; positions in ``items`` are the labels of sessions."""
        ...

    @property
    def protocol(self) -> TaskProtocol:
        """How results are to be read."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the files read, or of the generator's settings and version."""
        ...

    def devices(self) -> Iterator[Device]:
        """Yield every phone in a fixed order; need not hold them all."""
        ...


@runtime_checkable
class OracleDataset(Protocol):
    """A data set that knows the truth about its phones."""

    def oracle_scores(self, device: int, session: int) -> F64:
        """Return f64[N]: the best scores anybody could give who sees exactly what the device sees."""
        ...

    def truth_scores(self, device: int, session: int) -> F64:
        """Return f64[N]: the true utilities, which no device sees."""
        ...
