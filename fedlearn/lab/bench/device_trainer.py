"""The trainer: memory, time of steps and rounds, bundles, and how far its sums lie from the simulator's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from fedlearn import __version__
from fedlearn.clip import clip_l2, clip_rows
from fedlearn.device.bundle import PLAN, STEP, open_bundle
from fedlearn.engine.example_privacy import PrivateSgd
from fedlearn.engine.loop import LoopEngine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.features import FEATURES, CatalogueIndex
from fedlearn.lab.bench.device_figures import Figure, figure
from fedlearn.lab.bench.device_phone import status_mebibytes
from fedlearn.lab.bench.device_world import LARGE, SOURCES, TERMS, LocalRound, World
from fedlearn.models import MatchModel
from fedlearn.models.base import ClientExamples, Model, parameter_count
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.proto import worker_pb2 as pb
from fedlearn.rng import simulation_rng
from fedlearn.terms import ExamplePrivacy
from fedlearn.types import F64, I64, Contribution
from fedlearn.wire import decode_contribution
from fedlearn_client.contribution import make_contribution
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.worker.columns import Known, examples, make_columns
from fedlearn_client.worker.documents import F32, Columns
from fedlearn_client.worker.graphs import StepGraph
from fedlearn_client.worker.process import WorkerProcess
from fedlearn_client.worker.train import Shuffle, flat, run_steps, spread
from fedlearn_client.workers import START_S, Workers

STEPS: Final = 600
DIFFERENCE_STEPS: Final = 100
PRIVACY: Final = ExamplePrivacy(1.0, 0.5)
MATCH_EXAMPLES: Final = 200
TOWER_EXAMPLES: Final = 320
_DEADLINE_S: Final = 300.0
_WATCH_S: Final = 0.001


def bench_bundles(world: World, repeats: int) -> list[Figure]:
    """Return sizes of the default models' plan and step, and what it takes to open their bundles."""
    found = []
    for model in _defaults():
        _, files = world.files(world.trained(model))
        size = len(files[PLAN]) + len(files[STEP])
        found.append(figure(f"bundle {model.name}: plan + step", "bytes", [size], "default model", limit=200_000))
        bundle = world.task_bundle(files)

        def opened(data: bytes = bundle) -> None:
            open_bundle(data, root_keys=[world.documents.root], now=world.now, runtime=__version__)

        opened()
        protocol = f"open_bundle: {len(bundle)} bytes, every signature, digest and graph checked"
        times = [1e3 * _seconds(opened) for _ in range(repeats)]
        found.append(figure(f"bundle {model.name}: opened and checked", "ms", times, protocol))
    return found


