"""New keys and certificates for a deployment that goes on: nodes added, revoked, given another key; TLS renewed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedlearn.errors import DeploymentRefused, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.keys import public_pem, write_node_key
from fedlearn_server.deployment.layout import locked, make_private
from fedlearn_server.deployment.nodes import Say, forget, silent
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.records import NOT_STARTED, Deployment, new_node, opened, saved
from fedlearn_server.deployment.renewal import renew_certificates
from fedlearn_server.deployment.up import in_words, up

if TYPE_CHECKING:
    from fedlearn_server.flower import ControlLink, FlowerNode

__all__ = ["add_node", "add_remote", "read_public_key", "renew_certificates", "revoke_node", "rotate_node"]

NEXT_KEY: Final = "key.pem.next"
DRAIN_S: Final = 28.0
REVOKED_S: Final = 3.0
MOST_NAME: Final = 64
NO_NODE: Final = "no node of this name or id; `fedlearn nodes list` shows them."


def add_node(directory: Path, name: str, *, say: Say = silent) -> Deployment:
    """Make a node with a key of its own on this machine, register and start it; a run uses it from its next round.

    Raises:
        DeploymentRefused: the name is taken or not usable, or the node does not come online.
        SuperLinkUnreachable: SuperLink does not run.
    """
    with _held(directory) as (deployment, control):
        _require_usable(name)
        node = new_node(deployment, name)
        # there is a key, perhaps registered, where an earlier attempt was cut short
        begun = public_pem(node.key) if node.key.exists() else b""
        _require_free(name, deployment, [known for known in control.nodes() if known.public_key != begun])
        if not begun:
            make_private(node.state.parent)
            make_private(node.state)
            write_node_key(node.key)
        node_id = _registered_id(control, public_pem(node.key), name)
        saved(deployment.with_node(replace(node, node_id=node_id)))
    return up(directory, say=say)  # starts it, and waits until it is online


def add_remote(directory: Path, name: str, public_key: Path, *, beside: bool = False) -> int:
    """Let the holder of a key that was made elsewhere be a node, and return its id.

    Args:
        directory: of the deployment.
        name: for people.
        public_key: PEM.
        beside: another key of this name may be registered: the node is about to change to this one.

    Raises:
        DeploymentRefused: the file holds no public elliptic-curve key, or the name or key is taken.
        SuperLinkUnreachable: SuperLink does not run.
    """
    pem = read_public_key(public_key)
    with _held(directory) as (deployment, control):
        if beside:
            _require_remote(name, deployment, control.nodes())
        else:
            _require_usable(name)
            _require_free(name, deployment, control.nodes())
        return _registered_id(control, pem, name)


def revoke_node(directory: Path, name: str, *, say: Say = silent) -> tuple[int, ...]:
    """Let a node be one no longer: its key is refused at once and for ever. Return the ids that were revoked.

    Args:
        directory: of the deployment.
        name: a node's name, or the id of one registration.
        say: told what is going on.

    Raises:
        DeploymentRefused: there is no such node.
        SuperLinkUnreachable: SuperLink does not run.
    """
    with _held(directory) as (deployment, control):
        found = [node for node in control.nodes() if name in {node.name, str(node.node_id)}]
        for node in found:
            control.unregister_node(node.node_id)
        local = next((node for node in deployment.nodes if node.name == name or str(node.node_id) == name), None)
        if local is not None:
            say(f"stopping {local.name}")
            processes.stop([local.process], REVOKED_S)
            saved(forget(control, deployment, replace(local, node_id=None)))
        if not found and local is None:
            raise DeploymentRefused(f"{name}: {NO_NODE}")
        return tuple(node.node_id for node in found)


def rotate_node(directory: Path, name: str, *, say: Say = silent) -> Deployment:
    """Give a node of this machine a new key; a run goes on, and asks others for what this node was asked.

    Safe to repeat after an accident: until the new key is in place, the next call goes on with it.

    Raises:
        DeploymentRefused: there is no such node here, or it does not come online.
        SuperLinkUnreachable: SuperLink does not run.
    """
    with _held(directory) as (deployment, control):
        node = next((node for node in deployment.nodes if node.name == name), None)
        if node is None:
            if not any(name in {known.name, str(known.node_id)} for known in control.nodes()):
                raise DeploymentRefused(f"{name}: {NO_NODE}")
            raise DeploymentRefused(
                f"{name}: not a node of this machine. Make a key where it runs (`fedlearn nodes keygen FILE`), then "
                f"`fedlearn nodes rotate {name} --key FILE.pub` here."
            )
        next_key = node.state / NEXT_KEY
        if not next_key.exists():
            write_node_key(next_key)
        node_id = _registered_id(control, public_pem(next_key), name)
        say(f"stopping {name}: it finishes what it is doing")
        processes.stop([node.process], DRAIN_S)
        for old in control.nodes():
            if old.name == name and old.node_id != node_id:
                control.unregister_node(old.node_id)
        next_key.replace(node.key)
        (node.state / "node.json").unlink(missing_ok=True)  # the old id, which the new key has no part in
        saved(deployment.with_node(replace(node, node_id=node_id, process=NOT_STARTED)))
    return up(directory, say=say)


def read_public_key(path: Path) -> bytes:
    """Return a node's public key in the form that SuperLink compares.

    Raises:
        DeploymentRefused: the file holds none, or holds a private key.
    """
    try:
        data = path.read_bytes()
        if b"PRIVATE" in data:
            raise DeploymentRefused(
                f"--key {path}: a private key, which stays where the node runs; give its .pub file."
            )
        key = load_pem_public_key(data)
    except (OSError, ValueError) as error:
        raise DeploymentRefused(f"--key {path}: not a public key in PEM ({error}).") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise DeploymentRefused(f"--key {path}: not an elliptic-curve key; `fedlearn nodes keygen FILE` makes one.")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@contextmanager
def _held(directory: Path) -> Iterator[tuple[Deployment, ControlLink]]:
    """Hold a deployment whose SuperLink runs."""
    with in_words(directory), locked(opened(directory).layout):
        deployment = opened(directory)
        if not processes.is_running(deployment.superlink):
            raise SuperLinkUnreachable(f"SuperLink of {directory} does not run; `fedlearn up` starts it.")
        control = open_control(deployment)
        try:
            yield deployment, control
        finally:
            control.close()


def _registered_id(control: ControlLink, pem: bytes, name: str) -> int:
    """Return the id of a key, which is registered if need be."""
    known = next((node for node in control.nodes() if node.public_key == pem), None)
    if known is not None:
        if known.name != name:
            raise DeploymentRefused(f"{name}: this key is the one of {known.name}; a node needs a key of its own.")
        return known.node_id
    try:
        return control.register_node(pem, name)
    except SuperLinkRefused as error:
        raise DeploymentRefused(
            f"{name}: SuperLink does not take this key ({error}). One that was revoked stays so; "
            "make a new one where the node runs: `fedlearn nodes keygen FILE`."
        ) from error


def _require_usable(name: str) -> None:
    """A name is a directory's, and must not look like an id."""
    letters = name.replace("-", "").replace("_", "")
    if not (name.isascii() and letters.isalnum() and len(name) <= MOST_NAME) or name.isdigit():
        raise DeploymentRefused(f"{name!r}: a node's name has letters, digits, '-' and '_', and is no number.")


def _require_free(name: str, deployment: Deployment, known: Sequence[FlowerNode]) -> None:
    if name in {node.name for node in deployment.nodes} | {node.name for node in known}:
        raise DeploymentRefused(f"{name}: there is a node of this name; choose another, or revoke that one first.")


def _require_remote(name: str, deployment: Deployment, known: Sequence[FlowerNode]) -> None:
    if name in {node.name for node in deployment.nodes}:
        raise DeploymentRefused(f"{name}: runs on this machine, which makes its key; rotate it without --key.")
    if name not in {node.name for node in known}:
        raise DeploymentRefused(f"{name}: no node of this name; `fedlearn nodes add {name} --key FILE` registers one.")
