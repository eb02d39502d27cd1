"""The operator's token of a deployment: who holds the file may start runs and register nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from fedlearn.errors import DeploymentRefused, SuperLinkRefused
from fedlearn.rng import os_bytes
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.layout import write_private
from fedlearn_server.deployment.records import Deployment

if TYPE_CHECKING:
    from fedlearn_server.flower import ControlLink

TOKEN_BYTES: Final = 32


def ensure_token(deployment: Deployment) -> None:
    """Make the operator's token if there is none."""
    path = deployment.layout.operator_token
    if not path.exists():
        write_private(path, os_bytes(TOKEN_BYTES).hex().encode() + b"\n")


def open_control(deployment: Deployment) -> ControlLink:
    """Return the operator's connection to a deployment's SuperLink.

    Raises:
        SuperLinkRefused: the token or the authority's certificate cannot be read.
    """
    from fedlearn_server.flower import ControlLink, read_operator_token  # noqa: PLC0415  # seconds

    return ControlLink(deployment.address, deployment.ca, read_operator_token(deployment.layout.operator_token))


def require_guarded(deployment: Deployment) -> None:
    """Refuse a SuperLink that lists its nodes to somebody without the token, or listens at a second port.

    Raises:
        DeploymentRefused: whoever reaches one of its ports may start code.
        SuperLinkUnreachable: it does not answer any more.
    """
    from fedlearn_server.flower import ControlLink  # noqa: PLC0415  # seconds

    others = processes.listens_at(deployment.superlink) - {deployment.address}
    if others:
        raise DeploymentRefused(
            f"SuperLink listens at {', '.join(sorted(others))} too, where nobody is asked for the operator's token: "
            "something beside fedlearn set it up so. `fedlearn down --stop-runs`, then `fedlearn up`."
        )

    stranger = ControlLink(deployment.address, deployment.ca)
    try:
        stranger.nodes()
    except SuperLinkRefused:
        return
    finally:
        stranger.close()
    raise DeploymentRefused(
        f"SuperLink at {deployment.address} obeys whoever reaches its port: it was not started by this version. "
        "`fedlearn down --stop-runs`, then `fedlearn up`."
    )
