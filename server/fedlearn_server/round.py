"""A round, read top to bottom. ::

    reserve -> task -> nodes -> fold -> BoundedSum -> charge -> NoisyMean -> server optimizer -> publish -> commit

Reserve before anybody is asked, charge before the first noise draw, commit after publication: a crash anywhere
over-counts what was spent, never under-counts it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from fedlearn.clip import joint_bound
from fedlearn.engine.optimizers import IterateAverage, ServerOptimizer
from fedlearn.errors import ContributionRejected, FedlearnError, Reason, RoundFailed
from fedlearn.fold import Fold, FoldTerms
from fedlearn.models.base import Parameters
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.sampling import RoundKey
from fedlearn.task import LARGEST_LOSS, CohortReply, RoundTask, shard
from fedlearn.types import F64, BoundedSum, Contribution, Level, NoisyMean
from fedlearn.wire import decode_reply, encode_task, task_digest
from fedlearn_server.checkpoint import Checkpoint
from fedlearn_server.collect import Conversation, PartAnswer
from fedlearn_server.job import TrainingJob
from fedlearn_server.publication import publish
from fedlearn_server.spend import Spend


@dataclass(frozen=True, slots=True)
class Unprotected:
    """Figures about the cohort that no noise covers; they exist in simulated populations only.

    Args:
        loss: mean over trained phones before training, or None for an empty cohort.
        cohort: accepted phones.
        clipped_fraction: part of the cohort that was clipped, or None for an empty cohort.
        signal_to_noise: norm of the clean mean over the expected norm of its noise, or None without noise.
        rejected: rejections by reason, of whole nodes and of phones inside nodes.
        failures: what failed nodes said.
    """

    loss: float | None
    cohort: int
    clipped_fraction: float | None
    signal_to_noise: float | None
    rejected: Mapping[Reason, int]
    failures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RoundOutcome:
    """What one round did.

    Args:
        step: 0-based mechanism step.
        charges: charges in the ledger so far, lost ones included; 0 without privacy.
        last: whether no further step will run.
        model: the model to use after this step.
        l2_clip_norm: the clip of this round; where it is adapted, a function of what earlier rounds released.
        update_norm: L2 norm of the released mean.
        unprotected: figures that no noise covers.
        seconds: wall time of the round.
    """

    step: int
    charges: int
    last: bool
    model: Parameters = field(repr=False)
    l2_clip_norm: float
    update_norm: float
    unprotected: Unprotected
    seconds: float


Observer = Callable[[RoundOutcome], Callable[[], None] | None]
"""Sees the outcome of a step that is not published yet, and may keep it where nobody else reads. What it returns is
called once the step is published, and may show it."""


@dataclass(slots=True)
class TrainingState:
    """What changes from round to round; a checkpoint is its image.

    Args:
        step: steps taken.
        parameters: the current model.
        optimizer: moves it.
        average: of the last iterates, or None.
        clip: the next round's clip norm where it is adapted; None before the first round, and where it is fixed.
    """

    step: int
    parameters: Parameters
    optimizer: ServerOptimizer
    average: IterateAverage | None
    clip: float | None = None

    def checkpoint(self, charge_id: int | None) -> Checkpoint:
        """Return the state as it is published."""
        averaged = {} if self.average is None else self.average.state_dict()
        return Checkpoint(self.step, self.parameters, self.optimizer.state_dict(), averaged, charge_id, self.clip)

    @property
    def released(self) -> Parameters:
        """The model to use: the average of the last iterates, or the last one."""
        return self.parameters if self.average is None else self.average.value(self.parameters)


def run_round(job: TrainingJob, state: TrainingState, spend: Spend, nodes: Conversation, observe: Observer) -> None:
    """Run one step and advance ``state``.

    ``observe`` sees the outcome before it is published, so that no published step lacks its record, and shows it
    afterwards. After a crash in between, correlated noise is drawn afresh for the same step at no further cost: had
    figures of the lost draw been shown, the step would have been released twice.

    Raises:
        RoundFailed: too few parts of the population gave a usable answer; the reservation is voided, nothing was drawn.
    """
    started = time.perf_counter()
    attempt, key = spend.reserve(state.step)
    try:
        task = make_task(job, state, attempt, key, spend.grid_step)
        if job.gateways:
            task = replace(task, ledger_checkpoint=spend.checkpoint())
        gathered = gather(nodes, task, job)
        bounded = gathered.bounded_sum(state.step, task.l2_bound, private=job.plan is not None)
    except FedlearnError as error:
        spend.abandon(f"no sum was formed: {error.code}")
        raise
    charge = spend.charge(bounded, task_digest(task))
    mean = spend.release(bounded, charge)
    update = advance(job, state, task, mean)
    show = observe(
        RoundOutcome(
            step=state.step - 1,
            charges=spend.charges,
            last=state.step >= job.rounds or spend.affordable == 0,
            model=state.released,
            l2_clip_norm=task.l2_clip_norm,
            update_norm=float(np.linalg.norm(update)),
            unprotected=gathered.unprotected(bounded, mean, task),
            seconds=time.perf_counter() - started,
        )
    )
    checkpoint = state.checkpoint(mean.charge_id)
    published = publish(job.directory, job.run_id, checkpoint, private=job.plan is not None)
    spend.commit(charge, published)
    if show is not None:
        show()


def make_task(job: TrainingJob, state: TrainingState, attempt: int, key: RoundKey, spacing: float | None) -> RoundTask:
    """Return what every node is asked in this step; the grid follows the step's own bound."""
    clip = job.l2_clip_norm if state.clip is None else state.clip
    count_scale = None
    if job.adaptive_clip is not None:
        count_scale = clip * job.adaptive_clip.ratio(None if job.plan is None else job.plan.noise_multiplier)
        spacing = None if spacing is None else grid_step(joint_bound(clip, count_scale))
    return RoundTask(
        run_id=job.run_id,
        step=state.step,
        attempt=attempt,
        seed=job.seed,
        parameters=state.parameters,
        training=job.training,
        l2_clip_norm=clip,
        grid_step=spacing,
        sampling_probability=job.sampling_probability,
        round_key=key.reveal(),
        participation=job.participation,
        count_scale=count_scale,
    )


