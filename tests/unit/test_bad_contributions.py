"""Every kind of bad contribution in this process: rejected for the right reason, the round done with the rest."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from fedlearn.ledger import LEDGER_FILE, verifier
from fedlearn_server.checkpoint import load_model
from fedlearn_server.grids.in_process import InProcessGrid


def _load(name: str):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


town = _load("round_town")
bad = _load("bad_contributions")


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


def train(directory: Path, mode: str, names: tuple[str, ...]) -> list[dict[str, object]]:
    directory.mkdir()
    grid = bad.UnrulyGrid(InProcessGrid(bad.BadApp(names), bad.PARTS), names)
    return list(bad.run_all(grid, directory, mode, names, deadline_s=0.3))


@pytest.mark.parametrize("mode", ["none", "private"])
def test_each_kind_is_rejected_for_its_reason(
    tmp_path: Path, mode: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    names = bad.names_in(mode, "in_process")
    assert len(names) >= 25
    found = bad.problems(train(tmp_path / "run", mode, names), names)
    assert not found, "\n".join(found)
    assert bad.SECRET not in "".join((*capfd.readouterr(), caplog.text))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if bad.SECRET.encode() in path.read_bytes()]


def test_with_privacy_the_record_of_such_a_training_verifies(tmp_path: Path) -> None:
    train(tmp_path / "run", "private", ("garbage", "norm_huge", "raises"))
    verifier.check_record_at(tmp_path / "run" / LEDGER_FILE, verifier.Pins())


def test_the_model_is_the_one_without_the_culprit(tmp_path: Path) -> None:
    """Whatever the culprit says, its part adds nothing: each kind leaves the same sum as a node that raises."""
    lost = [name for name in bad.names_in("none", "in_process") if bad.KINDS[name].lost and name != "silent"]
    models = []
    for name in ("raises", *lost):
        train(tmp_path / f"{len(models)}", "none", (name,))
        models.append(load_model(tmp_path / f"{len(models)}")["weights"].tobytes())
    assert len(set(models)) == 1


def test_the_table_has_teeth(tmp_path: Path) -> None:
    """A contribution that is only bad in a way that nobody can see is accepted, and that is a problem."""
    names = ("garbage", "late")
    records = train(tmp_path / "run", "none", names)
    assert not bad.problems(records[:1], names[:1])
    (found,) = bad.problems(records[1:], names[1:])  # nothing was held before
    assert found.startswith("late: expected {'late': 1}")
    assert bad.problems(records[:1], names) == ["late: its step is missing"]
