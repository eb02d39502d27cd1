"""One gateway process: the door for phones and a resident node, over one state.

The node's questions open collections in the state, the door's phones fill them. Neither needs the other: without
SuperLink uploads go on, and what one gateway collected another one may answer.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Final

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import UnknownSetting
from fedlearn.ledger.signing import read_key
from fedlearn_server.flower import FleetLink, load_node_key
from fedlearn_server.gateway.cohort import GatewayHost
from fedlearn_server.gateway.documents import Documents, attested
from fedlearn_server.gateway.figures import CERTIFICATE_EXPIRES, DRAINING, GatewayMetrics
from fedlearn_server.gateway.handlers import Handlers
from fedlearn_server.gateway.intake import Intake
from fedlearn_server.gateway.limits import Buckets
from fedlearn_server.gateway.rules import AttestationVerifier, Rules
from fedlearn_server.gateway.server import Door
from fedlearn_server.gateway.settings import GatewaySettings, split_address
from fedlearn_server.gateway.state import GatewayState
from fedlearn_server.gateway.tls import CertificateFiles
from fedlearn_server.gateway.upkeep import Upkeep
from fedlearn_server.logs import log_json
from fedlearn_server.node import Node
from fedlearn_server.node_answers import Answering
from fedlearn_server.node_command import work
from fedlearn_server.node_state import NodeDirectory
from fedlearn_server.node_stop import Stop
from fedlearn_server.observe import serve

logger = logging.getLogger(__name__)

ATTESTATION: Final = "fedlearn.attestation"
"""Entry point group: name -> an ``AttestationVerifier``."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A gateway that listens.

    Args:
        state: shared by the gateways of a population.
        handlers: answer phones.
        door: where they listen.
        figures: counts.
        problem: says why the store cannot be used, or None.
    """

    state: GatewayState
    handlers: Handlers
    door: Door
    figures: GatewayMetrics
    problem: Callable[[], str | None]


@contextmanager
def opened_gateway(
    settings: GatewaySettings, *, draining: Callable[[], bool] = lambda: False, clock: Clock = system_clock
) -> Iterator[Opened]:
    """Listen for phones until the block ends. Uploads that were taken are durable, or not acknowledged, by then.

    Args:
        settings: of this gateway.
        draining: whether no new work is given.
        clock: seconds since the Unix epoch.

    Raises:
        ConfigError: a file, address or name that cannot be used.
        PrivacyError: the operator's key cannot be used.
        GatewayStoreFailed: the store cannot be opened.
    """
    with ExitStack() as opened:
        rules = rules_of(settings)
        certificate = CertificateFiles(settings.certificate, settings.key)
        figures = GatewayMetrics(unprotected=settings.unprotected_figures)
        figures.set(CERTIFICATE_EXPIRES, lambda: certificate.expires)
        figures.set(DRAINING, lambda: float(draining()))
        state = GatewayState.open(settings.store)
        opened.callback(state.disconnect)
        documents = Documents.in_files(settings.status, settings.checkpoint, settings.release)
        upkeep = Upkeep(state, documents, figures, clock)
        opened.callback(upkeep.close)
        intake = Intake(state, clock)
        opened.callback(intake.close)
        handlers = Handlers(state, intake, rules, figures, documents=documents, clock=clock, draining=draining)
        host, port = split_address("listen", settings.listen, least_port=0)
        door = Door(handlers, certificate, host, port, threads=settings.threads)
        opened.callback(door.close)
        upkeep.start()
        yield Opened(state, handlers, door, figures, upkeep.problem)


def rules_of(settings: GatewaySettings) -> Rules:
    """Return the handlers' rules; raise as ``opened_gateway``."""
    return Rules(
        populations=frozenset(settings.populations),
        issuers=settings.issuers,
        signer=read_key(settings.task_key),
        device_limit=Buckets(settings.device_rate, settings.device_burst),
        peer_limit=Buckets(settings.peer_rate, settings.peer_burst),
        verifier=verifier_named(settings.attestation) if settings.attestation else None,
        max_upload_bytes=settings.max_upload_bytes,
        max_cache_bytes=settings.max_cache_bytes,
        retry_after_s=settings.retry_after_s,
    )


def verifier_named(name: str) -> AttestationVerifier:
    """Return the installed verifier of that name; raise UnknownSetting if there is none."""
    found = {point.name: point for point in entry_points(group=ATTESTATION)}
    if name not in found:
        raise UnknownSetting(f"attestation={name!r}: no such verifier is installed; there are {sorted(found)}.")
    verifier: AttestationVerifier = found[name].load()
    return verifier


def run(settings: GatewaySettings) -> int:
    """Run a gateway until SIGTERM; return 0, or 1 if SuperLink's question in hand had to be given up.

    Raises:
        FedlearnError: something that it needs cannot be used; nothing was begun.
    """
    with ExitStack() as opened:
        key = load_node_key(settings.node_key)
        directory = NodeDirectory(settings.directory)
        opened.callback(directory.close)
        log_json("gateway")
        stop = opened.enter_context(Stop())
        gateway = opened.enter_context(opened_gateway(settings, draining=lambda: stop.wished))
        link = FleetLink(settings.superlink, settings.superlink_ca, key, gateway.figures.tap)
        opened.callback(link.close)
        task_key = read_key(settings.task_key)
        host = GatewayHost(
            gateway.state, leaving=lambda: stop.wished, attest=lambda checkpoint: attested(checkpoint, task_key)
        )
        node = Node(link, Answering(host), directory, gateway.figures, stop=stop)

        def health() -> str | None:
            return gateway.problem() or ("draining" if stop.wished else node.problem())

        server = serve(gateway.figures.registry, health, settings.metrics_port)
        opened.callback(server.close)
        directory.listen(server.port)
        logger.info("phones are served on port %d", gateway.door.port)
        status = work(node, stop)
        signal.alarm(0)  # a question that was given up leaves one behind
        gateway.door.drain(settings.drain_s)
        return status