@dataclass(slots=True)
class Gathered:
    """The fold of a round and the unprotected figures that came with it.

    Args:
        fold: of the parts' sums.
        minimum: parts that must be in it.
        loss_sum: of all trained phones.
        trained: phones.
        clipped: phones.
        parts: answers of whole parts that were left out before the fold saw them, by reason.
        phones: phones that their nodes left out, by reason.
        failures: what failed parts said.
    """

    fold: Fold
    minimum: int
    round_size: int = 0
    loss_sum: float = 0.0
    trained: int = 0
    clipped: int = 0
    parts: Counter[Reason] = field(default_factory=Counter)
    phones: Counter[Reason] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def bounded_sum(self, step: int, l2_sensitivity: float, *, private: bool) -> BoundedSum:
        """Return the sum; raise RoundFailed with what every part did if too few are in it.

        With privacy on, nothing is said of phones: the words of an attempt that is given up reach logs and files, and
        its noise, which would cover nothing of them, is never drawn.
        """
        counts = self.fold.rejected + self.parts if private else self._counts
        counted = ", ".join(f"{reason}: {count}" for reason, count in counts.items()) or "no answer arrived"
        if self.fold.accepted < self.minimum:
            said = "; ".join((f"({counted})", *self.failures))
            raise RoundFailed(
                f"step {step}: {self.fold.accepted or 'no'} part(s) of the population accepted, at least "
                f"{self.minimum} needed {said}."
            )
        if self.fold.count < self.round_size:
            raise RoundFailed(f"step {step}: fewer phones than the {self.round_size} that each was promised.")
        if not private and not self.fold.count and (self.parts or self.phones):
            # with privacy on, whether a round is released must not depend on one phone: an empty cohort is noise alone
            raise RoundFailed(
                f"step {step}: every phone of the cohort was rejected ({counted}); not_finite means that local "
                "training diverged: lower client.learning_rate; failed means that the phones' data cannot be used."
            )
        return self.fold.bounded_sum(step, l2_sensitivity)

    @property
    def _counts(self) -> Counter[Reason]:
        return self.fold.rejected + self.parts + self.phones

    def unprotected(self, bounded: BoundedSum, mean: NoisyMean, task: RoundTask) -> Unprotected:
        """Return the round's unprotected figures."""
        signal = bounded.values[: task.weights]
        noise = mean.noise_std * mean.denominator * math.sqrt(signal.size)
        return Unprotected(
            loss=self.loss_sum / self.trained if self.trained else None,
            cohort=bounded.count,
            clipped_fraction=self.clipped / bounded.count if bounded.count else None,
            signal_to_noise=float(np.linalg.norm(signal)) / noise if noise > 0.0 else None,
            rejected=dict(self._counts),
            failures=tuple(self.failures),
        )


