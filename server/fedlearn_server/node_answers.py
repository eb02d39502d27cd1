"""A node's answers: made once for a question, sent as often as it is asked."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from flwr.app import RecordDict

from fedlearn.wire import decode_task
from fedlearn_server.hosting import CohortHost, NodeFunction, answer
from fedlearn_server.message import Question, pack_answer, unpack_answer, unpack_question

KEPT_BYTES = 256 * 2**20
KEPT_RUNS = 8


@dataclass(slots=True)
class _Answered:
    """What a round was answered: (part, parts) -> payload."""

    asked: bytes
    answers: dict[tuple[int, int], bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.answers.values()))


class Answering:
    """Answers questions, and a question of a run's last round that is asked again with what it answered before.

    A ServerApp asks again when an answer got lost. Trained anew, a phone with noise of its own would draw it twice.
    Several runs may ask a node in turn, each about its own round.

    Args:
        host: opens cohorts.
        kept_bytes: how many bytes of answers are kept. Of the runs that were silent for longest they go first; what
            is over it in one round is made again.
        kept_runs: how many runs' answers are kept, >= 1.
    """

    def __init__(self, host: CohortHost, kept_bytes: int = KEPT_BYTES, kept_runs: int = KEPT_RUNS) -> None:
        self._host = host
        self._kept_bytes = kept_bytes
        self._kept_runs = kept_runs
        self._rounds: dict[str, _Answered] = {}  # by run, the one that asked last at the end

    def __call__(self, content: RecordDict) -> RecordDict:
        """Return the answer to a question; whatever goes wrong is raised."""
        question = unpack_question(content)
        asked, place = _digest(question), (question.partition, question.partitions)
        run = next((run for run, known in self._rounds.items() if known.asked == asked), None)
        payload = None if run is None else self._round(run, asked).answers.get(place)
        if payload is None:
            payload = unpack_answer(answer(self._host, content), question.challenge)
            run = decode_task(question.task).run_id if run is None else run
            self._keep(self._round(run, asked), place, payload)
        return pack_answer(payload, question.challenge)

    def _round(self, run: str, asked: bytes) -> _Answered:
        """Return the answers to a run's round, which takes the place of its last one."""
        known = self._rounds.pop(run, None)
        if known is None or known.asked != asked:
            known = _Answered(asked)
        self._rounds[run] = known
        while len(self._rounds) > self._kept_runs:
            del self._rounds[next(iter(self._rounds))]
        return known

    def _keep(self, known: _Answered, place: tuple[int, int], payload: bytes) -> None:
        if known.size + len(payload) > self._kept_bytes:
            return
        known.answers[place] = payload
        while sum(other.size for other in self._rounds.values()) > self._kept_bytes:
            del self._rounds[next(iter(self._rounds))]  # never this one: it is the last, and fits


@dataclass(frozen=True, slots=True)
class LocalData:
    """A cohort host that reads a simulated population's files where this machine has them.

    Only ``config.data.root`` of a description is replaced, and only where there is one.

    Args:
        host: the host.
        root: the folder on this machine.
    """

    host: CohortHost
    root: Path

    def __call__(self, description: str, partition: int, partitions: int) -> NodeFunction:
        """Open a cohort (``fedlearn_server.hosting.CohortHost``)."""
        return self.host(_rooted(description, self.root), partition, partitions)


def _rooted(description: str, root: Path) -> str:
    try:
        told = json.loads(description)
        if "root" not in told["config"]["data"]:
            return description
        told["config"]["data"]["root"] = str(root)
    except (ValueError, KeyError, TypeError):
        return description  # the host says what is wrong with it
    return json.dumps(told, sort_keys=True)


def _digest(question: Question) -> bytes:
    """SHA-256 of what all parts of a round are asked."""
    total = hashlib.sha256(hashlib.sha256(question.cohort.encode()).digest())
    total.update(question.task)
    return total.digest()
