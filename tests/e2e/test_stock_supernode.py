"""Flower's own ``flower-supernode`` and our ClientApp adapter answer as our node does, only slowly.

A stock SuperNode fetches the bundle, and starts a Python process for each message. ``tests/long`` trains over two.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedlearn.lab.shards import open_simulated
from fedlearn.lab.study import prepare_study
from fedlearn.lab.training import make_job
from fedlearn.privacy.sampling import RoundKey
from fedlearn.wire import decode_reply, encode_task
from fedlearn_server.round import TrainingState, make_task

if TYPE_CHECKING:
    from small_city import SmallCity
    from superlink_world import SuperLinkWorld


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worlds = load("superlink_world")
PATIENCE_S = 180.0


@pytest.fixture
def stock(superlink: SuperLinkWorld) -> Iterator[None]:
    """A stock SuperNode, the only node online."""
    member = superlink.register()
    process = superlink.spawn(
        [
            *(str(worlds.BIN / "flower-supernode"), "--root-certificates", str(superlink.ca)),
            *("--auth-supernode-private-key", str(member.key_file), "--superlink", superlink.address),
            *("--port", str(worlds.free_port())),
        ],
        "supernode.log",
    )

    def online() -> bool:
        assert process.poll() is None, (superlink.directory / "supernode.log").read_text()
        return superlink.status_of(member) == "online"

    worlds.wait_until(online, "the stock SuperNode")
    yield
    family = [process, *process.children(recursive=True)]
    for one in family:
        one.kill()
    worlds.psutil.wait_procs(family, timeout=10)
    superlink.control.unregister_node(member.node_id)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_a_stock_supernode_answers_as_our_node_does(
    small_city: SmallCity, superlink: SuperLinkWorld, stock: None, tmp_path: Path
) -> None:
    config = small_city.config(tmp_path / "run", "privacy=none")
    _, training = next(prepare_study(config, tmp_path / "run", "").trainings())
    job = make_job(training)
    task = make_task(job, TrainingState(0, job.initial, optimizer=None, average=None), 0, RoundKey(bytes(32)), None)
    run = superlink.ask([encode_task(task)], parts=1, cohort=job.cohort, deadline_s=PATIENCE_S)
    assert superlink.wait_for_run(run.run_id, PATIENCE_S + worlds.PATIENCE_S) == "completed"
    (said,) = run.answers()
    there = decode_reply(bytes.fromhex(said["payload"]))
    here = open_simulated(job.cohort, 0, 1)(task)
    assert (there.trained, there.contribution.count) == (here.trained, here.contribution.count)
    assert np.abs(here.contribution.values).max() > 1e-4, "nothing was learnt, so nothing was compared"
    np.testing.assert_allclose(there.contribution.values, here.contribution.values, rtol=1e-6, atol=1e-6)
