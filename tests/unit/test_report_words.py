"""What the outputs say: figures that never flatter, the terminal's tables, runs side by side."""

import dataclasses
import importlib.util
import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedlearn.errors import DataCorrupt, DataMissing, OutOfRange, UnknownSetting
from fedlearn.report import view
from fedlearn.report.command import main as compare_command
from fedlearn.report.compare import compare, load_run
from fedlearn.report.guarantee import (
    NOT_TO_PUBLISH,
    BoundedParticipation,
    Charges,
    Population,
    PrivacyMode,
    caveat_for,
    default_assurances,
    default_trusted,
    figure,
    guarantee_sentence,
)
from fedlearn.report.html import write_comparison
from fedlearn.report.summary import ModelKind, Setting
from fedlearn.report.tables import print_comparison, print_result_table

_spec = importlib.util.spec_from_file_location("report_examples", Path(__file__).with_name("report_examples.py"))
ex = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ex)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.0, "3.00"),
        (2.981, "2.99"),
        (2.990000000001, "2.99"),
        (9.999, "10.0"),
        (25.7, "25.7"),
        (0.0312, "0.0312"),
        (0.03121, "0.0313"),
        (1e-4, "1e-4"),
        (1.001e-4, "1.01e-4"),
        (9.999e-5, "1e-4"),
        (1e-10, "1e-10"),
        (634.2, "635"),
        (12345.0, "1.24e4"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_an_epsilon_is_printed_with_three_digits(value, text):
    assert figure(value) == text


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.floats(1e-12, 1e6))
def test_an_epsilon_is_never_rounded_down(value):
    shown = float(figure(value))
    assert value * (1 - 1e-7) <= shown <= value * 1.011


def test_the_factor_is_never_below_exp_epsilon():
    assert "at most a factor of 20.1, plus" in guarantee_sentence(3.0, 1e-5)
    assert "at most a factor of 4.61e299, plus" in guarantee_sentence(690.0, 1e-5)
    assert "at most a factor of e^691, plus" in guarantee_sentence(690.1, 1e-5)
    assert "at most a factor of e^4.43e5, plus" in guarantee_sentence(442_004.09, 1e-5)


def test_the_guarantee_names_epsilon_delta_unit_adjacency_and_factor():
    # e^3 = 20.0855..., rounded up.
    sentence = guarantee_sentence(3.0, 1e-4)
    for part in ("Epsilon 3.00", "delta 1e-4", "per device", "(add-or-remove)", "factor of 20.1", "plus 1e-4"):
        assert part in sentence
    assert "inf" not in guarantee_sentence(5000.0, 1e-4)
    for nothing in (guarantee_sentence(None, None), guarantee_sentence(3.0, None), guarantee_sentence(None, 1e-4)):
        assert nothing.startswith("NO PRIVACY GUARANTEE")
        assert "psilon" not in nothing


@pytest.mark.parametrize(
    ("devices", "delta", "caveat"),
    [
        (999, 1e-9, NOT_TO_PUBLISH),
        (1_000, 1e-4, None),
        (1_000, 1.01e-4, NOT_TO_PUBLISH),
        (63, 1e-3, NOT_TO_PUBLISH),
        (1_000_000, 1e-7, None),
        (1_000, None, None),
        (60, None, NOT_TO_PUBLISH),
    ],
)
def test_small_populations_and_large_deltas_carry_the_caveat(devices, delta, caveat):
    assert caveat_for(devices, delta) == caveat


def test_assurances_never_claim_proof_without_a_ledger():
    for charges, mode in ((None, PrivacyMode.GAUSSIAN), (Charges(3, 3, 0), PrivacyMode.NONE)):
        proven = default_assurances(mode, Population.SIMULATED, charges, 1.0).proven
        assert not any("psilon" in claim for claim in proven)
    moved = default_assurances(PrivacyMode.GAUSSIAN, Population.SIMULATED, Charges(3, 2, 1), 0.5, adaptive=True)
    assert "L2 norm 0.5 in the first round and later to the bound" in moved.enforced[0]
    private = default_assurances(PrivacyMode.GAUSSIAN, Population.ENROLLED, Charges(3, 2, 1), 0.5)
    assert "3 charges" in private.proven[0]
    assert private.enforced[0].startswith("The phone")


