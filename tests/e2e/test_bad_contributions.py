"""Some kinds of bad contribution over a real SuperLink; ``tests/unit`` and ``tests/long`` have all of them."""

from __future__ import annotations

import importlib.util
import os
import sys
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
FEW = ("unreadable", "norm_barely_over", "raises", "count_over_part")
"""One that only a real SuperLink can deliver, and one of each: of the size, of the node, of the reservation."""


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_rejected_over_a_superlink_and_the_round_done_with_the_rest(superlink: SuperLinkWorld, tmp_path: Path) -> None:
    with nodes.online(superlink) as links:
        records = nodes.train(superlink, links, tmp_path / "run", mode="private", names=FEW, deadline_s=60.0)
    found = nodes.bad.problems(records, FEW, nodes.UNSEEN)
    assert not found, "\n".join(found)
    places = (tmp_path, superlink.directory, Path(os.environ["FEDLEARN_STATE"]))
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    kept = [path for path in files if nodes.bad.SECRET.encode() in path.read_bytes()]
    assert not kept, "the words of a node's exception are on a disk of the server"
