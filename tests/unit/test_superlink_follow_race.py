"""A ServerApp that begins in the very moment in which its follower asks SuperLink about it is not taken for dead."""

from __future__ import annotations

import importlib.util
import sys
from contextlib import closing
from pathlib import Path

from fedlearn.lab import compose
from fedlearn.lab.superlink.order import Order
from fedlearn_server.flower import FlowerRun

_spec = importlib.util.spec_from_file_location("follow_world", Path(__file__).with_name("follow_world.py"))
_world = sys.modules.setdefault(_spec.name, importlib.util.module_from_spec(_spec))
if not hasattr(_world, "World"):
    _spec.loader.exec_module(_world)


def test_it_begins_while_superlink_is_asked(tmp_path: Path) -> None:
    """The lock was free before the question and is held after it: runs that were killed met this again and again."""
    config = compose(["experiment=city_quick", "runtime=superlink"])
    world = _world.World(Order(config, tmp_path, ".", "run", headline=True, fold=0, seed=0, code="c"))
    asked: list[int] = []

    def run(run_id: int) -> FlowerRun:
        asked.append(run_id)
        if len(asked) == 1:
            world.begin()
        return world.link.runs[run_id]

    world.link.run = run
    with closing(world.lock):
        world.follow(world.pause(0.0), world.pause(0.0), world.rounds(0), world.succeed)
    assert asked
    assert world.link.stopped == []
    assert len(world.link.orders) == 1
