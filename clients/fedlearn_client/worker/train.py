"""One local round: examples -> steps -> clip -> grid -> contribution. Private parameters stay apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedlearn.clip import clip_l2
from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.device.plan import DevicePlan, ParameterSpec, TrainingSpec
from fedlearn.device.task import DeviceTask
from fedlearn.device.task_codec import task_from_bytes
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.errors import Refusal, TaskRefused
from fedlearn.features.index import CatalogueIndex
from fedlearn.privacy.exact_normal import rounded_normal
from fedlearn.proto import worker_pb2 as pb
from fedlearn.rng import os_bytes, simulation_rng
from fedlearn.types import I64
from fedlearn.wire import encode_contribution
from fedlearn_client.contribution import make_contribution
from fedlearn_client.memory import give_back, reuse_large
from fedlearn_client.worker.columns import Known, examples, make_columns
from fedlearn_client.worker.documents import F32, Columns, read_columns, read_parameters, read_plan
from fedlearn_client.worker.graphs import StepGraph

_NOISE_AT_ONCE = 1 << 16
_NOISE_SCALE = 2.0**30

OnStep = Callable[[], None]


def train(request: pb.TrainRequest, on_step: OnStep = lambda: None) -> pb.TrainReply:
    """Train on the phone's examples and return what may leave, and what must not, apart from each other.

    Guarantee: the contribution's vector has L2 norm <= the task's clip norm over all shared parameters together, on the
    task's grid, whatever graph, weights and examples were given. Its bytes have the same length for any examples, none
    included. A training that goes astray (NaN or infinity anywhere in its result) becomes an update of zeros, and the
    private parameters stay what they were: no upload at all would tell what the data made of chosen weights.

    Args:
        request: plan, graph, weights, task, and occasions or ready-made columns.
        on_step: called before each step; may end the process.

    Raises:
        BundleRefused: a part does not fit the plan.
        TaskRefused: the task is another plan's, or names another clip or grid than the plan.
    """
    plan, digest = read_plan(request.plan)
    task = task_from_bytes(request.task)
    _require_same(task, plan, digest)
    columns = read_columns(plan.columns, request.columns) if request.columns else _columns(request, plan, task)
    give_back()  # a catalogue and its index: as much as all that follows
    reuse_large()
    incoming = read_parameters(plan.shared, request.weights, "weights")
    own = read_parameters(plan.private, request.private_parameters, "private_parameters")
    graph = StepGraph(request.step, plan, incoming | own)
    delta = run_steps(graph, plan.training, columns, Shuffle(task.shuffle_seed, task.step), on_step)
    update, following = _outcome(plan, own, delta)
    del graph, delta, incoming, own  # the contribution needs the room
    clipped = clip_l2(update, task.mechanism.l2_clip_norm)
    return pb.TrainReply(
        contribution=encode_contribution(make_contribution(clipped, task, update.size)),
        private_parameters=following.astype("<f4").tobytes(),
        examples=_count(columns),
    )


class Shuffle(NamedTuple):
    """What orders the examples: the same for every phone, and protects nobody."""

    seed: int
    step: int


def run_steps(
    graph: StepGraph, terms: TrainingSpec, columns: Columns, shuffle: Shuffle, on_step: OnStep = lambda: None
) -> Mapping[str, F32]:
    """Return the delta of all parameters after the phone's schedule; zeros where it has no example."""
    local = LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle)
    order = schedule(_count(columns), local, simulation_rng(shuffle.seed, shuffle.step, "", "shuffle"))
    noise = _normal(sum(array.size for array in graph.noise.values()), len(order))
    for rows in order:
        on_step()
        _fill(graph, columns, rows)
        if graph.noise:
            spread(graph.noise, next(noise))
        graph.run()
    return graph.delta


def _require_same(task: DeviceTask, plan: DevicePlan, digest: str) -> None:
    if task.plan_digest != digest:
        raise TaskRefused(Refusal.PLAN, "plan_digest: the task is for another plan.")
    asked, approved = task.mechanism, plan.mechanism
    if (asked.l2_clip_norm, asked.grid_step) != (approved.l2_clip_norm, approved.grid_step):
        raise TaskRefused(Refusal.PLAN, "mechanism: the task's clip norm or grid step is not the plan's.")


def _columns(request: pb.TrainRequest, plan: DevicePlan, task: DeviceTask) -> Columns:
    index = CatalogueIndex.build(catalogue_from_bytes(request.catalogue, plan.catalogue.max_bytes))
    known = Known(plan, index, frozenset(request.sources))
    found = examples(request.occasions, index, plan.training.max_examples)
    return make_columns(known, found, simulation_rng(task.shuffle_seed, task.step, "", "negatives"))


def _count(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def _fill(graph: StepGraph, columns: Columns, rows: I64) -> None:
    """Gather a batch in place; padding repeats the first example, and the mask switches it off."""
    np.greater_equal(rows, 0, out=graph.mask)
    places = np.maximum(rows, 0)
    for name, buffer in graph.batch.items():
        np.take(columns[name], places, axis=0, out=buffer)


def spread(parts: Mapping[str, F32], values: F32) -> None:
    """Write one flat vector into named parameters, in sorted order, in place."""
    start = 0
    for name in sorted(parts):
        stop = start + parts[name].size
        parts[name][...] = values[start:stop].reshape(parts[name].shape)
        start = stop


def _normal(width: int, steps: int) -> Iterator[F32]:
    """Yield f32[width] of standard normal noise for each step, from the operating system's generator.

    It protects single examples, so it has no seed; each value is exact up to 2^-31 and the rounding to f32.
    """
    block = max(1, _NOISE_AT_ONCE // max(width, 1))
    for done in range(0, steps if width else 0, block):
        rows = min(block, steps - done)
        values = rounded_normal(rows * width, _NOISE_SCALE, os_bytes) / _NOISE_SCALE
        yield from values.astype(np.float32).reshape(rows, width)


def flat(specs: Sequence[ParameterSpec], values: Mapping[str, F32]) -> F32:
    """Return the named parameters as one vector, in their order."""
    return np.concatenate([np.zeros(0, np.float32), *(values[spec.name].ravel() for spec in specs)])


def _outcome(plan: DevicePlan, own: Mapping[str, F32], delta: Mapping[str, F32]) -> tuple[F32, F32]:
    """Return the update and the next private parameters, flat; zeros and the old ones if either is not finite."""
    update, before = flat(plan.shared, delta), flat(plan.private, own)
    with np.errstate(over="ignore", invalid="ignore"):
        following = before + flat(plan.private, delta)
    if np.isfinite(update).all() and np.isfinite(following).all():
        return update, following
    return np.zeros_like(update), before
