"""Flower's own ``flower-supernode`` and our ClientApp adapter do what a resident node does, only slowly.

A stock SuperNode fetches the bundle, and starts a Python process for each message.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fedlearn_server.checkpoint import load_model

if TYPE_CHECKING:
    from small_city import SmallCity
    from superlink_world import Member, SuperLinkWorld

ONE_ROUND = ("privacy=none", "cohort.rounds=1", "evaluation.every=1000")


def load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


worlds = load("superlink_world")


def start(world: SuperLinkWorld, member: Member) -> None:
    """Start a stock SuperNode and wait until it is online."""
    process = world.spawn(
        [
            *(str(worlds.BIN / "flower-supernode"), "--root-certificates", str(world.ca)),
            *("--auth-supernode-private-key", str(member.key_file), "--superlink", world.address),
            *("--port", str(worlds.free_port())),
        ],
        "supernode.log",
    )

    def online() -> bool:
        assert process.poll() is None, (world.directory / "supernode.log").read_text()
        return world.status_of(member) == "online"

    worlds.wait_until(online, "the stock SuperNode")


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_a_stock_supernode_answers_as_our_node_does(small_city: SmallCity, tmp_path: Path) -> None:
    world = worlds.SuperLinkWorld(tmp_path)
    try:
        world.start()
        start(world, world.register())
        at = ("runtime=superlink", f"runtime.address='{world.address}'", f"runtime.ca={world.ca}")
        there = small_city.train(tmp_path / "there", *ONE_ROUND, *at, "runtime.shards=1", "runtime.resend_s=60")
    finally:
        world.close()
    here = small_city.train(tmp_path / "here", *ONE_ROUND)
    left, right = load_model(there.directory), load_model(here.directory)
    assert left.keys() == right.keys()
    assert max(float(np.abs(left[name]).max()) for name in left) > 1e-4, "nothing was learnt, so nothing was compared"
    for name, weights in left.items():
        np.testing.assert_allclose(weights, right[name], rtol=1e-6, atol=1e-6)
