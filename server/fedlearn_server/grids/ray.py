"""Flower's Ray simulation: the same ServerApp and ClientApp, nodes in Ray's processes."""

from __future__ import annotations

import importlib.util
import logging
import threading
import warnings
from collections.abc import Iterable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlearn.errors import MissingDependency, RunInterrupted

CPUS_A_NODE = 1.0


def require_ray() -> None:
    """Raise MissingDependency with the install line if Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise MissingDependency("runtime=ray needs Ray: pip install 'fedlearn[ray]'.")


def run_ray(server_app: ServerApp, client_app: ClientApp, nodes: int) -> None:
    """Run the ServerApp over ``nodes`` Ray-hosted nodes; its exceptions pass through."""
    require_ray()
    from flwr.simulation import run_simulation  # noqa: PLC0415 - loads Ray, so only when asked for

    stopped = threading.Event()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray and the simulation engine warn about their own internals
        try:
            run_simulation(
                _until(server_app, stopped),
                client_app,
                num_supernodes=nodes,
                backend_config={
                    "client_resources": {"num_cpus": CPUS_A_NODE, "num_gpus": 0.0},
                    "init_args": {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR},
                },
            )
        except BaseException:
            stopped.set()
            raise


def _until(server_app: ServerApp, stopped: threading.Event) -> ServerApp:
    """Return the ServerApp, made to end once ``stopped`` is set.

    Flower runs it in a thread of its own. After Ctrl-C the nodes are gone, and the thread would keep the process alive
    until the deadline of its round.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        pull = grid.pull_messages

        def pull_until_stopped(message_ids: Iterable[str]) -> Iterable[Message]:
            if stopped.is_set():
                raise RunInterrupted("the runtime was stopped.")
            return pull(message_ids)

        grid.pull_messages = pull_until_stopped  # type: ignore[method-assign]
        server_app(grid, context)

    return app
