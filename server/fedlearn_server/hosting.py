"""What a node hosts: a part of a simulated population, or a gateway's phones, behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Protocol

from flwr.app import RecordDict

from fedlearn.errors import UnknownSetting
from fedlearn.task import CohortReply, RoundTask
from fedlearn.wire import decode_task, encode_reply
from fedlearn_server.message import pack_answer, unpack_question

HOSTS = "fedlearn.cohorts"
"""Entry point group: name -> a ``CohortHost``."""
SIMULATED = "simulated"
OPEN_COHORTS = 64

NodeFunction = Callable[[RoundTask], CohortReply]


class CohortHost(Hashable, Protocol):
    """Opens cohorts. Hashable and picklable: a runtime may use it in another process."""

    def __call__(self, description: str, partition: int, partitions: int) -> NodeFunction:
        """Return what answers tasks for one part of a population.

        Args:
            description: canonical JSON of what the run is about; nothing in it is ever executed.
            partition: which part, 0-based.
            partitions: parts in all.

        Raises:
            CodeMismatch: the run was submitted by other code than this side runs.
            DataError: this side lacks the data, or has others than the run.
        """
        ...


def host_named(name: str) -> CohortHost:
    """Return the installed cohort host of that name; raise UnknownSetting if there is none."""
    found = {point.name: point for point in entry_points(group=HOSTS)}
    if name not in found:
        raise UnknownSetting(f"cohort={name!r}: no such host is installed; there are {sorted(found)}.")
    host: CohortHost = found[name].load()
    return host


def answer(host: CohortHost, content: RecordDict) -> RecordDict:
    """Return a node's answer to one message.

    Cohorts stay open from round to round. Whatever goes wrong is raised; each runtime makes an error reply of it.
    """
    question = unpack_question(content)
    cohort = _opened(host, question.cohort, question.partition, question.partitions)
    return pack_answer(encode_reply(cohort(decode_task(question.task))), question.challenge)


@lru_cache(maxsize=OPEN_COHORTS)
def _opened(host: CohortHost, description: str, partition: int, partitions: int) -> NodeFunction:
    return host(description, partition, partitions)
