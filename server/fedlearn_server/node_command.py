"""``fedlearn node``: one resident node in the foreground, for a service manager or ``fedlearn up`` to keep alive."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

from fedlearn.errors import FedlearnError, MissingDependency, OutOfRange, SuperLinkRefused
from fedlearn_server.flower import FleetLink, load_node_key
from fedlearn_server.hosting import SIMULATED, CohortHost, host_named
from fedlearn_server.node import Node
from fedlearn_server.node_answers import Answering, LocalData
from fedlearn_server.node_state import NodeDirectory
from fedlearn_server.node_stop import Stop
from fedlearn_server.observe import NodeMetrics, log_json, serve

DRAIN_S = 20
GOODBYE_S = 5
EXIT_AT_ONCE = 143
"""What a shell says of a process that SIGTERM ended."""

logger = logging.getLogger(__name__)

HELP = """\
Runs until SIGTERM: answers SuperLink's questions about the parts of the population it hosts. Only installed code runs.

The first SIGTERM lets it finish and send the question in hand (20 s at most), a second one ends it at once. Killed or
cut off, it may be started again at once with the same --state: nothing that counts is lost with it.

Logs are JSON lines on stderr. STATE/status.json says what it is doing and where /metrics, /healthz and /readyz are.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the node; return 0 after SIGTERM, 1 if the question in hand had to be given up, 2 for bad input."""
    given = _parser().parse_args(arguments)
    try:
        with ExitStack() as opened:
            return _run(given, opened)
    except FedlearnError as error:
        print(f"error {error.code}: {error}", file=sys.stderr)  # noqa: T201 - the command's own output
        return 2


def _run(given: argparse.Namespace, opened: ExitStack) -> int:
    _check_address(given.superlink)
    metrics = NodeMetrics(unprotected=given.cohort == SIMULATED)
    link = _link(given, metrics)
    opened.callback(link.close)
    host = _host(given)
    directory = NodeDirectory(given.state)
    opened.callback(directory.close)
    stop = opened.enter_context(Stop())
    node = Node(link, Answering(host), directory, metrics, stop=stop)
    server = serve(metrics.registry, node.problem, given.metrics_port)
    opened.callback(server.close)
    log_json("node")
    directory.listen(server.port)
    return work(node, stop)


def _link(given: argparse.Namespace, metrics: NodeMetrics) -> FleetLink:
    try:
        key = load_node_key(given.key)
    except SuperLinkRefused as error:
        raise SuperLinkRefused(f"--key {error}") from error
    try:
        return FleetLink(given.superlink, given.ca, key, metrics.tap)
    except SuperLinkRefused as error:
        raise SuperLinkRefused(f"--ca {error}") from error


def work(node: Node, stop: Stop) -> int:
    """Run a node in the main thread until SIGTERM or SIGINT; return 0, or 1 if the question in hand was given up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopping(stop))
    signal.signal(signal.SIGALRM, _give_up)
    try:
        node.run()
        signal.alarm(0)
    except _GivenUpError:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(GOODBYE_S)
        logger.warning("the question in hand was given up after %d s", DRAIN_S)
        node.leave()
        return 1
    return 0


class _GivenUpError(BaseException):
    """The question in hand takes too long; no handler of ordinary exceptions may stop it."""


def _stopping(stop: Stop) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        del number, frame
        if stop.wished:
            os._exit(EXIT_AT_ONCE)
        signal.alarm(DRAIN_S)
        stop.wish()

    return handler


def _give_up(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _GivenUpError


def _host(given: argparse.Namespace) -> CohortHost:
    if given.data_root is not None and not given.data_root.is_dir():
        raise OutOfRange(
            f"--data-root {given.data_root}: not a directory; name the one that holds this machine's data."
        )
    try:
        host = host_named(given.cohort)
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"--cohort {given.cohort}: needs the package {error.name!r}; a simulated population lives in the lab: "
            "pip install 'fedlearn[lab]'."
        ) from error
    return host if given.data_root is None else LocalData(host, given.data_root.resolve())


def _check_address(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536) or "/" in address:
        raise OutOfRange(f"--superlink {address}: must be HOST:PORT, e.g. superlink.example.org:9092.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fedlearn node",
        description="A resident node of a SuperLink, in the foreground.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--superlink", required=True, metavar="HOST:PORT", help="where its Fleet API is, over TLS")
    parser.add_argument(
        "--ca", required=True, type=Path, metavar="FILE", help="PEM of the authority of its certificate"
    )
    parser.add_argument("--key", required=True, type=Path, metavar="FILE", help="this node's private key, PEM")
    parser.add_argument("--state", required=True, type=Path, metavar="DIR", help="what this node keeps; one per node")
    parser.add_argument(
        "--cohort", default=SIMULATED, metavar="NAME", help="what it hosts, by installed name (default: %(default)s)"
    )
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="where this machine has the data, instead of the run's data.root"
    )
    parser.add_argument(
        "--metrics-port", type=int, default=0, metavar="N", help="on 127.0.0.1 (default: a free one, see status.json)"
    )
    return parser