def bench_rounds(world: World, repeats: int, steps: int = STEPS) -> list[Figure]:
    """Return memory and time of local rounds in a worker of their own, and of the steps alone beside torch's."""
    batches = -(-TOWER_EXAMPLES // TERMS.batch_size)
    long = replace(TERMS, epochs=max(1, steps // batches))
    tower = world.round(LARGE, long, TOWER_EXAMPLES)
    match = world.round(_match(), TERMS, MATCH_EXAMPLES)
    size = parameter_count(tower.trained.parameters)
    count = long.epochs * batches
    peaks = [_peak(tower) for _ in range(repeats)]
    words = f"two_tower of {size} weights, {TOWER_EXAMPLES} examples, batch 16, K 64, {count} steps"
    found = [
        figure("trainer: peak memory", "MiB", peaks, f"VmHWM of the worker, read each ms; {words}", limit=90.0),
        *_steps(tower, count, repeats),
    ]
    for name, one, what in (
        (f"local round, match, {MATCH_EXAMPLES} examples", match, f"catalogue of {world.restaurants} items, 1 epoch"),
        (f"local round, two_tower, {count} steps", tower, words),
    ):
        walls = _walls(one, repeats)
        protocol = f"Workers.train on occasions: process start, sandbox, features, steps, clip, grid, end; {what}"
        found.append(figure(name, "s", walls, protocol, limit=1.5))
    peaks = [_peak(match) for _ in range(repeats)]
    found.append(figure("trainer: peak memory, match", "MiB", peaks, "VmHWM of that match round", limit=90.0))
    return found


def bench_differences(world: World, steps: int = DIFFERENCE_STEPS) -> list[Figure]:
    """Return how far the clipped contribution lies from the simulator's, for every shipped model."""
    batches = -(-TOWER_EXAMPLES // TERMS.batch_size)
    plain = replace(TERMS, epochs=max(1, steps // batches))
    found = []
    for model in _defaults():
        for terms in (plain, replace(plain, example_privacy=PRIVACY)):
            one = world.round(model, terms, TOWER_EXAMPLES)
            work = _work(one)
            is_private = terms.example_privacy is not None
            sent = _private_contribution(one, work) if is_private else _contribution(one)
            with _one_thread():
                worst = float(np.abs(sent - _simulated(one, work)).max())
            protocol = (
                "worker's graph and clip in this process, the noise given to both"
                if is_private
                else "decoded contribution of Workers.train"
            ) + f"; against LoopEngine and clip_rows, {len(work.order)} steps, clip {one.task.mechanism.l2_clip_norm}"
            name = f"difference, {model.name}{', private steps' if is_private else ''}"
            found.append(figure(name, "", [worst], protocol, limit=1e-5))
    return found


@dataclass(frozen=True, slots=True)
class _Work:
    """Columns, schedule and noise of a round, as both sides get them."""

    columns: Columns
    order: I64
    noise: F32 | None


def _defaults() -> tuple[Model, Model]:
    return _match(), TwoTowerModel()


def _match() -> MatchModel:
    return MatchModel(len(FEATURES))


def _work(one: LocalRound) -> _Work:
    """Return what a worker makes of the round's occasions, and noise for its steps if they are private."""
    index = CatalogueIndex.build(one.catalogue)
    known = Known(one.plan, index, frozenset(SOURCES))
    task, terms = one.task, one.plan.training
    found = examples(one.occasions, index, terms.max_examples)
    columns = make_columns(known, found, simulation_rng(task.shuffle_seed, task.step, "", "negatives"))
    local = LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle)
    order = schedule(len(found), local, simulation_rng(task.shuffle_seed, task.step, "", "shuffle"))
    if terms.example_privacy is None:
        return _Work(columns, order, None)
    shape = (len(order), parameter_count(one.trained.parameters))
    return _Work(columns, order, np.random.default_rng(8).standard_normal(shape, np.float32))


def _steps(one: LocalRound, count: int, repeats: int) -> list[Figure]:
    """Time the steps in this process, without its start, in turns with torch's on the same batches."""
    work = _work(one)
    engine = LoopEngine(one.trained.model, one.plan.training.learning_rate)
    client = ClientExamples(work.columns)

    def device() -> float:
        graph = StepGraph(one.step, one.plan, one.trained.parameters)
        shuffle = Shuffle(one.task.shuffle_seed, one.task.step)
        return _seconds(lambda: run_steps(graph, one.plan.training, work.columns, shuffle))

    def eager() -> float:
        return _seconds(lambda: engine.updates(one.trained.parameters, [client], [work.order]))

    with _one_thread():
        pairs = [(device(), eager()) for _ in range(repeats + 1)][1:]
    protocol = "StepGraph and batches as in a worker, one thread, wall time, without the session's start"
    return [
        figure(f"trainer: {count} steps", "ms", [1e3 * ours for ours, _ in pairs], protocol, limit=450.0),
        figure("torch eager, the same steps", "ms", [1e3 * torchs for _, torchs in pairs], "LoopEngine, one thread"),
        figure("torch eager / trainer", "", [t / ours for ours, t in pairs], "of neighbouring calls"),
    ]


def _walls(one: LocalRound, repeats: int) -> list[float]:
    request = one.request
    workers = Workers(LinuxClock())
    try:
        return [_seconds(lambda: workers.train(request, _DEADLINE_S)) for _ in range(repeats)]
    finally:
        workers.close()


def _peak(one: LocalRound) -> float:
    """Return the peak memory of a worker that trains once, in MiB; its own VmHWM, which begins anew at exec."""
    request = pb.Request(train=one.request).SerializeToString()
    process = WorkerProcess(["--train"], time.monotonic)
    found, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(_WATCH_S):
            found.append(max(found[-1], status_mebibytes(process.pid, "VmHWM")))

    watcher = threading.Thread(target=watch, daemon=True)
    try:
        process.first_words(START_S)
        watcher.start()
        process.ask(request, _DEADLINE_S)
    finally:
        ended.set()
        process.close()
    watcher.join()
    return found[-1]


def _contribution(one: LocalRound) -> F64:
    workers = Workers(LinuxClock())
    try:
        sent = decode_contribution(workers.train(one.request, _DEADLINE_S).contribution)
    finally:
        workers.close()
    return _decoded(sent)


def _private_contribution(one: LocalRound, work: _Work) -> F64:
    """Run the private step as a worker does, but with known noise."""
    graph = StepGraph(one.step, one.plan, one.trained.parameters)
    for rows, noise in zip(work.order, work.noise if work.noise is not None else (), strict=True):
        np.greater_equal(rows, 0, out=graph.mask)
        for name, buffer in graph.batch.items():
            np.take(work.columns[name], np.maximum(rows, 0), axis=0, out=buffer)
        spread(graph.noise, noise)
        graph.run()
    update = flat(one.plan.shared, graph.delta)
    made = make_contribution(clip_l2(update, one.task.mechanism.l2_clip_norm), one.task, update.size)
    return _decoded(made)


def _simulated(one: LocalRound, work: _Work) -> F64:
    terms = one.plan.training
    privacy, noise = terms.example_privacy, work.noise
    private = None if privacy is None else PrivateSgd(privacy.noise_multiplier, privacy.l2_clip_norm, terms.batch_size)
    engine = LoopEngine(one.trained.model, terms.learning_rate, private=private)
    given = None if noise is None else (lambda position: noise)  # noqa: ARG005 - one phone
    deltas = engine.updates(one.trained.parameters, [ClientExamples(work.columns)], [work.order], given).deltas
    clipped: F64 = clip_rows(deltas, one.task.mechanism.l2_clip_norm).values[0]
    return clipped


def _decoded(contribution: Contribution) -> F64:
    return np.asarray(contribution.values, np.float64) * contribution.scale


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
