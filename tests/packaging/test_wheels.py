"""Each distribution builds, installs into a bare environment, and imports nothing that its role may not have."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fedlearn
import fedlearn_client
import fedlearn_server

ROOT = Path(__file__).parents[2]
FOLDERS = {"fedlearn": ROOT, "fedlearn_client": ROOT / "clients", "fedlearn_server": ROOT / "server"}
HEAVY = ("torch", "flwr", "hydra", "omegaconf", "sqlalchemy", "dp_accounting", "ray", "scipy", "fedlearn_server")

pytestmark = pytest.mark.xdist_group("wheels")


def build(folder: Path, out: Path, *what: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", str(out), str(folder)],
        check=True,
        capture_output=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("wheels")
    for folder in FOLDERS.values():
        build(folder, out, "--wheel")
    return {path.name.split("-")[0]: path for path in out.glob("*.whl")}


@pytest.fixture(scope="module")
def bare(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with our two light wheels and what they declare, numpy and protobuf; returns its python."""
    return environment(tmp_path_factory.mktemp("bare"), wheels, ("fedlearn", "fedlearn-client"))


@pytest.fixture(scope="module")
def reviewers(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with ``fedlearn[review]``."""
    return environment(tmp_path_factory.mktemp("review"), wheels, ("fedlearn[review]",))


def environment(home: Path, wheels: dict[str, Path], wanted: tuple[str, ...]) -> Path:
    """Install ``wanted`` from a local folder into an environment of its own.

    What the wheels declare is linked from this environment, so that the test needs no network; pip resolves and checks
    it as if it had been installed there.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=60)
    site = next((home / "lib").glob("python*")) / "site-packages"
    lend(closure(wanted) - {"fedlearn", "fedlearn-client", "fedlearn-server"}, site)
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    offline = {**os.environ, "PIP_CONFIG_FILE": os.devnull}
    install = [*pip, "install", "--quiet", "--no-index", "--find-links", str(wheels["fedlearn"].parent), *wanted]
    for command in (install, [*pip, "check"]):
        subprocess.run(command, check=True, env=offline, timeout=120)
    return python


def closure(wanted: tuple[str, ...]) -> set[str]:
    """Names of everything that ``wanted`` needs, by the metadata of what is installed here."""
    pending, seen = [Requirement(text) for text in wanted], set[tuple[str, str]]()
    while pending:
        requirement = pending.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) in seen:
                continue
            seen.add((requirement.name, extra))
            lines = distribution(requirement.name).requires or []
            needed = [Requirement(line) for line in lines]
            pending += [need for need in needed if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {canonicalize_name(name) for name, _ in seen}


def lend(names: set[str], site: Path) -> None:
    """Link installed distributions into another site-packages."""
    for name in names:
        for file in distribution(name).files or []:
            if file.parts[0] == ".." or file.suffix == ".pyc":
                continue
            target = site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(distribution(name).locate_file(file))))


def loaded(python: Path, code: str, folder: Path) -> dict[str, list[str]]:
    """Run ``code`` away from the checkout; return the modules loaded and what the code put into ``shown``."""
    script = (
        f"shown = []\n{code}\nimport json, sys\nprint(json.dumps({{'modules': sorted(sys.modules), 'shown': shown}}))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV"))}
    done = subprocess.run(
        [str(python), "-I", "-W", "error", "-c", script],
        cwd=folder,
        env=clean,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        path = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(path).decode())


def needs(wheel: Path) -> set[str]:
    """Distributions required without an extra."""
    lines = metadata(wheel).get_all("Requires-Dist") or []
    return {re.split(r"[\s\[<>=!~;]", line)[0].lower() for line in lines if "extra ==" not in line}


def test_one_version(wheels: dict[str, Path]) -> None:
    assert {str(metadata(wheel)["Version"]) for wheel in wheels.values()} == {fedlearn.__version__}
    assert fedlearn.__version__ == fedlearn_client.__version__ == fedlearn_server.__version__ == version("fedlearn")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {fedlearn.__version__}" in changes


