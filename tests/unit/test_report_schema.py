"""The files of a run: strict, versioned, documented, and honest about what is not protected."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.errors import DataCorrupt, DataMissing, OutOfRange, Reason
from fedlearn.report.rounds import Evaluation, RoundRecord, read_rounds, round_line, write_rounds
from fedlearn.report.schema import decode, dumps, encode, field_types, nested, parse
from fedlearn.report.schema_page import JSON_SCHEMA_FILE, json_schema, markdown
from fedlearn.report.summary import Expectation, FoldValue, Lift, MetricResult, Summary, read_summary, write_summary

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("report_examples", Path(__file__).with_name("report_examples.py"))
ex = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(ex)

finite = st.floats(allow_nan=False)
metric_results = st.builds(
    MetricResult,
    name=st.text(max_size=8),
    mean=finite,
    lo=st.none() | finite,
    hi=st.none() | finite,
    values=st.lists(st.builds(FoldValue, st.integers(), st.integers(0, 9), finite), max_size=3).map(tuple),
    protected=st.booleans(),
)
round_records = st.builds(
    RoundRecord,
    model=st.text(max_size=8),
    seed=st.integers(),
    fold=st.integers(0, 9),
    round=st.integers(0),
    step=st.integers(0),
    loss=st.none() | finite,
    cohort=st.integers(0),
    clipped_fraction=st.none() | st.floats(0, 1),
    signal_to_noise=st.none() | finite,
    clip=finite,
    update_norm=finite,
    epsilon=st.none() | finite,
    rejected=st.dictionaries(st.sampled_from(Reason), st.integers(1)),
    evaluation=st.lists(st.builds(Evaluation, st.text(max_size=6), finite), max_size=2).map(tuple),
    seconds=finite,
)


@pytest.mark.parametrize("privacy", [ex.gaussian(), ex.no_privacy()])
def test_a_summary_survives_its_file(tmp_path, privacy):
    run = ex.summary(privacy)
    write_summary(tmp_path / "summary.json", run)
    assert read_summary(tmp_path / "summary.json") == run
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(metric_results)
def test_any_metric_survives_json(metric):
    assert decode(MetricResult, json.loads(dumps(metric)), "f") == metric


@settings(derandomize=True, deadline=None, max_examples=60)
@given(round_records)
def test_any_round_survives_its_line(record):
    line = round_line(record)
    assert line.count("\n") == 1
    assert "NaN" not in line.replace(record.model, "")
    assert decode(RoundRecord, parse(line.encode(), "f"), "f") == record


def test_a_diverged_loss_is_still_strict_json():
    record = dataclasses.replace(ex.rounds(ex.summary(), 1)[0], loss=float("nan"), update_norm=float("inf"))
    data = json.loads(round_line(record), parse_constant=pytest.fail)
    assert (data["loss"], data["update_norm"]) == ("nan", "inf")


def _all_keys(data, at=()):
    """Paths of every key in a JSON value; the first item stands for its list."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield (*at, key)
            yield from _all_keys(value, (*at, key))
    elif isinstance(data, list) and data:
        yield from _all_keys(data[0], (*at, 0))


def _holder(data, path):
    for step in path[:-1]:
        data = data[step]
    return data


def test_every_missing_key_is_refused_by_name():
    whole = dumps(ex.summary())
    paths = list(_all_keys(json.loads(whole)))
    assert len(paths) > 90
    for path in paths:
        data = json.loads(whole)
        del _holder(data, path)[path[-1]]
        with pytest.raises(DataCorrupt, match=rf"run/summary\.json: missing key .*{path[-1]}"):
            decode(Summary, data, "run/summary.json")


def test_an_unknown_key_is_refused_by_name_at_every_depth():
    whole = dumps(ex.summary())
    for path in _all_keys(json.loads(whole)):
        data = json.loads(whole)
        _holder(data, path)["epsilonn"] = 1
        with pytest.raises(DataCorrupt, match=r"run/summary\.json: unknown key '.*epsilonn'"):
            decode(Summary, data, "run/summary.json")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("folds",), True),
        (("folds",), 1.0),
        (("seeds",), "0"),
        (("seeds", 0), None),
        (("task",), 3),
        (("privacy", "epsilon"), "3"),
        (("privacy", "mode"), "gausian"),
        (("privacy", "sampling"), []),
        (("models", 0, "protected"), 0),
        (("lifts", 1, "ok"), False),
        (("headline",), "no such row"),
        (("models", 1, "name"), "popularity"),
    ],
)
def test_a_wrong_value_is_refused(path, value):
    data = json.loads(dumps(ex.summary()))
    holder = _holder(data, path)
    holder[path[-1]] = value
    with pytest.raises(DataCorrupt, match="f: "):
        decode(Summary, data, "f")


def test_an_unreadable_or_other_version_is_named(tmp_path):
    path = tmp_path / "summary.json"
    with pytest.raises(DataMissing, match=r"summary\.json: no summary"):
        read_summary(path)
    with pytest.raises(DataMissing, match="no summary"):
        read_summary(tmp_path / "file" / "summary.json")
    for text in ("{", "[]", "\xff", '{"schema_version": NaN}', "3"):
        path.write_bytes(text.encode("latin-1"))
        with pytest.raises(DataCorrupt, match=r"summary\.json"):
            read_summary(path)
    path.write_text(dumps(dataclasses.replace(ex.summary(), schema_version=3)))
    with pytest.raises(DataCorrupt, match="schema_version: found 3, this version reads 2"):
        read_summary(path)


