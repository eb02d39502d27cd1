"""``fedlearn audit``: what it prints, writes and returns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedlearn.errors import DataMissing, OutOfRange
from fedlearn.lab.audit import AuditConfig, AuditResult, audit
from fedlearn.lab.audit.probes import ProbeResult
from fedlearn.lab.commands import audit as command

SMALL = ["--canaries", "100", "--rounds", "5", "--parameters", "1000"]


@pytest.fixture
def sound() -> AuditResult:
    return audit(AuditConfig(noise_multiplier=1.0, canaries=100, rounds=5, parameters=1000))


def test_json_says_what_ran(capsys: pytest.CaptureFixture[str]) -> None:
    status = command.main([*SMALL, "--epsilon", "4", "--seed", "3", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status in {0, 1}  # a sound path warns in about 3 of 100 audits
    assert found["verdict"] == ("fine", "warning")[status]
    assert found["config"] == {
        "noise_multiplier": pytest.approx(1.08, abs=0.01),
        "delta": 1e-5,
        "canaries": 100,
        "rounds": 5,
        "parameters": 1000,
        "seed": 3,
    }
    assert 3.99 < found["analytic_epsilon"] <= 4.0
    assert found["code"]
    assert found["protocol"]["seeded"].endswith("differs in each audit")
    assert set(found["views"]) == {"every round", "final model"}
    assert all(probe["passed"] for probe in found["probes"])


def test_table_has_figures_probes_and_limits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "audit.png"
    assert command.main([*SMALL, "--noise-multiplier", "2", "--picture", str(picture)]) in {0, 1}
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("analytic 1.99", "estimate", "valid bound", "final model", "not_finite_refused", "clip_adapts"):
        assert words in shown
    assert "It does not show: that the path is private." in shown
    assert "figures differ in each audit" in shown
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_alarm_is_status_3_and_names_the_probe(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sound: AuditResult
) -> None:
    failed = replace(sound, probes=(*sound.probes, ProbeResult("fresh_noise", "no two share", "two do")))
    monkeypatch.setattr(command, "audit", lambda config, on_round: failed)
    assert command.main(SMALL) == 3
    shown = capsys.readouterr().out
    assert "ALARM: fresh_noise: two do" in shown
    assert "do not train with this path" in shown


def test_warning_is_status_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, sound: AuditResult
) -> None:
    view = sound.views[0]
    high = replace(view, estimate=replace(view.estimate, low=9.0, epsilon=9.5, high=10.0))
    monkeypatch.setattr(command, "audit", lambda config, on_round: replace(sound, views=(high,)))
    assert command.main(SMALL) == 1
    assert "WARNING: every round: the whole interval" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "names"),
    [
        (["--canaries", "5"], OutOfRange, "canaries=5"),
        (["--noise-multiplier", "0"], OutOfRange, "noise_multiplier=0"),
        (["--epsilon", "-1"], OutOfRange, "--epsilon=-1"),
        (["--epsilon", "1", "--delta", "2"], OutOfRange, "--delta=2"),
        (["--picture", "audit.txt"], OutOfRange, "--picture=audit.txt"),
        (["--picture", "nowhere/audit.png"], DataMissing, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_any_work(arguments: list[str], error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        command.main(arguments)


def test_epsilon_and_noise_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--epsilon", "1", "--noise-multiplier", "1"])
    assert ended.value.code == 2
    assert "not allowed with" in capsys.readouterr().err
