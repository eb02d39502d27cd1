"""What a round over SuperLink costs, against nodes and model size: seconds, CPU and bytes, stock path beside ours."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise

from rich.console import Console

from fedlearn.errors import OutOfRange
from fedlearn.lab.bench.device_figures import Machine
from fedlearn.lab.bench.scale_app import WEIGHT_BYTES, Sample
from fedlearn.lab.bench.scale_nodes import EMPTY_PULL, Calls
from fedlearn.lab.bench.scale_world import ScaleWorld, scale_world
from fedlearn.lab.code import code_version

PACKAGES = ("fedlearn", "flwr", "httpx", "numpy", "psutil", "SQLAlchemy", "uvicorn")
HEARTBEAT = "SendNodeHeartbeat"
MAX_NODES = 1000
MAX_BYTES = 100_000_000
LONGEST_IDLE_S = 60.0
BUSY = 0.8
"""Part of a core that a Python process can use before it is the one that all wait for."""


@dataclass(frozen=True, slots=True)
class ScaleSizes:
    """What is measured.

    Args:
        nodes: resident nodes, each in [1, 1000].
        model_bytes: f32 weights of the model, each in [4, 100 MB].
        rounds: timed rounds a pair of the two, >= 1; one more comes before, to open what stays open.
        stock: of Flower's own SuperNodes that run the first model size, >= 0; 0 leaves the stock path out. Beside
            them, in the same run, as many resident nodes.
        seed: of the model's weights.
        idle_s: how long nodes without work are looked at, in (0, 60].

    Raises:
        OutOfRange: a size outside its range.
    """

    nodes: tuple[int, ...] = (1, 4, 16, 64)
    model_bytes: tuple[int, ...] = (1_000, 100_000, 1_000_000, 10_000_000)
    rounds: int = 5
    stock: int = 3
    seed: int = 0
    idle_s: float = 5.0

    def __post_init__(self) -> None:
        if not self.nodes or not all(1 <= count <= MAX_NODES for count in self.nodes):
            raise OutOfRange(f"--nodes {self.nodes}: each must be in [1, {MAX_NODES}], e.g. 1,4,16,64.")
        if not self.model_bytes or not all(WEIGHT_BYTES <= size <= MAX_BYTES for size in self.model_bytes):
            raise OutOfRange(f"--bytes {self.model_bytes}: each must be in [{WEIGHT_BYTES}, {MAX_BYTES}].")
        if self.rounds < 1 or self.stock < 0:
            raise OutOfRange(f"--rounds {self.rounds}: must be >= 1; --stock {self.stock}: must be >= 0.")
        if not 0.0 < self.idle_s <= LONGEST_IDLE_S:
            raise OutOfRange(f"idle_s={self.idle_s}: must be in (0, {LONGEST_IDLE_S}] seconds.")


QUICK = ScaleSizes(nodes=(1, 4), model_bytes=(1_000, 100_000), rounds=3, stock=0)


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process, or one kind of process, used.

    Args:
        cpu_s: CPU-seconds a node-round.
        cores: CPU-seconds a second of the rounds: 1.0 is one core, busy all the time.
        memory: resident bytes at the end; of the nodes, a node's share.
    """

    cpu_s: float
    cores: float
    memory: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """Between SuperLink and nodes, before TLS and without HTTP's headers, a node-round.

    Args:
        requests: that carry a round's data.
        sent: bytes of those requests: answers.
        received: bytes of their responses: the task.
        waiting: requests that carry none: pulls with nothing there, heartbeats.
    """

    requests: float
    sent: float
    received: float
    waiting: float


@dataclass(frozen=True, slots=True)
class ScaleRow:
    """One path, number of nodes and model size.

    Args:
        path: ``resident`` or ``stock``.
        nodes: online, each asked one part a round.
        model_bytes: f32 weights; an answer without privacy holds them as f64.
        rounds: timed.
        seconds: a round, median.
        least, most: seconds.
        superlink, serverapp, hosts: what each used.
        traffic: None for the stock path, whose nodes cannot be asked.
        bottleneck: what limits the rounds, by these figures.
    """

    path: str
    nodes: int
    model_bytes: int
    rounds: int
    seconds: float
    least: float
    most: float
    superlink: Cost
    serverapp: Cost
    hosts: Cost
    traffic: Traffic | None
    bottleneck: str


@dataclass(frozen=True, slots=True)
class Idle:
    """What nodes without work cost.

    Args:
        nodes: resident and online.
        superlink: cores that SuperLink uses.
        hosts: cores that the nodes use together.
    """

    nodes: int
    superlink: float
    hosts: float


@dataclass(frozen=True, slots=True)
class ScaleBench:
    """The figures of one run, and what they were measured on.

    Args:
        code: version and digest of what ran.
        machine: on what.
        sizes: what was asked for.
        seconds: of the whole.
        rows: one a path, number of nodes and model size.
        idle: one a number of nodes, and none at first.
    """

    code: str
    machine: Machine
    sizes: ScaleSizes
    seconds: float
    rows: tuple[ScaleRow, ...]
    idle: tuple[Idle, ...]

    @property
    def stock_ratio(self) -> float | None:
        """Seconds of a round over stock SuperNodes over those of as many resident nodes, in this run."""
        stock = next((row for row in self.rows if row.path == "stock"), None)
        if stock is None:
            return None
        ours = next(
            row
            for row in self.rows
            if (row.path, row.nodes, row.model_bytes) == ("resident", stock.nodes, stock.model_bytes)
        )
        return stock.seconds / ours.seconds


