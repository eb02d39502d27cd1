"""What the runtime on a phone costs, each figure beside its limit. ::

    daemon     a process as `fedlearn-device serve` starts it, over its socket: start, memory, push, recommend
    trainer    workers as the daemon starts them: memory, local rounds; the steps alone, beside torch's in the same run
    bundles    sizes, and what opening costs
    difference the clipped contribution against the simulator's

Everything is made here, in a folder that is removed: a city of 1,000 restaurants, its sentences, keys, bundles.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedlearn.clock import system_clock
from fedlearn.errors import OutOfRange
from fedlearn.features import FEATURES
from fedlearn.lab.bench.device_figures import Figure, Machine, closure, figure, this_machine
from fedlearn.lab.bench.device_phone import Life, Phone, forbidden
from fedlearn.lab.bench.device_trainer import (
    DIFFERENCE_STEPS,
    STEPS,
    bench_bundles,
    bench_differences,
    bench_rounds,
)
from fedlearn.lab.bench.device_world import APP, DAYS, PURPOSE, World, bench_policy
from fedlearn.models import MatchModel
from fedlearn.proto import device_pb2 as pb
from fedlearn.signals import Direction, Message, Session
from fedlearn_client.hooks import Role

CLIENT: Final = "fedlearn-client"
MESSAGES: Final = "messages"
CHOICES: Final = "choices"
BATCHES: Final = (100, 500)
BLOCK: Final = 1000
"""Messages of one timing."""

_DIRECTIONS: Final = {Direction.OUTGOING: pb.DIRECTION_OUTGOING, Direction.INCOMING: pb.DIRECTION_INCOMING}
_SETTLE_S: Final = 1.0
_QUIET_S: Final = 6.0  # the daemon gives memory back after five quiet seconds


@dataclass(frozen=True, slots=True)
class DeviceSizes:
    """How much is measured.

    Args:
        restaurants: in the catalogue, 500..5000.
        phones: of the city whose sentences and sessions are used, >= 1.
        messages: pushed while the owner consents, and again without; a multiple of 2,000.
        rankings: asked for, >= 1.
        steps: of the large training, >= 1.
        difference_steps: of the comparison with the simulator, >= 1.
        repeats: of a start, a round, a cold ranking, an opened bundle, >= 1.
        patient: wait until the worker ends by itself; else end it.
    """

    restaurants: int = 1000
    phones: int = 400
    messages: int = 10_000
    rankings: int = 300
    steps: int = STEPS
    difference_steps: int = DIFFERENCE_STEPS
    repeats: int = 5
    patient: bool = True

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.rankings < 1:
            raise OutOfRange(f"bench.repeats={self.repeats}, bench.rankings={self.rankings}: both must be >= 1.")
        if self.messages < 1 or self.messages % (BLOCK * len(BATCHES)):
            raise OutOfRange(f"bench.messages={self.messages}: must be a multiple of {BLOCK * len(BATCHES)}.")


@dataclass(frozen=True, slots=True)
class DeviceBench:
    """All figures of one run.

    Args:
        sizes: how much was measured.
        machine: on what.
        seconds: of the whole run.
        figures: in the order of measurement.
    """

    sizes: DeviceSizes
    machine: Machine
    seconds: float
    figures: tuple[Figure, ...]

    @property
    def is_met(self) -> bool:
        """Whether every figure with a limit keeps it."""
        return all(one.is_met is not False for one in self.figures)


def bench_device(sizes: DeviceSizes | None = None) -> DeviceBench:
    """Measure everything, in a few minutes.

    Raises:
        OutOfRange: a size.
        TransportFailed: the daemon does not serve.
        WorkerFailed: a worker cannot be confined here, or fails.
    """
    chosen = DeviceSizes() if sizes is None else sizes
    began, load = time.monotonic(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="fl-") as name:
        folder = Path(name)
        world = World(folder / "keys", bench_policy(), chosen.restaurants, chosen.phones, float(int(system_clock())))
        figures = [
            *_bench_daemon(world, folder, chosen),
            *bench_rounds(world, chosen.repeats, chosen.steps),
            *bench_bundles(world, chosen.repeats),
            *bench_differences(world, chosen.difference_steps),
        ]
    packages = closure(CLIENT)
    figures.append(
        figure(
            "client: packages", "", [len(packages)], f"closure of {CLIENT} by its metadata, itself included", limit=16
        )
    )
    return DeviceBench(chosen, this_machine(load), round(time.monotonic() - began, 1), tuple(figures))


def _bench_daemon(world: World, folder: Path, sizes: DeviceSizes) -> list[Figure]:
    phone = Phone(folder, world.documents.root)
    _install(world, phone)
    pushed = _Push(world, sizes)
    with phone.life(APP, Role.APP) as life:
        off = pushed.figures(life, "off")
    _grant(phone)
    with phone.life(APP, Role.APP) as life:
        used = _used(world, life, sizes, pushed)
    started = _starts(phone, sizes.repeats)
    with phone.life(APP, Role.APP, imports=True) as life:
        life.call("Recommend/Get", _ranking())
        life.call("Signals/Push", pb.PushRequest(stream=MESSAGES, signals=pushed.signals(1)))
    loaded = phone.loaded()
    found = figure(
        "daemon: forbidden modules", "", [len(forbidden(loaded))],
        f"of {len(loaded)} imported over install, consent, push and ranking (-X importtime)", limit=0,
    )  # fmt: skip
    return [*started, *used, *off, found]


def _install(world: World, phone: Phone) -> None:
    """Install bundle, catalogue and status, and register the app's streams."""
    _, files = world.files(world.trained(MatchModel(len(FEATURES))))
    with phone.life("system", Role.SYSTEM, imports=True) as life:
        life.call("Runtime/Install", pb.InstallRequest(task_bundle=world.task_bundle(files)))
        life.call("Runtime/Install", pb.InstallRequest(catalogue_bundle=world.catalogue_bundle()))
        life.call("Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=world.status()))
    with phone.life(APP, Role.APP, imports=True) as life:
        for stream, kind in ((MESSAGES, pb.DATA_TYPE_MESSAGE_CONTENT), (CHOICES, pb.DATA_TYPE_CHOICE)):
            life.call("Signals/Register", pb.RegisterRequest(stream=stream, data_type=kind))


def _grant(phone: Phone) -> None:
    """The owner lets the app's own rankings use what it pushes."""
    with phone.life("settings", Role.SETTINGS, imports=True) as life:
        life.call("Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT))
        for kind in (pb.DATA_TYPE_MESSAGE_CONTENT, pb.DATA_TYPE_CHOICE):
            life.call("Consent/Set", pb.SetRequest(
                app=APP, data_type=kind, purpose=PURPOSE, recipient=APP, on=True, text_version=1
            ))  # fmt: skip


def _starts(phone: Phone, repeats: int) -> list[Figure]:
    """Start the daemon with everything installed and a full store."""
    seconds, memory = [], []
    for _ in range(repeats):
        with phone.life("system", Role.SYSTEM) as life:
            time.sleep(_SETTLE_S)
            seconds.append(life.serving_s)
            memory.append(life.mebibytes())
    protocol = "process start to the first reply of Runtime.Status; bundle, catalogue and a full store are there"
    return [
        figure("daemon: start to serving", "s", seconds, protocol, limit=1.5),
        figure("daemon: idle memory after start", "MiB", memory, "VmRSS a second after that reply", limit=60.0),
    ]


def _used(world: World, life: Life, sizes: DeviceSizes, pushed: _Push) -> list[Figure]:
    """Push, rank, and wait until the worker has gone."""
    rates = pushed.figures(life, "on")
    known = _today(world, life)
    life.seconds("Recommend/Get", [_ranking()] * 3)
    times = sorted(1e3 * one for one in life.seconds("Recommend/Get", [_ranking()] * sizes.rankings))
    cold = []
    for _ in range(sizes.repeats):
        life.kill_workers()
        cold += life.seconds("Recommend/Get", [_ranking()])
    if sizes.patient:
        life.await_no_workers()
    else:
        life.kill_workers()
    time.sleep(_QUIET_S if sizes.patient else 0.0)
    protocol = f"Recommend.Get, 10 of {world.restaurants} items, {known} known, one after the other"
    after = f"VmRSS when the worker had gone, after {sizes.messages} messages and {sizes.rankings} rankings"
    return [
        *rates,
        figure("recommend, p50", "ms", [times[len(times) // 2]], protocol),
        figure("recommend, p95", "ms", [times[int(0.95 * len(times))]], protocol, limit=10.0),
        figure("recommend, worker gone", "s", cold, "the same, with a worker to start and a catalogue to read"),
        figure("daemon: idle memory after use", "MiB", [life.mebibytes()], after, limit=60.0),
        figure("daemon: peak memory", "MiB", [life.mebibytes("VmHWM")], "VmHWM of that life"),
    ]


def _today(world: World, life: Life) -> str:
    """Push what one session of the city would leave today; return it in words."""
    session: Session = world.sessions(3)[2]
    now = time.time()
    choices = [
        pb.Signal(id=f"c{number}", time_ms=_ms(now - 3600.0 + number), choice=pb.ChoiceSignal(item=choice.item))
        for number, choice in enumerate(session.earlier)
        if not choice.item.startswith(f"{world.catalogue.domain}:")
    ]
    messages = [_signal(f"t{number}", message, now - 600.0 + number) for number, message in enumerate(session.messages)]
    life.call("Signals/Push", pb.PushRequest(stream=CHOICES, signals=choices))
    life.call("Signals/Push", pb.PushRequest(stream=MESSAGES, signals=messages))
    return f"{len(messages)} messages of today and {len(choices)} choices"


class _Push:
    """Sentences of the city, days ago, each with an id of its own.

    Args:
        world: the city.
        sizes: how many.
    """

    def __init__(self, world: World, sizes: DeviceSizes) -> None:
        self._sentences = world.sentences(sizes.messages)
        self._sizes = sizes
        self._ids = 0

    def signals(self, count: int) -> list[pb.Signal]:
        """Return the next signals."""
        now, found = time.time(), []
        for _ in range(count):
            message = self._sentences[self._ids % len(self._sentences)]
            # two to twenty-two days ago: in the store, and no part of a present ranking
            found.append(_signal(f"m{self._ids}", message, now - (2 + self._ids % 20_000 / 1000) * DAYS))
            self._ids += 1
        return found

    def figures(self, life: Life, consent: str) -> list[Figure]:
        """Push ``messages`` in blocks, the sizes of batches in turns; return a rate for each size."""
        life.seconds("Signals/Push", list(self._requests(BLOCK // 10, BLOCK // 10)))
        rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
        for _ in range(self._sizes.messages // (BLOCK * len(BATCHES))):
            for batch in BATCHES:
                requests = list(self._requests(BLOCK, batch))
                rates[batch].append(BLOCK / sum(life.seconds("Signals/Push", requests)))
        return [
            figure(
                f"push, consent {consent}, {batch} at a time", "messages/s", found,
                f"city sentences by the owner, blocks of {BLOCK}; gRPC, relay, "
                f"{'Said, encrypted store, durable' if consent == 'on' else 'left out unread'}",
                limit=2000.0, at_least=True,
            )
            for batch, found in rates.items()
        ]  # fmt: skip

    def _requests(self, count: int, batch: int) -> Iterator[bytes]:
        for _ in range(count // batch):
            yield pb.PushRequest(stream=MESSAGES, signals=self.signals(batch)).SerializeToString()


def _signal(name: str, message: Message, moment: float) -> pb.Signal:
    body = pb.MessageSignal(
        text=message.text,
        direction=_DIRECTIONS[message.direction],
        foreign_spans=[pb.Span(start=start, end=end) for start, end in message.foreign_spans],
    )
    return pb.Signal(id=name, time_ms=_ms(moment), message=body)


def _ms(moment: float) -> int:
    return round(moment * 1000.0)


def _ranking() -> bytes:
    return pb.GetRequest(purpose=PURPOSE, count=10).SerializeToString()
