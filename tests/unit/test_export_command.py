"""`fedlearn export`, from a run directory to bundles that a phone opens."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fedlearn import __version__
from fedlearn.clock import system_clock
from fedlearn.device.bundle import Bundle, open_bundle
from fedlearn.device.catalogue_bundle import open_catalogue_bundle, spec_of
from fedlearn.errors import (
    BundleRefused,
    DataMissing,
    FedlearnError,
    MissingDependency,
    OutOfRange,
    PolicyInvalid,
    ResumeRefused,
    SignatureRefused,
    UnknownSetting,
)
from fedlearn.export.dev_keys import KEYS, STAMP, dev_status
from fedlearn.files import write_durably
from fedlearn.lab import compose
from fedlearn.lab.commands.export import main
from fedlearn.lab.config import AdaptiveClipConfig
from fedlearn.lab.exporting import _mechanism, trained_run
from fedlearn.lab.run import train
from fedlearn.ledger.signing import SigningKey, make_key_pair, read_key
from fedlearn.policy.dsse import ROSTER_TYPE, STATUS_TYPE, open_envelope, sign_envelope
from fedlearn.policy.roster import Roster, roster_bytes, roster_from_bytes
from fedlearn.policy.status import Status, open_status, require_live, status_bytes
from fedlearn.policy.times import format_time
from fedlearn.privacy.factorization import Blt

ROOT = Path(__file__).parents[2]
CITY = ROOT / "configs" / "policy" / "city.yaml"
SMALL = (
    "experiment=city_quick",
    "data.devices=60",
    "data.restaurants=500",
    "cohort.size=null",
    "evaluation.controls=false",
    "evaluation.bootstrap=100",
    "evaluation.every=1000",
    "policy=none",
)
BOUNDED = ("privacy=blt", "privacy.epsilon=null", "privacy.noise_multiplier=6.0", "privacy.delta=1e-3")
BOUNDED += ("cohort=bounded", "cohort.fraction=0.05", "cohort.rounds=21")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    train(compose([*SMALL, *BOUNDED, f"run.dir={directory}"]), console=Console(quiet=True))
    return directory


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demonstration's keys and bundles."""
    folder = tmp_path_factory.mktemp("export")
    arguments = [str(run), "--policy", str(CITY), "--dev-keys", str(folder / "keys"), "--out", str(folder / "out")]
    assert main([*arguments, "--name", "evening"]) == 0
    return folder


def opened(folder: Path) -> Bundle:
    root = (folder / "keys" / "root.key.pub").read_text().strip()
    data = (folder / "out" / "evening.task.flb").read_bytes()
    return open_bundle(data, root_keys=[root], now=system_clock(), runtime=__version__)


def test_a_demonstration_is_accepted_by_a_phone(exported: Path, run: Path) -> None:
    bundle = opened(exported)
    assert bundle.plan.name == "evening"
    assert bundle.verified.policy.name == "city-dev"
    assert bundle.plan.mechanism.noise_multiplier == 6.0
    assert isinstance(bundle.plan.mechanism.factorization, Blt)
    task_key = (exported / "keys" / "task.key.pub").read_text().strip()
    assert task_key in {entry.task_key for entry in bundle.verified.policy.recipients}
    data = (exported / "out" / "evening.catalogue.flb").read_bytes()
    catalogue = open_catalogue_bundle(
        data, roster=bundle.verified.roster, spec=bundle.plan.catalogue, now=system_clock()
    )
    assert catalogue.items == 500
    assert catalogue.catalogue_digest == trained_run(run).catalogue.digest
    status = open_status((exported / "keys" / "status.dsse.json").read_bytes(), bundle.verified.roster, system_clock())
    require_live(status, bundle.digests, system_clock())


def test_plan_and_step_are_small(exported: Path) -> None:
    files = opened(exported).files
    assert len(files["plan.json"]) + len(files["step.onnx"]) < 35_000
    assert len(files["golden.json"]) < 150_000


def test_demonstration_keys_are_stamped_private_and_kept(exported: Path) -> None:
    keys = exported / "keys"
    assert "demonstration" in (keys / STAMP).read_text()
    for name in KEYS:
        assert (keys / f"{name}.key").stat().st_mode & 0o077 == 0
    assert (keys.stat().st_mode & 0o077) == 0
    stopped = dev_status(keys, system_clock(), stopped=("*",))
    assert open_status(stopped, opened(exported).verified.roster, system_clock()).stopped == ("*",)


