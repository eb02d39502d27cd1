"""Flower's Ray simulation: the same ServerApp and ClientApp, nodes in Ray's processes."""

from __future__ import annotations

import importlib.util
import logging
import warnings

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedlearn.errors import MissingDependency

CPUS_A_NODE = 1.0


def require_ray() -> None:
    """Raise MissingDependency with the install line if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependency("runtime=ray needs Ray: pip install 'fedlearn[ray]'.")


def run_ray(server_app: ServerApp, client_app: ClientApp, nodes: int) -> None:
    """Run the ServerApp over ``nodes`` Ray-hosted nodes; its exceptions pass through."""
    require_ray()
    from flwr.simulation import run_simulation  # noqa: PLC0415 - loads Ray, so only when asked for

    logging.getLogger("flwr").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray and the simulation engine warn about their own internals
        run_simulation(
            server_app,
            client_app,
            num_supernodes=nodes,
            backend_config={
                "client_resources": {"num_cpus": CPUS_A_NODE, "num_gpus": 0.0},
                "init_args": {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR},
            },
        )
