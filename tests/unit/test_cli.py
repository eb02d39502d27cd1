"""The command: versions, help, errors on one line with their exit status, sub-commands from entry points."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from fedlearn import __version__, cli
from fedlearn.cli import main
from fedlearn.errors import BudgetExceeded, FedlearnError, RunInterrupted
from fedlearn.lab.configs import experiments, packaged_configs

SMALL = ["data.devices=40", "data.restaurants=500", "cohort.rounds=2", "evaluation.controls=false"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for command, summary in cli.SUMMARIES.items():
        assert re.search(rf"^  {command} +{re.escape(summary)}$", shown, re.M)


@pytest.mark.parametrize("command", sorted(cli.SUMMARIES))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([command, "--help"])
    except SystemExit as ended:  # argparse ends the process itself
        status = int(ended.code or 0)
    assert status == 0
    assert f"fedlearn {command}" in capsys.readouterr().out


def test_a_summary_stands_alone() -> None:
    """The help lists them by name, so that no summary has another one before it."""
    for summary in cli.SUMMARIES.values():
        assert not re.search(r"\b(them|it|that one)\b", summary), summary
    assert "`fedlearn up`" in cli.SUMMARIES["down"]
    assert "SuperLink" in cli.SUMMARIES["status"]
    assert "deployment" in cli.SUMMARIES["restore"]


def test_unknown_command_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["trian"])
    assert ended.value.code == 2
    assert "train" in capsys.readouterr().err


def test_a_command_comes_from_any_package(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sequence[str]] = []

    def command(arguments: Sequence[str]) -> int:
        seen.append(arguments)
        return 7

    _only(monkeypatch, "audit", command)
    assert main(["audit", "--deep", "x=1"]) == 7
    assert seen == [["--deep", "x=1"]]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BudgetExceeded("would spend 4 of 3; lower cohort.rounds."), 3),
        (RunInterrupted("stopped."), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_expected_error_is_one_line(
    error: BaseException, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(arguments: Sequence[str]) -> int:
        raise error

    _only(monkeypatch, "audit", command)
    assert main(["audit"]) == status
    shown = capsys.readouterr().err
    assert shown == (f"error {error.code}: {error}\n" if isinstance(error, FedlearnError) else "")


def test_an_unexpected_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(arguments: Sequence[str]) -> int:
        raise RuntimeError("a bug")

    _only(monkeypatch, "audit", command)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["audit"])


BAD_INPUT = [
    (["privacy.epsilon=-1"], "FL102", "privacy.epsilon=-1"),
    (["privacy.delta=0.025"], "FL102", "privacy.delta"),  # 1/population
    (["cohort.size=41", "cohort.fraction=null"], "FL102", "cohort.size=41"),  # q > 1
    (["data.devices=0"], "FL203", "data.devices=0"),
    (["data.rho=2"], "FL102", "data.rho"),
    (["data.language=xx"], "FL101", "data.language"),
    (["data.sessions_min=0"], "FL102", "data.sessions_min"),
    (["+privacy.typo=1"], "FL101", "privacy.typo"),
    (["model.name=mathc"], "FL101", "did you mean 'match'"),
    (["+model.options.l3=1"], "FL101", "model.options"),
    (["evaluation.metrics=[HR]"], "FL101", "evaluation.metrics"),
    (["evaluation.metrics=[HR@x]"], "FL101", "evaluation.metrics"),
    (["evaluation.metrics=[NGCD@10]"], "FL101", "NDCG"),
    (["server_opt.name=adm"], "FL101", "server_opt.name"),
    (["+server_opt.options.momentun=0.9"], "FL101", "server_opt.options"),
    (["data=plugin", "data.name=nobodys"], "FL101", "data.name='nobodys'"),
    (["--config-dir", "not-here"], "FL201", "--config-dir not-here"),
]


@pytest.mark.parametrize(("overrides", "code", "words"), BAD_INPUT, ids=[" ".join(row[0]) for row in BAD_INPUT])
def test_bad_input_is_refused_before_any_work(
    overrides: list[str], code: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = [] if "data=plugin" in overrides else SMALL
    assert main(["train", *small, f"run.dir={run}", *overrides]) == 2
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert last.startswith(f"error {code}: "), shown
    assert words in last
    assert "Traceback" not in shown
    assert not run.exists()


def test_resume_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error FL702: ")


def test_resume_takes_no_changed_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", str(tmp_path), "cohort.rounds=5"]) == 2
    assert "cohort.rounds=5" in capsys.readouterr().err


def test_init_copies_every_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    assert main(["init", str(mine)]) == 0
    assert f"--config-dir {mine}" in capsys.readouterr().out.replace("\n", " ").replace("  ", " ")

    def content(root: Path) -> dict[str, bytes]:
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.yaml")}

    assert content(mine) == content(packaged_configs())
    assert main(["init", str(mine)]) == 2
    assert capsys.readouterr().err.startswith("error FL701: ")


def test_list_for_a_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["experiment"] == experiments()
    assert found["models"]["match"] == "fedlearn"
    assert {"city", "crosswoz"} <= set(found["data"])
    assert {"HR", "NDCG", "MRR"} <= set(found["metrics"])


def _only(monkeypatch: pytest.MonkeyPatch, name: str, command: object) -> None:
    class Point:
        def __init__(self) -> None:
            self.name = name

        def load(self) -> object:
            return command

    monkeypatch.setattr(cli, "entry_points", lambda group: [Point()])
