"""``runtime=superlink``: a training is submitted to a SuperLink, and followed until its model is there."""

from __future__ import annotations

import shlex
from contextlib import closing

from fedlearn.errors import RunError
from fedlearn.lab.study import Arm, Observe, Say, Study
from fedlearn.lab.superlink.follow import Follower
from fedlearn.lab.superlink.line import Line
from fedlearn.lab.superlink.order import make_order
from fedlearn.lab.training import Training
from fedlearn.models.base import Parameters
from fedlearn_server.checkpoint import load_model


def run_on_superlink(study: Study, arm: Arm, training: Training, observe: Observe, say: Say) -> Parameters:
    """Have one training done by a ServerApp, or follow the one that does it, and return its model.

    The ServerApp may be killed, and SuperLink, and this process: a new one of each goes on where the last round ended.

    Args:
        study: what the training is part of; its run directory is claimed.
        arm: its row.
        training: the training.
        observe: called once with each round's record.
        say: told what happens meanwhile.

    Raises:
        SuperLinkUnreachable: no answer for ``runtime.deadline_s``; the run can be resumed.
        SuperLinkRefused: SuperLink does not take the run.
        RunInterrupted: it was stopped at SuperLink.
        FedlearnError: what the ServerApp raised.
    """
    runtime = training.config.runtime
    advice = f"Nothing is lost. Go on with: {shlex.join(['fedlearn', 'resume', str(study.directory)])}"
    with closing(Line(runtime)) as line:
        follower = Follower(make_order(study, arm, training), line, observe, say, runtime.deadline_s, advice)
        try:
            follower.finish()
        except OSError as error:
            raise RunError(f"{training.directory}: {error.strerror or error}. {advice}") from error
    return load_model(training.directory)
