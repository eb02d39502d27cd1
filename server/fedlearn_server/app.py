"""What Flower runs: one ServerApp and one ClientApp, the same on every runtime.

``app`` and ``client_app`` are what a submitted bundle names. The bundle holds no code: both are installed, and what
they do is decided by the order in the one run-config key ``fedlearn``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedlearn.errors import MissingDependency
from fedlearn_server.flower import failure_reply, guard_replies, limit_retries

if TYPE_CHECKING:
    from fedlearn_server.hosting import CohortHost
    from fedlearn_server.job import TrainingJob
    from fedlearn_server.round import Observer

# Torch and what needs it are imported late: a ServerApp takes the lock of its training first, so that whoever follows
# it knows within a second that it lives.
# ruff: noqa: PLC0415

ORDER = "fedlearn"
"""The run-config key: canonical JSON of what is to be done."""
ORDERS = "fedlearn.orders"
"""Entry point group: ``training`` -> (grid, order) -> None, which does it."""
SILENCE_S = 4.0
"""Seconds of a silent SuperLink after which a ServerApp ends; its run goes on in another one."""


def make_server_app(job: TrainingJob, observe: Observer) -> ServerApp:
    """Return the ServerApp that runs ``job`` over whatever Grid a runtime hands it."""
    from fedlearn_server.training import run_training

    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        run_training(job, grid, observe)

    return made


def make_client_app(host: Callable[[], CohortHost]) -> ClientApp:
    """Return the stock Flower ClientApp over a cohort host.

    Args:
        host: finds the host when the first message is there, so that the app is small until then.
    """
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        from fedlearn_server.hosting import answer

        del context
        try:
            return Message(answer(host(), message.content), reply_to=message)
        except Exception as problem:  # noqa: BLE001 - Flower's own error reply quotes it, and so phones' data
            return failure_reply(message, problem)

    return made


def _simulated() -> CohortHost:
    from fedlearn_server.hosting import SIMULATED, host_named

    return host_named(SIMULATED)


app = ServerApp()
client_app = make_client_app(_simulated)


@app.main()
def _serve(grid: Grid, context: Context) -> None:
    found = {point.name: point for point in entry_points(group=ORDERS)}
    if "training" not in found:
        raise MissingDependency("this ServerApp's machine needs the lab: pip install 'fedlearn[lab]'.")
    limit_retries(grid, SILENCE_S)
    guard_replies(grid)
    found["training"].load()(grid, str(context.run_config[ORDER]))
