from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedlearn.cli import exit_status
from fedlearn.errors import FedlearnError, OutOfRange
from fedlearn.privacy.plan import PrivacySettings, make_plan
from fedlearn.report.plan_command import main
from fedlearn.report.plan_logistics import bytes_per_phone_month, days_to_finish
from fedlearn.report.plan_tables import bytes_text

SIZES = ["--population", "20000", "--cohort", "500", "--rounds", "100", "--delta", "1e-6"]
BLT = [*SIZES, "--mechanism", "blt", "--min-separation", "20"]
KEYS = {
    "epsilon", "delta", "noise_multiplier", "sensitivity", "rho", "mu", "unit", "neighboring_relation", "sampling",
    "conversion", "min_separation", "mechanism", "max_participations", "population", "cohort", "rounds",
    "certified_epsilon", "cross_check", "tradeoffs", "days_to_finish", "bytes_per_phone_month",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path))


def test_json_of_a_bounded_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*BLT, "--epsilon", "3", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert set(body) >= KEYS
    assert (body["epsilon"], body["neighboring_relation"], body["min_separation"]) == (3.0, "zero_out", 20)
    assert (body["max_participations"], body["event"]["kind"], body["event_count"]) == (5, "matrix_gaussian", 1)
    assert body["curve"][0] == {"rounds": 0, "epsilon": 0.0}
    assert body["curve"][-1] == {"rounds": 100, "epsilon": body["certified_epsilon"]}
    # 500 / 20,000 / (1 - 500 x 20 / 20,000) days a round
    assert body["days_to_finish"] == pytest.approx(100 * 0.05)
    assert body["bytes_per_phone_month"] == 2.5 * 12 * 1_000_000
    assert {row["kind"] for row in body["tradeoffs"]} == {"size", "mechanism", "assumption", "tuning"}


def test_json_of_a_sampled_plan_has_nulls_for_what_it_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    main([*SIZES, "--noise-multiplier", "4", "--json", "--parameters", "1e3"])
    body = json.loads(capsys.readouterr().out)
    assert [body[name] for name in ("rho", "mu", "min_separation", "max_participations")] == [None] * 4
    assert (body["noise_multiplier"], body["sampling_probability"]) == (4.0, 0.025)
    assert body["epsilon"] == body["certified_epsilon"] > 0


def test_for_people(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / "plan.png"
    main([*BLT, "--epsilon", "3", "--picture", str(picture)])
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "epsilon 3.00 (certified 3.00) at delta 1e-06",
        "Days to finish: 5.0 days. 100 rounds x 0.05 days: 500 phones a round / 20,000 check-ins a day",
        "2.5 participations a month x 1,000,000 parameters",
        "What each choice costs",
        "per device (zero-out)",
    ):
        assert words in text
    assert "compares methods" not in text.lower()
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_small_population_only_compares_methods(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--population", "900", "--cohort", "90", "--rounds", "5", "--delta", "1e-5", "--noise-multiplier", "9"]
    main(small)
    assert "Compares methods; not a guarantee to publish." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*SIZES, "--noise-multiplier", "0"], "noise_multiplier=0.0: .*without noise no finite epsilon"),
        ([*SIZES, "--noise-multiplier", "0", "--epsilon", "3"], "noise_multiplier=0.0"),
        ([*SIZES, "--noise-multiplier", "1", "--epsilon", "3"], "exactly one"),
        (SIZES, "exactly one"),
        ([*SIZES, "--epsilon", "nan"], "epsilon=nan"),
        ([*SIZES, "--epsilon", "-1"], "epsilon=-1.0"),
        ([*SIZES, "--epsilon", "3", "--delta", "5e-5"], "below 1/population"),
        ([*SIZES, "--epsilon", "3", "--cohort", "20001"], "cohort.size=20001"),
        ([*SIZES, "--epsilon", "3", "--population", "-7"], "population=-7"),
        ([*SIZES, "--epsilon", "3", "--mechanism", "laplace"], "gaussian, blt, banded, tree"),
        ([*SIZES, "--epsilon", "3", "--mechanism", "blt"], "min_separation: blt needs it"),
        ([*BLT, "--epsilon", "3", "--min-separation", "0"], "min_separation=0"),
        ([*BLT, "--epsilon", "3", "--max-participations", "6"], "room for 5 at most"),
        ([*SIZES, "--epsilon", "3", "--checkins-per-day", "nan"], "checkins-per-day=nan"),
        ([*SIZES, "--epsilon", "3", "--parameters", "0"], "parameters=0"),
        ([*SIZES, "--epsilon", "3", "--picture", "plan.gif"], "end with .png"),
        ([*SIZES, "--epsilon", "3", "--picture", "/nowhere/plan.png"], "no folder /nowhere"),
    ],
)
def test_bad_input_is_named_and_exits_with_2(arguments: list[str], words: str) -> None:
    with pytest.raises(FedlearnError, match=words) as caught:
        main(arguments)
    assert exit_status(caught.value) == 2


