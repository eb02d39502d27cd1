"""Some kinds of bad contribution over a real SuperLink; ``tests/unit`` and ``tests/long`` have all of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from superlink_world import SuperLinkWorld


def _load(name: str):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


nodes = _load("bad_nodes")
FEW = ("unreadable", "norm_barely_over", "raises", "challenge_wrong", "answers_twice", "count_over_part")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SuperLinkWorld]:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))
    made = _load("superlink_world").SuperLinkWorld(tmp_path)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_rejected_over_a_superlink_and_the_round_done_with_the_rest(world: SuperLinkWorld, tmp_path: Path) -> None:
    with nodes.online(world) as links:
        records = nodes.train(world, links, tmp_path / "run", mode="private", names=FEW, deadline_s=60.0)
    found = nodes.bad.problems(records, FEW, nodes.UNSEEN)
    assert not found, "\n".join(found)
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and nodes.bad.SECRET.encode() in path.read_bytes()]
    assert not kept, "the words of a node's exception are on a disk of the server"