class Office:
    """A root, two approvers and a status key, each in a file of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("root", "one", "two", "stranger"):
            make_key_pair(folder / f"{name}.key")
        keys = {name: read_key(folder / f"{name}.key") for name in ("root", "one", "two")}
        now = system_clock()
        approvers = (keys["one"].public, keys["two"].public)
        roster = Roster(1, format_time(now + 86_400 * 50), 2, approvers, (SigningKey.fresh().public,))
        self.roster = folder / "roster.dsse.json"
        write_durably(self.roster, sign_envelope(ROSTER_TYPE, roster_bytes(roster), [keys["root"]]))
        self.policy = folder / "policy.yaml"
        text = CITY.read_text(encoding="utf-8").replace("0" * 64, SigningKey.fresh().public)
        self.policy.write_text(text, encoding="utf-8")

    def key(self, name: str) -> str:
        return str(self.folder / f"{name}.key")

    def arguments(self, run: Path, *keys: str) -> list[str]:
        found = [str(run), "--policy", str(self.policy), "--roster", str(self.roster), "--name", "evening"]
        found += ["--root", self.key("root") + ".pub", "--out", str(self.folder / "out")]
        return [*found, *(part for key in keys for part in ("--approver-key", self.key(key)))]

    def root(self) -> str:
        return read_key(self.folder / "root.key").public

    def open(self) -> Bundle:
        data = (self.folder / "out" / "evening.task.flb").read_bytes()
        root = read_key(self.folder / "root.key").public
        return open_bundle(data, root_keys=[root], now=system_clock(), runtime=__version__)


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_a_second_approver_signs_later(office: Office, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fedlearn.policy.command import main as policy

    signed = office.folder / "policy.dsse.json"
    for name in ("one", "two"):
        assert policy(["sign", str(office.policy), "--key", office.key(name), "--into", str(signed)]) == 0
    office.policy = signed
    assert main(office.arguments(run, "one")) == 0
    assert "Not enough" in capsys.readouterr().out
    with pytest.raises(SignatureRefused):
        office.open()
    bundle = str(office.folder / "out" / "evening.task.flb")
    assert main(["approve", bundle, "--approver-key", office.key("two")]) == 0
    assert office.open().plan.name == "evening"
    with pytest.raises(SignatureRefused):
        main(["approve", bundle, "--approver-key", office.key("two")])


def test_a_catalogue_alone(office: Office, run: Path) -> None:
    assert main([*office.arguments(run, "one"), "--catalogue-only", "--catalogue-version", "7"]) == 0
    (path,) = (office.folder / "out").iterdir()
    assert path.name == "evening.catalogue.flb"
    roster = roster_from_bytes(open_envelope(office.roster.read_bytes(), ROSTER_TYPE, [office.root()], 1, "roster"))
    spec = spec_of(trained_run(run).catalogue)
    with pytest.raises(SignatureRefused, match="2 are needed"):
        open_catalogue_bundle(path.read_bytes(), roster=roster, spec=spec, now=system_clock())
    assert main(["approve", str(path), "--approver-key", office.key("two")]) == 0
    assert open_catalogue_bundle(path.read_bytes(), roster=roster, spec=spec, now=system_clock()).version == 7


Change = Callable[[list[str]], list[str]]


def _without(option: str) -> Change:
    def change(arguments: list[str]) -> list[str]:
        at = arguments.index(option)
        return arguments[:at] + arguments[at + 2 :]

    return change


def _with(*more: str) -> Change:
    return lambda arguments: [*arguments, *more]


@pytest.mark.parametrize(
    ("keys", "change", "expected"),
    [
        ((), _with(), (SignatureRefused, "--approver-key: name at least one")),
        (("stranger",), _with(), (SignatureRefused, "not among the roster's approvers")),
        (("one", "two"), _without("--roster"), (SignatureRefused, "--roster")),
        (("one",), _with("--dev-keys", "keys"), (SignatureRefused, "--dev-keys")),
        (("one",), _with("--expires", "2020-01-01T00:00:00Z"), (OutOfRange, "--expires")),
        (("one",), _with("--expires", "2040-01-01T00:00:00Z"), (OutOfRange, "--expires")),
        (("one",), _with("--training", "fold0-seed7"), (UnknownSetting, "fold0-seed7")),
        (("one",), _with("--purpose", "spying"), (OutOfRange, "spying")),
        (("one",), _with("--pte", "--catalogue-only"), (MissingDependency, r"fedlearn\[executorch\]")),
    ],
)
def test_bad_arguments_write_nothing(
    office: Office, run: Path, keys: Sequence[str], change: Change, expected: tuple[type[FedlearnError], str]
) -> None:
    with pytest.raises(expected[0], match=expected[1]):
        main(change(office.arguments(run, *keys)))
    assert not (office.folder / "out").exists()


def test_a_policy_with_a_placeholder_for_a_key_is_refused(office: Office, run: Path) -> None:
    shutil.copy(CITY, office.policy)
    with pytest.raises((OutOfRange, PolicyInvalid), match="placeholder"):
        main(office.arguments(run, "one", "two"))


def test_an_envelope_of_another_kind_is_no_policy(office: Office, run: Path) -> None:
    other = office.folder / "status.dsse.json"
    status = Status(1, format_time(system_clock()), (), ())
    write_durably(other, sign_envelope(STATUS_TYPE, status_bytes(status), [read_key(office.folder / "one.key")]))
    office.policy = other
    with pytest.raises(PolicyInvalid, match="not of a policy"):
        main(office.arguments(run, "one"))


def test_a_folder_that_is_no_run_and_one_that_is_not_finished(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ResumeRefused, match="no run here"):
        trained_run(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    with pytest.raises(DataMissing):
        trained_run(copy)


def test_a_sampled_run_is_refused_with_the_fix(tmp_path: Path) -> None:
    directory, keys = tmp_path / "run", tmp_path / "keys"
    overrides = ("privacy=gaussian", "privacy.delta=1e-3", "cohort.fraction=0.5", "cohort.rounds=1")
    train(compose([*SMALL, *overrides, f"run.dir={directory}"]), console=Console(quiet=True))
    with pytest.raises(OutOfRange, match="privacy=blt"):
        main([str(directory), "--policy", str(CITY), "--dev-keys", str(keys), "--out", str(tmp_path / "out")])
    assert not keys.exists()


def test_a_run_without_privacy_and_one_whose_clip_moves_are_refused() -> None:
    spent = SimpleNamespace(privacy=SimpleNamespace(spend=(SimpleNamespace(event="{}"),)))
    with pytest.raises(OutOfRange, match=r"privacy\.mode=none"):
        _mechanism(compose([*SMALL, "privacy=none"]), spent)  # type: ignore[arg-type]
    config = compose([*SMALL, *BOUNDED])
    moving = replace(config, privacy=replace(config.privacy, adaptive_clip=AdaptiveClipConfig(0.5, 0.2, None)))
    with pytest.raises(OutOfRange, match=r"privacy\.adaptive_clip"):
        _mechanism(moving, spent)  # type: ignore[arg-type]


def test_executorch_is_asked_for_late(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlearn.export.executorch import step_pte
    from fedlearn.models import MatchModel

    missing: dict[str, Any] = {"executorch": None, "executorch.exir": None}
    for name, module in missing.items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(MissingDependency, match=r"pip install 'fedlearn\[executorch\]'"):
        step_pte(MatchModel(3), (), 4)


def test_approve_refuses_what_is_no_bundle(office: Office) -> None:
    with pytest.raises(BundleRefused):
        main(["approve", str(office.policy), "--approver-key", office.key("one")])
    with pytest.raises(BundleRefused, match="cannot be read"):
        main(["approve", str(office.folder / "none"), "--approver-key", office.key("one")])


def test_a_module_without_onnx_names_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlearn.export.infer import infer_onnx
    from fedlearn.models import MatchModel

    nothing: ModuleType | None = None
    monkeypatch.setitem(sys.modules, "onnx", nothing)  # type: ignore[arg-type]
    with pytest.raises(MissingDependency, match=r"fedlearn\[export\]"):
        infer_onnx(MatchModel(3))