def test_a_summary_that_contradicts_itself_cannot_be_made():
    with pytest.raises(OutOfRange, match="headline='x'"):
        ex.summary(headline="x")


def test_a_value_that_is_no_record_is_a_programming_error():
    with pytest.raises(TypeError, match="set"):
        encode({1, 2})


@pytest.mark.parametrize(
    ("expectation", "lo", "hi", "ok"),
    [
        (Expectation.ZERO, -0.01, 0.01, True),
        (Expectation.ZERO, 0.0, 0.01, True),
        (Expectation.ZERO, 0.001, 0.01, False),
        (Expectation.POSITIVE, 0.001, 0.01, True),
        (Expectation.POSITIVE, 0.0, 0.01, False),
        (Expectation.OPEN, -1.0, 1.0, None),
    ],
)
def test_a_lift_is_judged_by_its_interval(expectation, lo, hi, ok):
    assert Lift("l", "HR@10", (lo + hi) / 2, lo, hi, "m", 10, expectation).ok is ok


def test_a_torn_last_line_is_dropped_and_no_other(tmp_path):
    path = tmp_path / "metrics.jsonl"
    records = ex.rounds(ex.summary(), 2)
    write_rounds(path, records)
    whole = path.read_bytes()
    assert read_rounds(path) == records
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for cut in (last, last + 1, last + 40, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_rounds(path) == records[:-1]
    path.write_bytes(whole[:40] + whole[50:])
    with pytest.raises(DataCorrupt, match=r"metrics\.jsonl:1: "):
        read_rounds(path)
    path.write_bytes(b"")
    assert read_rounds(path) == ()
    path.unlink()
    with pytest.raises(DataMissing, match=r"metrics\.jsonl"):
        read_rounds(path)


def test_a_torn_chinese_character_is_no_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    record = dataclasses.replace(ex.rounds(ex.summary(), 1)[0], model="餐厅")
    line = round_line(record).encode()
    path.write_bytes(line + line[: line.index("餐".encode()) + 1])
    assert read_rounds(path) == (record,)


PUBLIC = {
    ("FoldValue", "value"): "inside a MetricResult, which says it",
    ("Evaluation", "value"): "inside a RoundRecord, which says it",
    ("ModelRow", "epsilon"): "follows from the plan",
    ("AllPublished", "epsilon"): "follows from the plan",
    ("Sampling", "planned_rate"): "the plan",
    ("BoundedParticipation", "sensitivity"): "the plan",
    ("ExampleLevel", "epsilon"): "follows from the plan",
    ("ExampleLevel", "delta"): "the plan",
    **{("PrivacyRecord", k): "the plan" for k in ("epsilon", "delta", "noise_multiplier", "l2_clip_norm")},
}


def _records(cls):
    yield cls
    for hint in field_types(cls).values():
        for inner in nested(hint):
            yield from _records(inner)


def test_every_record_with_a_figure_of_the_devices_has_a_protected_field():
    for cls in set(_records(Summary)):
        figures = {k for k, hint in field_types(cls).items() if hint is float or hint == float | None}
        figures -= {name for record, name in PUBLIC if record == cls.__name__}
        assert not figures or "protected" in field_types(cls), (cls, figures)


def test_every_figure_of_the_devices_is_written_with_protected_false():
    seen = 0

    def walk(value):
        nonlocal seen
        if isinstance(value, dict):
            if {"mean", "lift", "value", "seconds"} & value.keys() and "seed" not in value and "key" not in value:
                seen += 1
                assert value["protected"] is False, value
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(json.loads(dumps(ex.summary())))
    assert seen == 7 * 3 + 3 + 2 + 4 + 1


def test_a_round_says_of_every_figure_whether_it_is_protected():
    private = next(r for r in ex.rounds(ex.summary(), 1) if r.epsilon is not None)
    plan = {"model", "seed", "fold", "round", "step", "epsilon"}
    assert set(private.protected) == set(field_types(RoundRecord)) - plan
    assert [k for k, v in private.protected.items() if v] == ["clip", "update_norm"]
    assert not any(dataclasses.replace(private, epsilon=None).protected.values())


def test_the_documentation_is_in_step_with_the_records():
    again = "run `python -m fedlearn.report.schema_page docs/summary-schema.md`"
    assert (ROOT / "docs/summary-schema.md").read_text(encoding="utf-8") == markdown(), again
    assert JSON_SCHEMA_FILE.read_text(encoding="utf-8") == json_schema(), again


def test_the_json_schema_accepts_and_refuses_what_the_loader_does():
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(json_schema())
    for privacy in (ex.gaussian(), ex.no_privacy()):
        data = json.loads(dumps(ex.summary(privacy)))
        jsonschema.validate(data, schema)
        data["privacy"]["extra"] = 1
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(data, schema)