def test_base_requirements(wheels: dict[str, Path]) -> None:
    assert needs(wheels["fedlearn"]) == {"numpy", "protobuf"}
    phone = {"fedlearn", "numpy", "onnxruntime", "grpcio", "sqlcipher3", "cryptography", "securesystemslib", "tabulate"}
    assert needs(wheels["fedlearn_client"]) == phone
    assert len(closure(("fedlearn-client",))) <= 16, "what a phone maker must audit"
    assert needs(wheels["fedlearn_server"]) >= {"fedlearn", "flwr", "torch", "grpcio", "sqlalchemy"}
    assert "fedlearn-client" not in needs(wheels["fedlearn_server"])


def test_wheels_hold_their_own_package_only(wheels: dict[str, Path]) -> None:
    for package, wheel in wheels.items():
        tops = {name.split("/")[0] for name in names(wheel)}
        assert tops == {package, f"{package}-{fedlearn.__version__}.dist-info"}
        assert not [name for name in names(wheel) if "__pycache__" in name or "/tests/" in name]


def test_package_data_ships(wheels: dict[str, Path]) -> None:
    inside = names(wheels["fedlearn"])
    configs = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs == {
        name.removeprefix("fedlearn/configs/")
        for name in inside
        if name.startswith("fedlearn/configs/") and name.endswith(".yaml")
    }
    assert {"fedlearn/policy/template.yaml", "fedlearn/proto/device.proto", "fedlearn/proto/gateway.proto"} <= inside
    phone = names(wheels["fedlearn_client"])
    assert {"fedlearn_client/store/schema.sql", "fedlearn_client/conformance/guard.json"} <= phone
    assert {"fedlearn/py.typed", "fedlearn/proto/wire.proto", "fedlearn/report/templates/base.html.j2"} <= inside
    assert {f"fedlearn/privacy/coefficients/{mechanism}.json" for mechanism in ("blt", "banded")} <= inside
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_server_wheel_holds_the_round(wheels: dict[str, Path]) -> None:
    assert {
        f"fedlearn_server/{name}.py" for name in ("app", "round", "node", "spend", "grids/in_process", "grids/ray")
    } <= names(wheels["fedlearn_server"])


def test_sdist_builds_the_same_wheel(wheels: dict[str, Path], tmp_path: Path) -> None:
    build(ROOT, tmp_path)  # without options: the sdist, and the wheel from it
    assert len(list(tmp_path.glob("*.tar.gz"))) == 1
    assert names(next(tmp_path.glob("*.whl"))) == names(wheels["fedlearn"])


def test_base_wheel_imports_without_the_heavy_packages(bare: Path, tmp_path: Path) -> None:
    code = """
import fedlearn.types, fedlearn.errors, fedlearn.task, fedlearn.wire, fedlearn.codec, fedlearn.fold, fedlearn.clip
import fedlearn.rng, fedlearn.clock, fedlearn.signals, fedlearn.catalogue, fedlearn.features, fedlearn.features.store
import fedlearn.privacy.grid, fedlearn.privacy.sampling, fedlearn.privacy.mechanisms, fedlearn.cli
shown.append(fedlearn.__file__)
"""
    result = loaded(bare, code, tmp_path)
    assert str(ROOT) + os.sep not in result["shown"][0], "the wheel, not the checkout"
    assert not {name.split(".")[0] for name in result["modules"]} & {*HEAVY, "fedlearn_client"}
    assert "fedlearn.lab" not in result["modules"]


