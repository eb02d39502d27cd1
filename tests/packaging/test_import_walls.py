"""The import walls hold, each breaks when it is violated, and an analysis that saw nothing is noticed."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {"fedlearn": ROOT, "fedlearn_client": ROOT / "clients", "fedlearn_server": ROOT / "server"}

VIOLATIONS = {
    "The phone side knows no server, no lab, no torch, no Flower": (
        "fedlearn_client/contribution.py",
        "from fedlearn.engine import step",  # torch, at one remove
    ),
    "The daemon of a phone, and what it shares with servers, needs no numpy": (
        "fedlearn_client/guard.py",
        "from fedlearn import wire",  # numpy, at one remove
    ),
    "One importer of onnxruntime on a phone": ("fedlearn_client/worker/train.py", "import onnxruntime"),
    "Nothing but the lab imports the lab": ("fedlearn_server/round.py", "from fedlearn.lab import dataset"),
    "Base modules need numpy and protobuf only": ("fedlearn/codec.py", "import torch"),
    "Privacy, ledger and report run without torch, Flower and Hydra": ("fedlearn/report/view.py", "import hydra"),
    "The library knows no transport": ("fedlearn/engine/step.py", "from flwr.app import Message"),
    "One importer of dp_accounting": ("fedlearn/lab/prepare.py", "import dp_accounting.pld"),
    "The verifier shares no code with what it checks": (
        "fedlearn/ledger/verifier.py",
        "from fedlearn.ledger import runs",
    ),
    "One importer of platformdirs": ("fedlearn/ledger/store.py", "import platformdirs"),
    "SQLAlchemy stays in the ledger's store and in the gateway": ("fedlearn_server/spend.py", "import sqlalchemy"),
    "The simulated city cannot see how features are made": (
        "fedlearn/lab/city/people.py",
        "from fedlearn.features import match",
    ),
    "A message is built from the inside out": ("fedlearn/task.py", "from fedlearn import fold"),
    "The rooms, from the lab down": ("fedlearn/privacy/grid.py", "from fedlearn.models import base"),
}


@dataclass(frozen=True)
class Verdict:
    """What lint-imports printed."""

    files: int
    dependencies: int
    contracts: dict[str, str]

    def saw_the_code(self) -> bool:
        """A layout that the analyser cannot follow is reported as "0 dependencies", every contract KEPT."""
        return self.files > 100 and self.dependencies > 500


def lint(folder: Path, config: Path) -> Verdict:
    """Run lint-imports on the packages that lie in ``folder``."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--config", str(config)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    counted = re.search(r"Analyzed (\d+) files?, (\d+) dependenc", text)
    assert counted, done.stdout + done.stderr
    return Verdict(int(counted[1]), int(counted[2]), dict(re.findall(r"^(.+?) (KEPT|BROKEN)\b", text, re.M)))


def copy_packages(folder: Path) -> None:
    for package, parent in SOURCES.items():
        shutil.copytree(parent / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", "configs"))


@pytest.fixture(scope="module")
def contracts() -> list[dict[str, object]]:
    found: list[dict[str, object]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    return found


def test_walls_hold() -> None:
    verdict = lint(ROOT, ROOT / "pyproject.toml")
    assert verdict.saw_the_code(), verdict
    assert set(verdict.contracts) == set(VIOLATIONS), "every contract has a violation below, and the reverse"
    assert set(verdict.contracts.values()) == {"KEPT"}, verdict.contracts


def test_each_wall_breaks_when_violated(tmp_path: Path) -> None:
    copy_packages(tmp_path)
    for file, line in VIOLATIONS.values():
        module = tmp_path / file
        assert module.is_file(), f"{file} moved: give its contract another violation"
        module.write_text(module.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    verdict = lint(tmp_path, ROOT / "pyproject.toml")
    assert set(verdict.contracts.values()) == {"BROKEN"}, verdict.contracts


def test_an_analysis_that_sees_nothing_is_noticed(tmp_path: Path) -> None:
    """Empty packages keep every contract that does not name a module; only the counts tell."""
    for package in SOURCES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    config = tmp_path / "walls.toml"
    config.write_text(
        "[tool.importlinter]\n"
        f"root_packages = {list(SOURCES)}\n"
        "include_external_packages = true\n"
        "[[tool.importlinter.contracts]]\n"
        'name = "phone"\ntype = "forbidden"\nsource_modules = ["fedlearn_client"]\nforbidden_modules = ["torch"]\n'
    )
    verdict = lint(tmp_path, config)
    assert verdict.contracts == {"phone": "KEPT"}
    assert not verdict.saw_the_code()


def test_no_module_stands_outside_the_walls(contracts: list[dict[str, object]]) -> None:
    """A new room must be put on the list of those that may not import the lab."""
    listed = next(c for c in contracts if c["name"] == "Nothing but the lab imports the lab")["source_modules"]
    assert isinstance(listed, list)
    rooms = {
        f"fedlearn.{path.stem}"
        for path in (ROOT / "fedlearn").iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem not in {"__init__", "lab"}
    }
    assert rooms | {"fedlearn_client", "fedlearn_server"} == set(listed)


def flower_internals(source: str) -> set[str]:
    """Modules of Flower that are not its public API. import-linter cannot name parts of an external package."""
    public = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}
    named: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            named.add(node.module)
    return {name for name in named if name.split(".")[0] == "flwr" and name not in public}


def test_flower_internals_stay_in_one_file() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for package, parent in SOURCES.items()
        for path in (parent / package).rglob("*.py")
        if flower_internals(path.read_text(encoding="utf-8"))
    }
    assert users == {"server/fedlearn_server/flower.py"}


@pytest.mark.parametrize(
    "line", ["import flwr", "from flwr.common import ndarrays_to_parameters", "import flwr.server"]
)
def test_flower_internals_are_recognised(line: str) -> None:
    assert flower_internals(line)
    assert not flower_internals("from flwr.app import Message\nimport flwrish")