def test_a_superlink_is_the_operators_word_and_sees_sums():
    for mode, charges in ((PrivacyMode.NONE, None), (PrivacyMode.GAUSSIAN, Charges(3, 3, 0))):
        private = mode is not PrivacyMode.NONE
        alone, carried = (
            default_assurances(mode, Population.SIMULATED, charges, 1.0, relayed=relayed) for relayed in (False, True)
        )
        assert (alone.proven, alone.enforced) == (carried.proven, carried.enforced)
        added = [words for words in carried.word if words not in alone.word]
        assert all("SuperLink" in words and "proxy" in words for words in added)
        assert "until the database's files are overwritten" in added[-1]
        node, server, sees = default_trusted(mode, relayed=True)
        assert server == default_trusted(mode)[1]
        assert ("the key that draws a round's cohort" in node) is private
        assert "the proxy in front of it" in sees
        assert "until they are overwritten" in sees
        assert ("before their noise, and that key" in sees) is private
        assert not any("delivered." in words for words in (*carried.word, sees)), "bytes outlive the delivery"


def test_keys_that_others_hold_were_not_shown_to_nobody():
    """Every node and SuperLink have the key that draws the cohort: only that of the noise is nobody's."""
    charges, bounds = Charges(3, 3, 0), BoundedParticipation(2, 3, 1.0)
    (alone,) = _about("shown to nobody", charges)
    assert "keys of sampling and noise came from the operating system and were shown to nobody" in alone
    (carried,) = _about("shown to nobody", charges, relayed=True)
    assert "those of noise were shown to nobody. SuperLink, the proxy and every node hold the key that draws" in carried
    (bounded,) = _about("shown to nobody", charges, bounds, relayed=True)
    assert bounded.startswith("The noise came from the operating system, and its state was shown to nobody.")


def test_time_that_decides_which_parts_are_in_a_sum_is_said():
    (available,) = _about("nor how long its answer took", Charges(3, 3, 0))
    assert available.startswith("No node's failure depended on a device's data, nor")
    assert not _about("runtime.enough", Charges(3, 3, 0))
    (early,) = _about("runtime.enough", Charges(3, 3, 0), enough=0.75)
    assert early.startswith("runtime.enough=0.75: a round closed once that share of the parts had answered, so time")


def _about(words: str, charges: Charges, participation: BoundedParticipation | None = None, **more) -> list[str]:
    found = default_assurances(PrivacyMode.GAUSSIAN, Population.SIMULATED, charges, 1.0, participation, **more)
    return [line for line in found.word if words in line]


def test_the_verdict_names_the_strongest_control_and_never_a_reference():
    text = view.verdict(ex.summary())
    assert "HR@10 0.642, against 0.408 for BM25" in text
    assert "87 % of the gap from popularity to oracle" in text
    bare = ex.summary(gaps=(), models=(dataclasses.replace(view.headline_row(ex.summary()), metrics=()),))
    assert "nothing was measured" in view.verdict(bare)


def test_small_texts():
    assert view.decimal(None) == view.decimal(math.nan) == "–"
    assert (view.signed(-0.5, 1), view.signed(0.0, 1)) == ("−0.5", "+0.0")
    assert (view.interval(None, 1.0), view.interval(-0.1, 0.2, 1)) == ("", "−0.1 to 0.2")
    assert [view.seconds_text(s) for s in (7.26, 125.0, 3725.0)] == ["7.3 s", "2 min 05 s", "1 h 02 min"]


def _printed(show, *args, width=100):
    console = Console(file=io.StringIO(), width=width)
    show(*args[:1], console, *args[1:])
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_the_demo_table_ends_with_gap_epsilon_and_report(width):
    run = ex.summary()
    text = _printed(print_result_table, run, Path("runs/city/report.html"), width=width)
    # popularity, BM25, local-only, without privacy, epsilon 3, oracle
    rows = [text.index(hr) for hr in ("0.162", "0.408", "0.391", "0.668", "0.642", "0.712")]
    assert rows == sorted(rows)
    for part in ("HR@10", "NDCG@10", "MRR", "0.642", "0.627–0.657", "2.99", "simulation, not a deployment"):
        assert part.lower() in text.lower()
    flat = " ".join(text.split())
    assert "closes 0.87 (0.82–0.92) of the gap in HR@10 from popularity to oracle." in flat
    assert run.privacy.guarantee in flat
    assert "If all 5 models of this study were published: epsilon 9.23" in flat
    assert text.endswith("Report: runs/city/report.html\n")


def test_the_terminal_is_loud_without_privacy():
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system="standard")
    print_result_table(ex.summary(ex.no_privacy(60)), console)
    text = console.file.getvalue()
    assert "\x1b[1;37;41mNO PRIVACY GUARANTEE" in text
    assert NOT_TO_PUBLISH.capitalize() in text


def test_a_failed_placebo_is_said_aloud():
    run = ex.summary()
    bad = dataclasses.replace(run.lifts[1], lift=0.05, lo=0.02, hi=0.08)
    text = _printed(print_result_table, dataclasses.replace(run, lifts=(run.lifts[0], bad)))
    assert "Not as expected: placebo source +0.050 (0.020–0.080)." in text


