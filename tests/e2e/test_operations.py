"""What docs/operations.md promises of keys, done to a real deployment under a run.

``tests/long/test_operations_long.py`` renews its certificates, and brings it back from a backup.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from fedlearn.errors import SuperLinkRefused
from fedlearn_server.deployment import opened, processes, up
from fedlearn_server.deployment.keys_command import main as nodes_command
from fedlearn_server.deployment.operator import open_control
from fedlearn_server.deployment.rotation import add_node, add_remote, revoke_node, rotate_node
from fedlearn_server.flower import ControlLink, FleetLink, build_bundle, load_node_key


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_of_operations", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


worlds = load("superlink_world")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """Of a deployment; whatever of it runs ends with the test."""
    made = tmp_path / "deployment"
    yield made
    if (made / "deployment.json").exists():
        processes.stop(processes.marked(opened(made).identity), 0.0)


def ask_for_long(control: ControlLink, out: Path) -> object:
    """Start a run that asks two parts small questions, more than it will get to ask."""
    order = {
        "tasks": [b"small".hex()] * 5000,
        "parts": 2,
        "cohort": "{}",
        "deadline_s": 60.0,
        "resend_s": 2.0,
        "out": str(out),
    }
    bundle = build_bundle({"pyproject.toml": worlds.ASKER_PROJECT, "asker.py": worlds.ASKER.encode()})
    return worlds.Asked(control.start_run(bundle, {"fedlearn": json.dumps(order)}), out)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern")  # Flower's, when it builds a bundle
def test_a_run_goes_on_while_keys_and_nodes_change(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = up(directory, 1)
    old = first.nodes[0].node_id
    (tmp_path / "old.pem").write_bytes(first.nodes[0].key.read_bytes())
    (tmp_path / "old.pem").chmod(0o600)
    with closing(open_control(first)) as control:
        asked = ask_for_long(control, tmp_path / "asked.jsonl")

        def last_nodes() -> set[int]:
            return {answer["node"] for answer in asked.answers()[-4:]}

        worlds.wait_until(lambda: last_nodes() == {old}, "the node to answer")
        new = rotate_node(directory, "node-1").nodes[0].node_id
        assert new != old
        worlds.wait_until(lambda: last_nodes() == {new}, "its new key to answer")
        added = add_node(directory, "gate-1").nodes[1].node_id
        worlds.wait_until(lambda: last_nodes() == {new, added}, "the new node to answer too")
        revoke_node(directory, "gate-1")
        worlds.wait_until(lambda: last_nodes() == {new}, "the rest to go on")
        assert control.run(asked.run_id).status == "running"
        assert control.stop_run(asked.run_id)
    link = FleetLink(first.address, first.ca, load_node_key(tmp_path / "old.pem"))
    with closing(link), pytest.raises(SuperLinkRefused):
        link.activate(old)

    assert nodes_command(["keygen", str(tmp_path / "far.pem")]) == 0
    far = add_remote(directory, "far", tmp_path / "far.pem.pub")
    with closing(FleetLink(first.address, first.ca, load_node_key(tmp_path / "far.pem"))) as link:
        assert link.activate(None) == far
    capsys.readouterr()
    assert nodes_command(["list", "--dir", str(directory), "--json"]) == 0
    listed = {row["name"]: (row["node_id"], row["key"]) for row in json.loads(capsys.readouterr().out)}
    assert listed == {"far": (str(far), "elsewhere"), "node-1": (str(new), "on this machine")}
