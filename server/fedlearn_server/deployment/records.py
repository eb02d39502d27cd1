"""What was started: a small JSON file, replaced whole, that outlives every process it names."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from fedlearn import __version__
from fedlearn.errors import DeploymentRefused
from fedlearn_server.deployment.layout import Layout, write_private

FORMAT: Final = 1
HOST: Final = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A process that was started.

    Args:
        pid: its number, which the system gives to another one some time after its end.
        created: when it was created, as psutil says: with ``pid`` it names one process.
    """

    pid: int
    created: float


NOT_STARTED: Final = ProcessRecord(0, 0.0)
"""Of a part that was never started. Pid 0 is nobody's."""


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node of this deployment.

    Args:
        name: of its directory, and at SuperLink.
        node_id: SuperLink's, or None before it was registered.
        key: its private key.
        state: its directory.
        process: of its last start; may have ended.
    """

    name: str
    node_id: int | None
    key: Path
    state: Path
    process: ProcessRecord


@dataclass(frozen=True, slots=True)
class Deployment:
    """A SuperLink of this machine with its resident nodes; what is recorded may have ended.

    Args:
        directory: where all of it lies.
        identity: random; marks its processes in their environment.
        address: ``host:port`` of SuperLink; the port is 0 until one was chosen.
        superlink: the process of its last start.
        nodes: in the order they were added.
        versions: of fedlearn and flwr that started it.
        gateways: the settings that its nodes share, where they are gateways for phones; None: they simulate phones.
    """

    directory: Path
    identity: str
    address: str
    superlink: ProcessRecord
    nodes: tuple[NodeRecord, ...]
    versions: tuple[str, str]
    gateways: Path | None = None

    @property
    def layout(self) -> Layout:
        """Where its files lie."""
        return Layout(self.directory)

    @property
    def ca(self) -> Path:
        """The certificate of its authority."""
        return self.layout.ca

    @property
    def port(self) -> int:
        """SuperLink's."""
        return int(self.address.rpartition(":")[2])

    def with_node(self, node: NodeRecord) -> Deployment:
        """Return this with a node added, or replaced by name."""
        if node.name in {known.name for known in self.nodes}:
            nodes = tuple(node if known.name == node.name else known for known in self.nodes)
        else:
            nodes = (*self.nodes, node)
        return replace(self, nodes=nodes)

    def without_node(self, name: str) -> Deployment:
        """Return this without a node."""
        return replace(self, nodes=tuple(known for known in self.nodes if known.name != name))


def installed_versions() -> tuple[str, str]:
    """Return the versions of fedlearn and flwr that run here."""
    return __version__, version("flwr")


def new_deployment(directory: Path) -> Deployment:
    """Return a deployment of which nothing was started."""
    return Deployment(directory, uuid.uuid4().hex, f"{HOST}:0", NOT_STARTED, (), installed_versions())


def new_node(deployment: Deployment, name: str) -> NodeRecord:
    """Return a node that was not registered or started; writes nothing."""
    layout = deployment.layout
    return NodeRecord(name, None, layout.node_key(name), layout.node(name), NOT_STARTED)


def opened(directory: Path) -> Deployment:
    """Return the deployment in a directory; its parts need not run.

    Raises:
        DeploymentRefused: there is none, or its record is damaged.
    """
    directory = directory.absolute()
    path = Layout(directory).record
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DeploymentRefused(f"{directory}: no deployment here; `fedlearn up` makes one.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, str(error)) from error
    try:
        return _read(directory, json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, f"{type(error).__name__} {error}") from error


def saved(deployment: Deployment) -> Deployment:
    """Write a deployment's record durably and return it."""
    plain = {
        "format": FORMAT,
        "identity": deployment.identity,
        "address": deployment.address,
        "fedlearn": deployment.versions[0],
        "flwr": deployment.versions[1],
        "superlink": _process(deployment.superlink),
        "nodes": [
            {"name": node.name, "node_id": node.node_id, "process": _process(node.process)} for node in deployment.nodes
        ],
        **({} if deployment.gateways is None else {"gateways": str(deployment.gateways)}),
    }
    write_private(deployment.layout.record, (json.dumps(plain, indent=1) + "\n").encode())
    return deployment


def _process(record: ProcessRecord) -> dict[str, float]:
    return {"pid": record.pid, "created": record.created}


def _read(directory: Path, plain: Any) -> Deployment:
    if plain["format"] != FORMAT:
        raise ValueError(f"format {plain['format']}, this version reads {FORMAT}")
    deployment = Deployment(
        directory=directory,
        identity=_text(plain["identity"]),
        address=_text(plain["address"]),
        superlink=_read_process(plain["superlink"]),
        nodes=(),
        versions=(_text(plain["fedlearn"]), _text(plain["flwr"])),
        gateways=Path(_text(plain["gateways"])) if "gateways" in plain else None,
    )
    if not 0 <= deployment.port <= 65535:
        raise ValueError(f"address {deployment.address}")
    for node in plain["nodes"]:
        node_id = node["node_id"]
        record = replace(
            new_node(deployment, _name(node["name"])),
            node_id=None if node_id is None else int(node_id),
            process=_read_process(node["process"]),
        )
        deployment = deployment.with_node(record)
    return deployment


def _read_process(plain: Any) -> ProcessRecord:
    return ProcessRecord(int(plain["pid"]), float(plain["created"]))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{value!r} where a text was expected")
    return value


def _name(value: Any) -> str:
    """A name is a directory's: it must not lead out of the deployment."""
    name = _text(value)
    if not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError(f"node name {name!r}")
    return name


def _damaged(path: Path, why: str) -> DeploymentRefused:
    return DeploymentRefused(
        f"{path}: cannot be read ({why}). Put it back from a backup (docs/operations.md), or name another directory "
        "with --dir; processes it recorded show in `ps` with that directory in their command line."
    )