def bench_scale(sizes: ScaleSizes, console: Console) -> ScaleBench:
    """Start a SuperLink with TLS and node authentication on loopback, and train over nodes of it.

    Args:
        sizes: what is measured.
        console: for progress.

    Raises:
        DeploymentRefused: SuperLink does not start.
        RunError: nodes do not come online, or a ServerApp failed.
    """
    load, began = os.getloadavg()[0], time.monotonic()
    rows: list[ScaleRow] = []
    idle: list[Idle] = []
    with scale_world() as world:
        idle.append(_idle(0, *world.idle((), sizes.idle_s)))
        for count in dict.fromkeys((*((sizes.stock,) if sizes.stock else ()), *sizes.nodes)):
            # beside the stock path, only what is compared with it
            models = sizes.model_bytes if count in sizes.nodes else sizes.model_bytes[:1]
            for found in _resident(world, count, models, sizes):
                if isinstance(found, Idle):
                    idle.append(found)
                else:
                    rows.append(found)
                    console.print(f"{count} nodes, {found.model_bytes:,} bytes: {found.seconds:.2f} s a round")
        if sizes.stock:
            rows.append(_stock(world, sizes))
            console.print(f"{sizes.stock} stock SuperNodes: {rows[-1].seconds:.2f} s a round")
    elapsed = round(time.monotonic() - began, 1)
    return ScaleBench(code_version(), _machine(load), sizes, elapsed, tuple(rows), tuple(idle))


def row_of(path: str, nodes: int, model_bytes: int, samples: Sequence[Sample], calls: Calls | None) -> ScaleRow:
    """Return the figures of one training.

    Args:
        path: ``resident`` or ``stock``.
        nodes: that took part in each round.
        model_bytes: of the model.
        samples: before the first round and after each; the first round, which opens what stays open, is not timed.
        calls: of all rounds, the first one included.
    """
    timed = samples[1:]
    seconds = [after.wall - before.wall for before, after in pairwise(timed)]
    first, last = timed[0], timed[-1]
    node_rounds, wall = nodes * len(seconds), last.wall - first.wall

    def cost(used: float, memory: float) -> Cost:
        return Cost(used / node_rounds, used / wall, memory)

    superlink = cost(last.superlink - first.superlink, last.superlink_bytes)
    serverapp = cost(last.serverapp - first.serverapp, last.serverapp_bytes)
    hosts = cost(last.nodes - first.nodes, last.nodes_bytes / nodes)
    return ScaleRow(
        path=path,
        nodes=nodes,
        model_bytes=model_bytes,
        rounds=len(seconds),
        seconds=statistics.median(seconds),
        least=min(seconds),
        most=max(seconds),
        superlink=superlink,
        serverapp=serverapp,
        hosts=hosts,
        traffic=None if calls is None else _traffic(calls, nodes * (len(samples) - 1)),
        bottleneck=bottleneck(
            superlink.cores, serverapp.cores, hosts.cores, machine=(last.machine - first.machine) / wall, cores=_cores()
        ),
    )


def bottleneck(superlink: float, serverapp: float, hosts: float, *, machine: float, cores: int) -> str:
    """Name what limits a round, from the cores that each kind of process, and the whole machine, kept busy.

    SuperLink and a ServerApp are one Python process each, which can use little more than one core.
    """
    if superlink >= BUSY:
        return f"SuperLink: {superlink:.0%} of one core"
    if serverapp >= BUSY:
        return f"ServerApp: {serverapp:.0%} of one core"
    ours = superlink + serverapp + hosts
    if ours >= BUSY * cores:
        return f"the machine: all {cores} cores busy"
    if machine >= BUSY * cores:
        return f"other programs: {machine - ours:.1f} of {cores} cores; SuperLink had {superlink:.0%} of one"
    return f"waiting: SuperLink {superlink:.0%}, ServerApp {serverapp:.0%} of one core"


def _resident(world: ScaleWorld, count: int, models: Sequence[int], sizes: ScaleSizes) -> Iterator[Idle | ScaleRow]:
    with world.resident(count) as nodes:
        yield _idle(count, *world.idle(nodes.pids, sizes.idle_s))
        for size in models:
            before = nodes.calls()
            samples = world.run(size // WEIGHT_BYTES, count, sizes.rounds + 1, sizes.seed, nodes.pids)
            yield row_of("resident", count, size, samples, nodes.calls().minus(before))


def _stock(world: ScaleWorld, sizes: ScaleSizes) -> ScaleRow:
    size = sizes.model_bytes[0]
    with world.stock(sizes.stock) as pids:
        samples = world.run(size // WEIGHT_BYTES, sizes.stock, sizes.rounds + 1, sizes.seed, pids)
    return row_of("stock", sizes.stock, size, samples, None)


def _idle(nodes: int, before: Sample, after: Sample) -> Idle:
    wall = after.wall - before.wall
    return Idle(nodes, (after.superlink - before.superlink) / wall, (after.nodes - before.nodes) / wall)


def _traffic(calls: Calls, node_rounds: int) -> Traffic:
    waiting = {EMPTY_PULL, HEARTBEAT}
    return Traffic(
        requests=sum(count for name, count in calls.count.items() if name not in waiting) / node_rounds,
        sent=sum(count for name, count in calls.sent.items() if name not in waiting) / node_rounds,
        received=sum(count for name, count in calls.received.items() if name not in waiting) / node_rounds,
        waiting=sum(calls.count[name] for name in waiting) / node_rounds,
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _machine(load: float) -> Machine:
    return Machine(
        cores=_cores(),
        processor=platform.machine(),
        system=platform.system(),
        python=platform.python_version(),
        versions={name: version(name) for name in PACKAGES},
        load=(round(load, 2), round(os.getloadavg()[0], 2)),
    )
