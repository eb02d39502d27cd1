"""Stop a deployment: nodes first, which finish what they are doing, then SuperLink; nothing keeps running."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fedlearn.errors import DeploymentRefused, SuperLinkRefused, SuperLinkUnreachable
from fedlearn_server.deployment import processes
from fedlearn_server.deployment.layout import locked
from fedlearn_server.deployment.nodes import Say, silent
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.records import NOT_STARTED, Deployment, opened, saved
from fedlearn_server.deployment.superlink import SERVER_APP_STOP_S, stop_superlink
from fedlearn_server.deployment.up import in_words

if TYPE_CHECKING:
    from fedlearn_server.flower import ControlLink, FlowerRun

DRAIN_S: Final = 28.0
"""A node gives up its question after 20 s and says good-bye for at most 5."""
RUN_STOP_S: Final = 15.0
_POLL_S: Final = 0.1


def down(deployment: Deployment, *, stop_runs: bool = False, say: Say = silent) -> Deployment:
    """Stop every process of a deployment; certificates, keys, registrations and the database stay.

    Args:
        deployment: some parts of it may have ended.
        stop_runs: stop runs that are going, rather than refuse.
        say: told what is going on.

    Returns:
        The deployment with nothing running.

    Raises:
        DeploymentRefused: a run is going, SuperLink cannot be asked whether one is, or a process cannot be ended.
    """
    with in_words(deployment.directory), locked(deployment.layout):
        found = opened(deployment.directory)
        _settle_runs(found, stop_runs, say)
        running = sum(processes.is_running(node.process) for node in found.nodes)
        if running:
            say(f"stopping {running} node{'' if running == 1 else 's'}")
        killed = processes.stop([node.process for node in found.nodes], DRAIN_S)
        for node in found.nodes:
            if node.process in killed:
                say(f"{node.name} did not drain within {DRAIN_S:.0f} s and was killed; its question is asked again")
        if processes.is_running(found.superlink):
            say("stopping SuperLink")
        stop_superlink(found.superlink)
        processes.stop(processes.marked(found.identity), SERVER_APP_STOP_S)
        nodes = tuple(replace(node, process=NOT_STARTED) for node in found.nodes)
        return saved(replace(found, superlink=NOT_STARTED, nodes=nodes))


def _settle_runs(deployment: Deployment, stop_runs: bool, say: Say) -> None:
    if not processes.is_running(deployment.superlink):
        return
    try:
        control = open_control(deployment)
        try:
            going = _going(control)
            if going and not stop_runs:
                raise DeploymentRefused(
                    f"{_listed(going)}; wait for the end, or `fedlearn down --stop-runs`: what was trained and charged "
                    "is kept, and `fedlearn resume` goes on with it."
                )
            _stop(control, going, say)
        finally:
            control.close()
    except (SuperLinkUnreachable, SuperLinkRefused) as error:
        if not stop_runs:
            raise DeploymentRefused(
                f"whether a run is going cannot be asked: {error} `fedlearn down --stop-runs` stops regardless."
            ) from error
        say("SuperLink does not answer; what it runs is stopped with it")


def _stop(control: ControlLink, runs: Sequence[FlowerRun], say: Say) -> None:
    for run in runs:
        say(f"stopping run {run.run_id}")
        control.stop_run(run.run_id)
    until = time.monotonic() + RUN_STOP_S
    while _going(control):
        if time.monotonic() > until:
            say(f"not over after {RUN_STOP_S:.0f} s; stopped with SuperLink")
            return
        time.sleep(_POLL_S)


def _going(control: ControlLink) -> tuple[FlowerRun, ...]:
    return tuple(run for run in control.runs() if not run.is_over)


def _listed(runs: Sequence[FlowerRun]) -> str:
    words = ", ".join(f"{run.run_id} ({run.status})" for run in runs)
    return f"a run is going: {words}" if len(runs) == 1 else f"{len(runs)} runs are going: {words}"
