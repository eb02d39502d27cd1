"""Real daemons in a demonstration fleet: each with its store, worker, guard and uplink, and an owner who agreed."""

from __future__ import annotations

import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from fedlearn.clock import system_clock
from fedlearn.lab.city.config import CityConfig
from fedlearn.lab.device_demo.owner import Owner, make_owner
from fedlearn.lab.device_demo.phone import TIMEOUT_S, Handset, running_daemon
from fedlearn.lab.fleet_demo.paper import FleetSizes
from fedlearn.lab.fleet_demo.world import FleetWorld
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.linux.clock import LinuxClock
from fedlearn_client.network import GatewayTransport, read_ca

AGAIN_S = 5.0
TEXT, CHOICE = pb.DATA_TYPE_MESSAGE_CONTENT, pb.DATA_TYPE_CHOICE


@dataclass
class OwnedPhone:
    """A daemon and its owner.

    Args:
        handset: the daemon.
        owner: what the owner's apps know.
        outcomes: how its rounds ended.
    """

    handset: Handset
    owner: Owner = field(repr=False)
    outcomes: Counter[str] = field(default_factory=Counter)

    def prepare(self, world: FleetWorld) -> None:
        """Install what the phone maker hands over, switch sources on, and hand the apps' signals over."""
        runtime, papers = self.handset.runtime, world.papers
        runtime.Install(pb.InstallRequest(task_bundle=papers.bundle.read_bytes()), timeout=TIMEOUT_S)
        runtime.UpdateStatus(pb.UpdateStatusRequest(envelope=papers.status.read_bytes()), timeout=TIMEOUT_S)
        runtime.Install(pb.InstallRequest(catalogue_bundle=papers.catalogue.read_bytes()), timeout=TIMEOUT_S)
        self.handset.consent.SetOwner(pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT), timeout=TIMEOUT_S)
        plan = papers.opened.plan
        for app, kind in (("chat", TEXT), *((app, CHOICE) for app in sorted(self.owner.choices))):
            self.handset.switch(True, app, kind, plan.purpose, plan.recipient)
        self.handset.push("chat", TEXT, self.owner.chat)
        for app, signals in sorted(self.owner.choices.items()):
            self.handset.push(app, CHOICE, signals)

    def live(self, purpose: str, ended: threading.Event) -> None:
        """Let it train again and again, as nights would, until the fleet ends."""
        while not ended.is_set():
            try:
                reply = self.handset.runtime.TrainNow(pb.TrainNowRequest(purpose=purpose), timeout=TIMEOUT_S)
                self.outcomes[str(reply.outcome)] += 1
            except grpc.RpcError as error:
                self.outcomes[str(error)[:80]] += 1
            ended.wait(AGAIN_S)


@contextmanager
def running_daemons(world: FleetWorld, sizes: FleetSizes) -> Iterator[list[OwnedPhone]]:
    """Run the daemons of a fleet beside its swarm; they take the credentials that the swarm leaves."""
    ca, clock, ended = read_ca(world.deployment.ca), LinuxClock(), threading.Event()
    credentials = sorted(world.papers.credentials.iterdir())[sizes.devices : sizes.population]
    city = CityConfig(devices=sizes.population)
    with ExitStack() as life:
        phones = []
        for number, credential in enumerate(credentials):
            # the paths of its sockets must be short
            folder = Path(life.enter_context(tempfile.TemporaryDirectory(prefix="fl")))
            transport = GatewayTransport(world.gateways, ca, random_bytes=clock.random_bytes)
            handset = life.enter_context(running_daemon(folder, world.papers.root, transport, credential))
            phone = OwnedPhone(handset, make_owner(city, system_clock(), sizes.devices + number))
            phone.prepare(world)
            phones.append(phone)
        purpose = world.papers.opened.plan.purpose
        threads = [threading.Thread(target=phone.live, args=(purpose, ended), daemon=True) for phone in phones]
        for thread in threads:
            thread.start()
        try:
            yield phones
        finally:
            ended.set()
            for thread in threads:
                thread.join(TIMEOUT_S)
