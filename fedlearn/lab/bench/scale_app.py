"""The ServerApp and the cohort of ``fedlearn bench scale``: the whole path of a training, with nothing to train."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedlearn.errors import RoundFailed
from fedlearn.rng import os_bytes
from fedlearn.task import CohortReply, RoundTask
from fedlearn.terms import TrainingTerms
from fedlearn.types import Contribution, Level
from fedlearn.wire import task_digest
from fedlearn_server.app import ORDER, make_client_app
from fedlearn_server.collect import Asking
from fedlearn_server.flower import guard_replies, limit_retries
from fedlearn_server.hosting import NodeFunction
from fedlearn_server.job import ServerOptimizerSettings, TrainingJob
from fedlearn_server.round import RoundOutcome
from fedlearn_server.training import run_training

WEIGHT_BYTES = 4
CLIP = 1.0
DEADLINE_S = 300.0
SILENCE_S = 30.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class ScaleOrder:
    """What the ServerApp is told, in its run config.

    Args:
        directory: of this training, on the same machine.
        weights: of the model, f32.
        parts: of the population; as many as nodes.
        rounds: timed and untimed together.
        seed: of the model.
        superlink: pid.
        nodes: pids of the processes that host the nodes.
    """

    directory: str
    weights: int
    parts: int
    rounds: int
    seed: int
    superlink: int
    nodes: tuple[int, ...]

    @property
    def samples(self) -> Path:
        """One JSON line a round: what was used up until its end."""
        return Path(self.directory) / "samples.jsonl"


@dataclass(frozen=True, slots=True)
class Sample:
    """Totals at one moment: CPU in seconds since each process began, wall of a clock that never stops.

    Args:
        wall: seconds.
        superlink: CPU-seconds of SuperLink.
        serverapp: CPU-seconds of the ServerApp.
        nodes: CPU-seconds of the nodes' processes, those they started and that ended included.
        machine: CPU-seconds of everything on this machine.
        superlink_bytes: resident memory.
        serverapp_bytes: resident memory.
        nodes_bytes: resident memory of all of the nodes' processes and those they have started.
    """

    wall: float
    superlink: float
    serverapp: float
    nodes: float
    machine: float
    superlink_bytes: int
    serverapp_bytes: int
    nodes_bytes: int


def take_sample(superlink: int, nodes: Sequence[int], serverapp: int | None = None) -> Sample:
    """Read the totals now; ``serverapp`` None: of this process."""
    hosts = [psutil.Process(pid) for pid in nodes]
    running = [child for host in hosts for child in host.children(recursive=True)]
    link, own = psutil.Process(superlink), psutil.Process(serverapp)
    return Sample(
        wall=time.monotonic(),
        superlink=_cpu(link),
        serverapp=_cpu(own),
        nodes=sum(map(_cpu, hosts)) + sum(map(_ended_cpu, hosts)) + sum(map(_cpu_if_there, running)),
        machine=_busy(),
        superlink_bytes=link.memory_info().rss,
        serverapp_bytes=own.memory_info().rss,
        nodes_bytes=sum(host.memory_info().rss for host in hosts) + sum(map(_rss_if_there, running)),
    )


def open_null(description: str, partition: int, partitions: int) -> NodeFunction:
    """Return a cohort of one phone that moves no weight: a contribution of the right size at no cost."""
    del description, partition, partitions

    def node(task: RoundTask) -> CohortReply:
        contribution = Contribution(
            codec="f64",
            scale=1.0,
            level=Level.COHORT,
            count=1,
            l2_bound=task.l2_clip_norm,
            task_digest=task_digest(task),
            nonce=os_bytes(16),
            values=np.zeros(task.dimension, "<f8"),
        )
        return CohortReply(contribution, loss_sum=0.0, trained=1, clipped=0, norm_sum=0.0, rejected={})

    return node


def scale_job(order: ScaleOrder) -> TrainingJob:
    """Return a training without privacy, whose phones are one a part: noise would be drawn at the server alone."""
    initial = np.random.default_rng(order.seed).normal(size=order.weights).astype(np.float32)
    return TrainingJob(
        run_id="bench-scale",
        directory=Path(order.directory),
        rounds=order.rounds,
        population=order.parts,
        shards=order.parts,
        sampling_probability=1.0,
        l2_clip_norm=CLIP,
        seed=order.seed,
        training=TrainingTerms(epochs=1, batch_size=1, learning_rate=0.1, shuffle=False, candidates=2),
        initial={"w": initial},
        optimizer=ServerOptimizerSettings("sgd", 1.0, {"momentum": 0.0}, 0.0),
        plan=None,
        asking=Asking(deadline_s=DEADLINE_S, minimum=1.0),
        cohort="{}",
    )


def run_order(grid: Grid, order: ScaleOrder) -> None:
    """Run the rounds, and write what each had used at its end."""
    order.samples.parent.mkdir(parents=True, exist_ok=True)
    _wait_for_all(grid, order.parts)
    with order.samples.open("a") as lines:

        def write() -> None:
            lines.write(json.dumps(asdict(take_sample(order.superlink, order.nodes))) + "\n")
            lines.flush()

        def observe(outcome: RoundOutcome) -> Callable[[], None]:
            del outcome
            return write

        write()
        run_training(scale_job(order), grid, observe)


def to_json(order: ScaleOrder) -> str:
    """Return the run config's text."""
    return json.dumps(asdict(order), sort_keys=True)


def read_order(text: str) -> ScaleOrder:
    """Return what ``to_json`` wrote."""
    plain = json.loads(text)
    return ScaleOrder(**{**plain, "nodes": tuple(plain["nodes"])})


def read_samples(path: Path) -> list[Sample]:
    """Return what a ServerApp wrote: before the first round, and after each."""
    return [Sample(**json.loads(line)) for line in path.read_text().splitlines()]


app = ServerApp()
client_app = make_client_app(lambda: open_null)


@app.main()
def _serve(grid: Grid, context: Context) -> None:
    limit_retries(grid, SILENCE_S)
    guard_replies(grid)
    run_order(grid, read_order(str(context.run_config[ORDER])))


def _wait_for_all(grid: Grid, parts: int) -> None:
    """Wait until every part has a node of its own, so that what is measured is a node-round."""
    until = time.monotonic() + SILENCE_S
    while (online := len(list(grid.get_node_ids()))) < parts:
        if time.monotonic() > until:
            raise RoundFailed(f"only {online} of {parts} nodes are online.")
        time.sleep(POLL_S)


def _busy() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ended_cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.children_user + times.children_system)


def _cpu_if_there(process: psutil.Process) -> float:
    try:
        return _cpu(process) + _ended_cpu(process)
    except psutil.NoSuchProcess:
        return 0.0


def _rss_if_there(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