@pytest.mark.parametrize("value", ["nan", "1.5", "inf", "many"])
def test_sizes_are_whole_numbers(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*SIZES, "--epsilon", "3", "--rounds", value])
    assert caught.value.code == 2
    assert "--rounds" in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "plan.png").mkdir()
    with pytest.raises(OutOfRange, match=r"--picture .*cannot be written"):
        main([*BLT, "--epsilon", "3", "--picture", str(tmp_path / "plan.png")])


def test_nothing_of_the_lab_is_loaded() -> None:
    code = (
        "import sys; from fedlearn.report.plan_command import main;"
        f"main({[*BLT, '--noise-multiplier', '20', '--json']!r});"
        "sys.exit(any(name in sys.modules for name in ('torch', 'flwr', 'hydra', 'sqlalchemy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_days_where_the_separation_leaves_nobody_free() -> None:
    settings = PrivacySettings(delta=1e-6, l2_clip_norm=1.0, noise_multiplier=20.0, min_separation=40)
    full = make_plan(settings, population=20_000, rounds=100, cohort=500)
    # 40 rounds last until the last of 20,000 phones checked in: ln 20,000 + 0.577 days
    assert days_to_finish(full, 20_000).value == pytest.approx(100 * 10.48 / 40, rel=1e-3)
    roomy = make_plan(settings, population=20_000, rounds=100, cohort=50)
    assert days_to_finish(roomy, 20_000).value == pytest.approx(100 * 50 / 20_000 / 0.9)
    assert days_to_finish(roomy, 10_000).value == pytest.approx(2 * days_to_finish(roomy, 20_000).value)


def test_traffic_of_a_run_shorter_than_a_month_is_the_whole_run() -> None:
    settings = PrivacySettings(delta=1e-6, l2_clip_norm=1.0, noise_multiplier=20.0, min_separation=40)
    plan = make_plan(settings, population=20_000, rounds=100, cohort=50)
    assert bytes_per_phone_month(plan, 1000, 20_000).value == 0.25 * 1000 * 12
    # a thousandth of the check-ins: 278 days, of which a month is 10.8 %
    slow = bytes_per_phone_month(plan, 1000, 20)
    assert slow.value == pytest.approx(0.25 * 1000 * 12 * 0.108, abs=1)


@pytest.mark.parametrize(("value", "text"), [(0, "0 B"), (999, "999 B"), (12e6, "12 MB"), (2.394e9, "2.39 GB")])
def test_bytes(value: float, text: str) -> None:
    assert bytes_text(value) == text


def test_the_option_names_its_field() -> None:
    with pytest.raises(OutOfRange, match=r"privacy\.l2_clip_norm=-1.0"):
        main([*SIZES, "--epsilon", "3", "--clip", "-1"])


def test_the_page_shows_what_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text(encoding="utf-8")
    command = page.split("```bash\n")[1].split("```")[0].replace("\\\n", " ")
    monkeypatch.setenv("COLUMNS", "80")
    main(shlex.split(command)[2:])
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    assert page.split("```text\n")[1].split("\n```")[0].splitlines() == printed
