"""``fedlearn up``, ``fedlearn status`` and ``fedlearn down``: a SuperLink with resident nodes on this machine."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedlearn_server.deployment.down import down
from fedlearn_server.deployment.layout import default_directory
from fedlearn_server.deployment.nodes import ONLINE, Say
from fedlearn_server.deployment.records import Deployment, opened
from fedlearn_server.deployment.status import DeploymentStatus, status
from fedlearn_server.deployment.up import FIRST_NODES, up

EXIT_INTERRUPTED: Final = 130

UP = """\
Starts what is not running and leaves alone what is: after an accident, or Ctrl-C, run it again. At first it makes an
authority, a certificate for SuperLink and a key for each node. SuperLink listens on this machine only.
"""


def up_command(arguments: Sequence[str]) -> int:
    """Start a SuperLink with TLS and resident nodes; 0 once all are online, 130 after Ctrl-C."""
    parser = _parser("up", "Start a SuperLink with TLS and resident nodes on this machine.", UP)
    parser.add_argument(
        "--nodes", type=int, metavar="N", help=f"how many (default: as many as there are, {FIRST_NODES} at first)"
    )
    parser.add_argument(
        "--port", type=_port, metavar="P", help="of SuperLink (default: the last one, a free one at first)"
    )
    parser.add_argument("--host", type=_host, metavar="NAME", help="also make the certificate for this name or address")
    parser.add_argument(
        "--gateways",
        type=lambda text: Path(text).absolute(),
        metavar="FILE",
        help="let the nodes be gateways for phones, with these settings (docs/gateway.md)",
    )
    parser.add_argument(
        "--renew-certificates", action="store_true", help="give SuperLink a new certificate and start it with that"
    )
    parser.add_argument(
        "--new-authority", action="store_true", help="likewise, under a new authority: nodes elsewhere need its ca.crt"
    )
    given = parser.parse_args(arguments)
    console = Console()
    try:
        deployment = _started(given, console)
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "interrupted; what was started keeps running: `fedlearn up` goes on, `fedlearn down` stops it",
            highlight=False,
            soft_wrap=True,
        )
        return EXIT_INTERRUPTED
    _tell_up(console, deployment)
    return 0


def _started(given: argparse.Namespace, console: Console) -> Deployment:
    with _saying(console) as say:
        if given.renew_certificates or given.new_authority:
            _renew(given.dir, say, new_ca=given.new_authority)
        if given.gateways is not None:
            from fedlearn_server.gateway.beside import read_template  # noqa: PLC0415 - gRPC, for those who need it

            read_template(given.gateways)
        return up(given.dir, given.nodes, port=given.port, host=given.host, say=say, gateways=given.gateways)


def status_command(arguments: Sequence[str]) -> int:
    """Show what is running; 0 if all is well, 1 if something has to be done."""
    parser = _parser("status", "What of a deployment is running, and which runs.")
    parser.add_argument("--json", action="store_true", help="for a machine to read")
    given = parser.parse_args(arguments)
    found = status(opened(given.dir))
    console = Console()
    if given.json:
        plain = {"well": found.is_well, **asdict(found)}
        # ids of runs and nodes have 64 bits, more than a reader in JavaScript keeps
        console.print_json(json.dumps(_with_text_ids(plain)))
    else:
        _tell_status(console, found)
    return 0 if found.is_well else 1


def down_command(arguments: Sequence[str]) -> int:
    """Stop SuperLink and its nodes; 0 once nothing is running."""
    parser = _parser("down", "Stop SuperLink and its nodes. Keys, certificates and the database stay.")
    parser.add_argument("--stop-runs", action="store_true", help="stop runs that are going, rather than refuse")
    given = parser.parse_args(arguments)
    console = Console()
    with _saying(console) as say:
        down(opened(given.dir), stop_runs=given.stop_runs, say=say)
    console.print(f"nothing of {escape(str(given.dir))} is running", highlight=False)
    return 0


def _parser(name: str, description: str, epilog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"fedlearn {name}", description=description, epilog=epilog)
    parser.add_argument(
        "--dir",
        type=lambda text: Path(text).absolute(),
        default=default_directory(),
        help="of the deployment (default: %(default)s)",
    )
    return parser


def _port(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 65535):
        raise argparse.ArgumentTypeError("must be a whole number in 1..65535")
    return int(text)


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9*][A-Za-z0-9.-]*|[0-9A-Fa-f:.]+", text):
        raise argparse.ArgumentTypeError("must be a host name or an address, without a port")
    return text


@contextmanager
def _saying(console: Console) -> Iterator[Say]:
    """Show what is going on: in a line that changes on a terminal, else a line for each news."""
    if not console.is_terminal:
        yield _lines(console)
        return
    with console.status("") as line:
        yield lambda words: line.update(escape(words))


def _lines(console: Console) -> Callable[[str], None]:
    said: list[str] = []

    def say(words: str) -> None:
        if said[-1:] != [words]:
            said[:] = [words]
            console.print(escape(words), highlight=False)

    return say


def _renew(directory: Path, say: Say, *, new_ca: bool) -> None:
    from fedlearn_server.deployment.rotation import renew_certificates  # noqa: PLC0415  # rarely needed

    say("renewing certificates")
    renew_certificates(directory, new_ca=new_ca, say=say)


def _tell_up(console: Console, deployment: Deployment) -> None:
    count = len(deployment.nodes)
    console.print(
        f"SuperLink at {deployment.address} with {count} node{'' if count == 1 else 's'} online, in "
        f"{escape(str(deployment.directory))}",
        highlight=False,
        soft_wrap=True,
    )
    first = "fedlearn train runtime=superlink" if count else "fedlearn up --nodes 3, or nodes elsewhere"
    console.print(f"next: {first}; fedlearn status; fedlearn down", highlight=False)


def _tell_status(console: Console, found: DeploymentStatus) -> None:
    link = found.superlink
    table = Table("", "id", "state", "since", "answered", "", box=SIMPLE_HEAD, show_edge=False)
    pid = f"pid {link.pid}" if link.pid else ""
    table.add_row("SuperLink", pid, _colored(link.state), _moment(link.since), "", f"{link.address}, flwr {link.flwr}")
    for node in found.nodes:
        note = f"metrics port {node.metrics_port}" if node.metrics_port else ""
        node_id = "" if node.node_id is None else str(node.node_id)
        table.add_row(node.name, node_id, _colored(node.state), _moment(node.since), str(node.answered), note)
    for other in found.elsewhere:
        table.add_row(escape(other.name), str(other.node_id), _colored(other.state), "", "", "elsewhere")
    for run in found.runs:
        words = " ".join(filter(None, (run.status, run.sub_status)))
        table.add_row("run", str(run.run_id), words, _moment(run.submitted), "", escape(run.details))
    days = "not usable" if found.certificate_days is None else f"{found.certificate_days} days left"
    # a file or a pipe has no width to fit into
    wide = Console(width=None if console.is_terminal else 160)
    wide.print(table)
    console.print(
        f"\n{escape(found.directory)}; certificate: {days}; disk: {found.disk_free_bytes / 2**30:.1f} GiB free",
        highlight=False,
        soft_wrap=True,
    )
    for problem in found.problems:
        console.print(f"[yellow]![/] {escape(problem)}", highlight=False, soft_wrap=True)


def _moment(since: str) -> str:
    """Return an ISO time as the local time, without its date where that is today's."""
    if not since:
        return ""
    moment = datetime.fromisoformat(since).astimezone()
    today = moment.date() == datetime.now(UTC).astimezone().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M")


def _colored(state: str) -> str:
    return f"[green]{state}[/]" if state == ONLINE else f"[yellow]{escape(state)}[/]"


def _with_text_ids(value: object) -> object:
    if isinstance(value, dict):
        return {
            key: str(inner) if key in {"node_id", "run_id"} and inner is not None else _with_text_ids(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [_with_text_ids(inner) for inner in value]
    return value