def test_names_are_no_markup():
    run = ex.summary(task="[red]x[/red]")
    assert "[red]x[/red]" in _printed(print_result_table, run)


@pytest.fixture
def three_runs(tmp_path):
    runs = [(0.3, 0.444), (1.0, 0.582), (3.0, 0.612)]
    return [ex.run_dir(tmp_path, f"eps-{e}", ex.at_epsilon(e, q)) for e, q in runs]


def test_runs_are_put_side_by_side(three_runs):
    result = compare(three_runs)
    assert [(r.epsilon, r.metric("HR@10").mean) for r in result.rows if r.epsilon is not None] == [
        (0.3, 0.444),
        (1.0, 0.582),
        (3.0, 0.612),
    ]
    assert len(result.rows) == 6
    assert all(r.delta is None for r in result.rows if r.epsilon is None)
    assert {tuple(s.key for s in r.differs) for r in result.rows} == {("privacy.epsilon",)}
    assert result.groups() == ("chat to restaurant",)
    assert any("3 private models" in note for note in result.notes)
    data = json.loads(result.to_json())
    assert data["schema_version"] == 1
    assert data["rows"][0]["metrics"][0]["protected"] is False
    text = _printed(print_comparison, result)
    assert "eps-0.3" in text
    assert "0.429–0.459" in text
    assert "NO PRIVACY GUARANTEE" in text


def test_a_setting_that_only_one_run_has_differs(tmp_path):
    base = ex.summary()
    more = dataclasses.replace(base, settings=(*base.settings, Setting("client.epochs", "2")))
    rows = compare([ex.run_dir(tmp_path, "a", base), ex.run_dir(tmp_path, "b", more)]).rows
    assert [r.differs for r in rows[::2]] == [(Setting("client.epochs", "–"),), (Setting("client.epochs", "2"),)]


def test_other_data_is_another_group(tmp_path):
    base = ex.summary()
    other = dataclasses.replace(base, digests=dataclasses.replace(base.digests, data="ff" * 32), data="CrossWOZ val")
    result = compare([ex.run_dir(tmp_path / "x", "a", base), ex.run_dir(tmp_path / "y", "a", other)])
    assert len(result.groups()) == 2
    assert any("rank rows within a group only" in note for note in result.notes)
    assert len(set(result.run_names().values())) == 2
    assert "CrossWOZ val" in _printed(print_comparison, result)


def test_different_deltas_are_pointed_out(tmp_path):
    runs = [ex.run_dir(tmp_path, f"d{d:g}", ex.summary(ex.gaussian(3.0, d))) for d in (1e-4, 1e-3)]
    assert any("different deltas" in note for note in compare(runs).notes)


def test_what_is_no_run_is_refused_with_its_fix(tmp_path, three_runs):
    with pytest.raises(OutOfRange, match=r"runs=\[\]"):
        compare([])
    with pytest.raises(DataMissing, match="not a run directory; name a directory"):
        compare([three_runs[0], tmp_path / "absent"])
    with pytest.raises(DataMissing, match="not a run directory"):
        load_run(three_runs[0] / "summary.json")
    with pytest.raises(DataMissing, match=r"holds 3 runs and is none itself; name them, e\.g\. .*eps-0\.3"):
        load_run(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataMissing, match="resume the run first"):
        load_run(tmp_path / "empty")
    (three_runs[1] / "summary.json").write_text('{"schema_version": 7}')
    with pytest.raises(DataCorrupt, match=r"eps-1\.0/summary\.json: schema_version: found 7"):
        compare(three_runs)
    with pytest.raises(UnknownSetting, match=r"metric='HR@5': .* HR@10, NDCG@10"):
        compare(three_runs[:1], metric="HR@5")


def test_a_run_without_a_federated_model_has_nothing_to_compare(tmp_path):
    run = ex.summary(ex.no_privacy())
    rows = tuple(dataclasses.replace(m, kind=ModelKind.CONTROL) for m in run.models)
    with pytest.raises(OutOfRange, match="none holds a federated model"):
        compare([ex.run_dir(tmp_path, "a", dataclasses.replace(run, models=rows))])


def test_the_comparison_page_is_written(tmp_path, three_runs):
    page = tmp_path / "compare.html"
    write_comparison(page, compare(three_runs, metric="NDCG@10"))
    text = page.read_text(encoding="utf-8")
    assert "NDCG@10 against epsilon" in text
    assert "no privacy</text>" in text
    assert "privacy.epsilon=0.3" in text


def test_a_page_that_cannot_be_written_is_bad_input(tmp_path, three_runs):
    with pytest.raises(OutOfRange, match=r"--page .*cannot be written"):
        compare_command([*(str(run) for run in three_runs), "--page", str(tmp_path)])
