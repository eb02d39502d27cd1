"""A training over hand-made nodes, on a grid in this process: what the tests of the round share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context, Message

from fedlearn.privacy.grid import to_grid
from fedlearn.privacy.plan import PrivacyPlan, PrivacySettings, make_plan
from fedlearn.rng import os_bytes
from fedlearn.task import CohortReply, RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn.types import Contribution, Level
from fedlearn.wire import decode_task, task_digest
from fedlearn_server.collect import Asking
from fedlearn_server.grids.in_process import InProcessGrid
from fedlearn_server.hosting import answer
from fedlearn_server.job import ServerOptimizerSettings, TrainingJob
from fedlearn_server.message import pack_answer, unpack_question
from fedlearn_server.round import Observer, RoundOutcome
from fedlearn_server.training import run_training

WIDTH = 3
CLIP = 1.0
POPULATION = 20
PHONES = 4  # a good node's cohort, below its share of the population
Behaviour = Callable[[RoundTask], CohortReply | bytes]


def vector(task: RoundTask) -> np.ndarray:
    """What a good node adds up, encoded: the same from every node, another in every step."""
    values = np.array([0.5, -0.25, 0.125]) * (task.step + 1) / 4
    return values.astype("<f8") if task.grid_step is None else to_grid(values, task.grid_step).astype("<i8")


def good(task: RoundTask) -> CohortReply:
    """Answer as a cohort of ``PHONES`` phones."""
    contribution = Contribution(
        codec="f64" if task.grid_step is None else "grid64",
        scale=task.grid_step or 1.0,
        level=Level.COHORT,
        count=PHONES,
        l2_bound=PHONES * task.l2_clip_norm,
        task_digest=task_digest(task),
        nonce=os_bytes(16),
        values=vector(task),
    )
    return CohortReply(contribution, loss_sum=2.0 * PHONES, trained=PHONES, clipped=1, norm_sum=1.0, rejected={})


def failing(task: RoundTask) -> CohortReply:
    """Raise, as a node with a bug does."""
    raise ZeroDivisionError("a bug in the node")


@dataclass(eq=False)
class Nodes:
    """A ClientApp whose nodes behave as they are told: one behaviour a node, by partition. Records every task."""

    behaviours: list[Behaviour]
    tasks: list[RoundTask] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the behaviour of this partition says; bytes are sent as they are."""
        question = unpack_question(message.content)
        self.tasks.append(decode_task(question.task))
        said: list[CohortReply | bytes] = []

        def node(task: RoundTask) -> CohortReply:
            said.append(self.behaviours[question.partition](task))
            return good(task) if isinstance(said[0], bytes) else said[0]

        def host(description: str, partition: int, partitions: int) -> Callable[[RoundTask], CohortReply]:
            return node

        content = answer(host, message.content)
        if isinstance(said[0], bytes):
            content = pack_answer(said[0], question.challenge)
        return Message(content, reply_to=message)

    def grid(self) -> InProcessGrid:
        """Return a grid over the nodes."""
        return InProcessGrid(self, len(self.behaviours))


@lru_cache(maxsize=4)
def plan(rounds: int) -> PrivacyPlan:
    """Return a plan with a given noise."""
    settings = PrivacySettings(delta=1e-3, l2_clip_norm=CLIP, noise_multiplier=2.0)
    return make_plan(settings, population=POPULATION, rounds=rounds, cohort=POPULATION / 2)


def make_job(directory: Path, *, private: bool = True, rounds: int = 3, shards: int = 4) -> TrainingJob:
    """Return a training of a three-weight model."""
    return TrainingJob(
        run_id="run",
        directory=directory,
        rounds=rounds,
        population=POPULATION,
        shards=shards,
        sampling_probability=0.5,
        l2_clip_norm=CLIP,
        seed=7,
        training=TrainingTerms(1, 1, 0.1, False, 2),
        initial={"weights": np.zeros(WIDTH, np.float32)},
        optimizer=ServerOptimizerSettings("sgd", 1.0, {"momentum": 0.9}, 0.5),
        plan=plan(rounds) if private else None,
        asking=Asking(5.0, minimum=0.01),
        cohort="{}",
    )


def train(job: TrainingJob, nodes: Nodes, observe: Observer | None = None) -> list[RoundOutcome]:
    """Run or resume the training; return the outcomes of this process's rounds."""
    outcomes: list[RoundOutcome] = []
    job = replace(job, shards=min(job.shards, len(nodes.behaviours)))
    run_training(job, nodes.grid(), observe or outcomes.append)
    return outcomes