def test_client_wheel_makes_a_contribution(bare: Path, tmp_path: Path) -> None:
    code = """
import numpy as np
from fedlearn.clip import clip_l2
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.task import DeviceTask
from fedlearn.fold import Fold, FoldTerms
from fedlearn.privacy.factorization import INDEPENDENT
from fedlearn.types import Level
from fedlearn.wire import decode_contribution, encode_contribution
from fedlearn_client.contribution import make_contribution

mechanism = MechanismTerms("independent", INDEPENDENT, 4.0, 1.0, 2.0**-30, 100, 10, 5)
task = DeviceTask(
    run_id="bare", population="town", purpose="train", recipient="operator", step=0, attempt=0,
    plan_digest="", weights_digest="", token=bytes(16), issued=1.0, expires=2.0, round_size=1000,
    mechanism=mechanism, shuffle_seed=0, digest=bytes(32),
)
sent = encode_contribution(make_contribution(clip_l2(np.array([3.0, 0.0, -4.0]), 1.0), task, 3))
fold = Fold(FoldTerms(task.digest, 3, 1.0, mechanism.grid_step, Level.PHONE))
fold.offer(lambda: decode_contribution(sent, 4096))
total = fold.bounded_sum(0, 1.0)
shown.extend([str(total.count), str(round(float(np.linalg.norm(total.values)), 6))])
"""
    result = loaded(bare, code, tmp_path)
    assert result["shown"] == ["1", "1.0"]
    assert not {name.split(".")[0] for name in result["modules"]} & set(HEAVY)
    assert not [name for name in result["modules"] if name.startswith(("fedlearn.lab", "fedlearn.engine"))]


def test_the_daemon_loads_no_numpy(bare: Path, tmp_path: Path) -> None:
    """The daemon's modules, from the wheels in a bare environment; what computes runs in its worker."""
    code = """
import fedlearn_client.cli, fedlearn_client.daemon
from fedlearn_client.cli import COMMANDS
import importlib
for name in COMMANDS:
    if name not in {"import", "conformance"}:
        importlib.import_module(f"fedlearn_client.commands.{name.replace('-', '_')}_command")
shown.append(fedlearn_client.daemon.__file__)
"""
    result = loaded(bare, code, tmp_path)
    assert str(ROOT) + os.sep not in result["shown"][0]
    tops = {name.split(".")[0] for name in result["modules"]}
    assert not tops & {*HEAVY, "numpy", "onnxruntime", "yaml", "rich"}
    assert {"grpc", "sqlcipher3", "cryptography"} <= tops, "the control: it is the daemon that was loaded"


def test_a_reviewer_works_without_torch(reviewers: Path, tmp_path: Path) -> None:
    """Plan, ledger and report, from ``fedlearn[review]`` alone."""
    spec = importlib.util.spec_from_file_location("examples", ROOT / "tests" / "unit" / "report_examples.py")
    assert spec
    assert spec.loader
    examples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(examples)
    run = examples.run_dir(tmp_path, "run", examples.summary())
    code = f"""
import contextlib, io, sys
from fedlearn.cli import main
from fedlearn.ledger import Ledger
from fedlearn.privacy.plan import PrivacySettings, make_plan

settings = PrivacySettings(delta=1e-4, l2_clip_norm=1.0, noise_multiplier=4.0)
plan = make_plan(settings, population=1000, rounds=1, cohort=500)
shown.append(str(plan.sampling_probability))
out = io.StringIO()
with contextlib.redirect_stdout(out):
    status = main(["compare", {str(run)!r}, "--page", "page.html"])
    scope = ["--population", "phones", "--epsilon", "3", "--delta", "1e-6"]
    made = main(["ledger", "create", "shared.sqlite", *scope])
    looked = main(["ledger", "verify", "shared.sqlite"]) or main(["ledger", "budget", "shared.sqlite"])
shown.extend([str(status), str(made), str(looked)])
"""
    result = loaded(reviewers, code, tmp_path)
    assert result["shown"] == ["0.5", "0", "0", "0"]
    assert (tmp_path / "page.html").is_file()
    assert not {name.split(".")[0] for name in result["modules"]} & {"torch", "flwr", "hydra", "fedlearn_server"}


def test_the_heavy_list_would_be_noticed(tmp_path: Path) -> None:
    """The control: in this environment, which has everything, the same look sees a forbidden module."""
    result = loaded(Path(sys.executable), "import sqlalchemy", tmp_path)
    assert {name.split(".")[0] for name in result["modules"]} & set(HEAVY)


def test_command_of_the_base_wheel(bare: Path, tmp_path: Path) -> None:
    command = bare.with_name("fedlearn")
    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path)
    assert shown.stdout.strip() == fedlearn.__version__
    refused = subprocess.run(
        [command, "train", "experiment=city_quick"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("error FL103: ")
    assert "pip install 'fedlearn[lab]'" in refused.stderr
    assert refused.stderr.count("\n") == 1
