"""Makes a swarm from what a fleet has: its bundle, its gateways, credentials, and data to train on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from fedlearn.clock import system_clock
from fedlearn.device.bundle import Bundle
from fedlearn.engine.population import MatchPopulation
from fedlearn.errors import OutOfRange
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.prepare import prepare, splits
from fedlearn.lab.registry import build_model
from fedlearn.lab.shards import make_cohort
from fedlearn.lab.swarm.drive import Pace, Swarm, SwarmFigures
from fedlearn.lab.swarm.habits import Habits
from fedlearn.lab.swarm.link import CallFigures, GatewayLinks
from fedlearn.lab.swarm.phone import Fleet, SwarmPhone
from fedlearn.lab.swarm.updates import LearnedUpdates, Updates
from fedlearn_server.gateway.credentials_command import SUFFIX as CREDENTIAL_SUFFIX


@dataclass(frozen=True, slots=True)
class SwarmSettings:
    """A swarm.

    Args:
        gateways: ``host:port`` of each.
        ca: PEM of the authority of their certificates.
        bundle: that the phones have.
        task_key: the operator's public key, hexadecimal.
        credentials: one for each phone.
        habits: what they do wrong.
        pace: how often they ask.
        seconds: how long; None: until SIGTERM or Ctrl-C.
    """

    gateways: Sequence[str]
    ca: bytes = field(repr=False)
    bundle: Bundle = field(repr=False)
    task_key: str
    credentials: Sequence[bytes] = field(repr=False)
    habits: Habits
    pace: Pace
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SwarmResult:
    """What came out."""

    figures: SwarmFigures
    calls: CallFigures
    seconds: float


def task_key_of(bundle: Bundle) -> str:
    """Return the operator's key that the bundle's policy names."""
    for recipient in bundle.verified.policy.recipients:
        if recipient.id == bundle.plan.recipient:
            return recipient.task_key
    raise OutOfRange(f"policy.recipients: none is {bundle.plan.recipient!r}.")


def learned_updates(config: ExperimentConfig, bundle: Bundle, devices: int) -> LearnedUpdates:
    """Return phones that hold the data of an experiment: its first ``devices``.

    Raises:
        OutOfRange: it has fewer.
    """
    torch.set_num_threads(1)
    prepared = prepare(config.data)
    split = splits(prepared, config.data)[0]
    if devices > len(split.devices):
        raise OutOfRange(f"--devices {devices}: the data has {len(split.devices)}; use more data.devices.")
    cohort = make_cohort(config, prepared, split, range(devices))
    population = cohort.population
    if not isinstance(population, MatchPopulation):
        raise OutOfRange(f"model.name={config.model.name}: a swarm trains models on match features.")
    width = prepared.table(config.features.sources).width
    return LearnedUpdates(population, build_model(config.model, width), bundle.plan)


def run_swarm(settings: SwarmSettings, updates: Updates) -> SwarmResult:
    """Run a swarm until its time is over, or SIGTERM or Ctrl-C ends it."""
    return asyncio.run(_run(settings, updates))


async def _run(settings: SwarmSettings, updates: Updates) -> SwarmResult:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.seconds is not None:
        loop.call_later(settings.seconds, stop.set)
    plan = settings.bundle.plan
    fleet = Fleet(plan.population, plan.purpose, bytes.fromhex(settings.bundle.digest), settings.task_key, system_clock)
    phones = [SwarmPhone(position, credential, fleet) for position, credential in enumerate(settings.credentials)]
    links = GatewayLinks(settings.gateways, settings.ca)
    swarm = Swarm(phones, links, updates, settings.habits, settings.pace)
    started = loop.time()
    try:
        await swarm.run(stop)
    finally:
        await links.close()
    return SwarmResult(swarm.figures, links.figures, loop.time() - started)


def read_credentials(directory: Path, devices: int) -> list[bytes]:
    """Return the first credentials of a folder that ``fedlearn credentials issue`` filled.

    Raises:
        OutOfRange: it cannot be read, or holds fewer.
    """
    try:
        found = [path.read_bytes() for path in sorted(directory.glob(f"*{CREDENTIAL_SUFFIX}"))[:devices]]
    except OSError as error:
        raise OutOfRange(f"--credentials {directory}: cannot be read ({error.strerror}).") from error
    if len(found) < devices:
        raise OutOfRange(f"--credentials {directory}: holds {len(found)}, --devices asks for {devices}; issue more.")
    return found


def spread(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return median, 99th percentile and largest; None of nothing."""
    if not values:
        return None
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99), max(values)