def gather(nodes: Conversation, task: RoundTask, job: TrainingJob) -> Gathered:
    """Ask every part of the population and fold the answers as they arrive; what may not be added is counted."""
    terms = FoldTerms(task_digest(task), task.dimension, task.l2_bound, task.grid_step, Level.COHORT)
    asking = job.asking
    least = job.round_size if job.gateways else 0
    gathered = Gathered(Fold(terms), asking.parts(asking.minimum, job.shards), least)
    enough = asking.parts(asking.enough, job.shards)
    seen: set[int] = set()
    with closing(nodes.ask(encode_task(task), task.step)) as answers:
        for answer in answers:
            if answer.reason is not Reason.LATE:
                seen.add(answer.partition)
            _fold(gathered, answer, terms.max_bytes, _reserved(job, answer.partition))
            if gathered.fold.accepted >= enough:
                break
    if len(seen) < job.shards:
        gathered.parts[Reason.LATE] += job.shards - len(seen)
    return gathered


def _reserved(job: TrainingJob, partition: int) -> int:
    """Return the most phones that one part may speak for: those of its shard, or its share where phones choose it."""
    if job.gateways:
        return -(-job.population // job.shards)
    return len(shard(job.population, partition, job.shards))


def _fold(gathered: Gathered, answer: PartAnswer, max_bytes: int, reserved: int) -> None:
    if answer.failure:
        gathered.parts[answer.reason] += 1
        gathered.failures.append(f"part {answer.partition}: {answer.failure}")
        return
    reply: CohortReply | None = None

    def decode() -> Contribution:
        nonlocal reply
        reply = decode_reply(answer.payload, max_bytes)
        if sum(reply.rejected.values()) > reserved:
            raise ContributionRejected(Reason.OVER_COUNT, f"counts more rejected phones than its {reserved}")
        if not abs(reply.loss_sum) <= LARGEST_LOSS * reply.trained:
            raise ContributionRejected(Reason.MALFORMED, "a loss that its phones cannot have")
        return reply.contribution

    if gathered.fold.offer(decode, reserved) is None or reply is None:
        return
    gathered.loss_sum += reply.loss_sum
    gathered.trained += reply.trained
    gathered.clipped += reply.clipped
    gathered.phones.update(reply.rejected)


def advance(job: TrainingJob, state: TrainingState, task: RoundTask, mean: NoisyMean) -> F64:
    """Move the model, and the clip if it is adapted, by the released mean: post-processing, no privacy cost.

    Returns:
        The mean update, without the count coordinate.
    """
    update = mean.values[: task.weights]
    if job.adaptive_clip is not None and task.count_scale is not None:
        state.clip = job.adaptive_clip.next_clip(task.l2_clip_norm, float(mean.values[-1]), task.count_scale)
    state.parameters = state.optimizer.step(state.parameters, update)
    if state.average is not None:
        state.average.add(state.step, state.parameters)
    state.step += 1
    return update
