"""The second implementation passes the kit's numeric part, and agrees with the first bit for bit on random talk."""

from __future__ import annotations

import ast
import base64
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from fedlearn.catalogue import Catalogue, Item
from fedlearn.clip import clip_l2
from fedlearn.features import CatalogueIndex, make_query, match_all
from fedlearn.features.match import COLUMN, FEATURES
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.proto import conformance_pb2 as pb
from fedlearn.proto import conformance_pb2_grpc as rpc
from fedlearn.rng import simulation_rng
from fedlearn.signals import Direction, Message, Session
from fedlearn_client.cli import main
from fedlearn_client.conformance.papers import FIXTURES

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
_spec = importlib.util.spec_from_file_location("tiny_pair", HERE / "tiny_pair.py")
assert _spec is not None
assert _spec.loader is not None
pairs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(pairs)
tiny = pairs.tiny


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server, port = tiny.serve("127.0.0.1:0")
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def town() -> Any:
    return pairs.city(seed=7)


@pytest.fixture(scope="module")
def pair(town: Any) -> Any:
    return pairs.Pair(town.catalogue)


# --- the kit ----------------------------------------------------------------------------------------------------------


def test_it_passes_the_numeric_part_of_the_kit(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["conformance", "--target", address, "--only", "numbers", "--complete", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [one for one in report["cases"] if one["verdict"] != "passed"] == []
    assert status == 0
    parts = {one["id"].partition(".")[0] for one in report["cases"]}
    assert parts == {"query", "rows", "update", "contribute", "rank", "guard"}
    assert report["passed"] > 130


def test_one_that_does_not_hear_a_no_fails(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    monkeypatch.setattr(tiny, "negated", lambda text: [False] * (len(text) + 1))
    assert main(["conformance", "--target", address, "--only", "query"]) == 1
    assert "failed      query.negation" in capsys.readouterr().out


SOME_MISTAKES = [0, 30, 57, 104, 131]


def test_the_kit_finds_small_mistakes() -> None:
    """``tests/long`` tries them all."""
    mutants = pairs.load("tiny_mutants")
    assert mutants.first_failure(mutants.mutant("import math", "import math")) is None
    for place in SOME_MISTAKES:
        old, new = mutants.MUTANTS[place]
        assert mutants.first_failure(mutants.mutant(old, new)) is not None, (old, new)


def test_it_serves_as_a_program_of_its_own_without_fedlearn(tmp_path: Path) -> None:
    """Its process loads nothing of fedlearn but generated messages, and no numpy."""
    code = (
        "import runpy, sys, json\n"
        f"runpy.run_path({str(HERE / 'tiny_device.py')!r}, run_name='tiny')\n"
        "kept = {'fedlearn', 'fedlearn_client', 'numpy'}\n"
        "print(json.dumps([name for name in sys.modules if name.split('.')[0] in kept]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    stubs = {"conformance_pb2", "conformance_pb2_grpc", "device_pb2"}
    assert set(json.loads(done.stdout)) <= {"fedlearn", "fedlearn.proto", *(f"fedlearn.proto.{name}" for name in stubs)}
    where = f"unix:{os.path.relpath(tmp_path)}/s"
    process = subprocess.Popen([sys.executable, str(HERE / "tiny_device.py"), where])
    try:
        with grpc.insecure_channel(where) as channel:
            case = pb.Case(load_catalogue=(FIXTURES / "catalogue.json").read_bytes())
            reply = rpc.NumericsStub(channel).Answer(case, wait_for_ready=True, timeout=60)
    finally:
        process.terminate()
        process.wait(timeout=60)
    assert reply.index_digest == json.loads((FIXTURES / "vectors.json").read_bytes())["index_digest"]


def test_it_imports_nothing_of_fedlearn_but_the_messages() -> None:
    source = (HERE / "tiny_device.py").read_text(encoding="utf-8")
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "fedlearn.proto" else {
                str(node.module)
            }  # fmt: skip
        elif isinstance(node, ast.Name):
            assert node.id not in {"__import__", "exec", "eval"}
    ours = {name for name in names if name.startswith("fedlearn")}
    assert ours == {f"fedlearn.proto.{name}" for name in ("conformance_pb2", "conformance_pb2_grpc", "device_pb2")}
    assert {name.partition(".")[0] for name in names} - {"fedlearn", "grpc"} <= sys.stdlib_module_names
    assert "importlib" not in source


def test_other_models_are_not_served_and_nonsense_is_refused(address: str) -> None:
    plan = json.loads((FIXTURES / "plan.json").read_bytes())
    other = json.dumps({**plan, "model": "two_tower"}).encode()
    private = {**plan, "training": {**plan["training"], "example_privacy": {"noise_multiplier": 1, "l2_clip_norm": 1}}}
    with grpc.insecure_channel(address) as channel:
        stub = rpc.NumericsStub(channel)
        stub.Answer(pb.Case(load_catalogue=(FIXTURES / "catalogue.json").read_bytes()))
        span = pairs.device_pb2.Span(start=2, end=9)
        outside = pairs.device_pb2.MessageSignal(
            text="abc", direction=pairs.device_pb2.DIRECTION_OUTGOING, foreign_spans=[span]
        )
        for case, code in (
            (pb.Case(local_update=pb.LocalUpdate(plan=other)), "UNIMPLEMENTED"),
            (pb.Case(local_update=pb.LocalUpdate(plan=json.dumps(private).encode())), "UNIMPLEMENTED"),
            (pb.Case(rank=pb.Rank(plan=other)), "UNIMPLEMENTED"),
            (pb.Case(), "UNIMPLEMENTED"),
            (pb.Case(load_catalogue=b"{"), "INVALID_ARGUMENT"),
            (pb.Case(make_query=pb.MakeQuery(messages=[outside])), "INVALID_ARGUMENT"),
            (pb.Case(match_rows=pb.MatchRows(query=[9, 9, 9, 9], candidates=[0])), "INVALID_ARGUMENT"),
            (pb.Case(verdict=pb.Verdict(situation="{}")), "INVALID_ARGUMENT"),
        ):
            with pytest.raises(grpc.RpcError) as refused:
                stub.Answer(case)
            assert refused.value.code().name == code, case


# --- side by side -----------------------------------------------------------------------------------------------------


def test_the_tables_are_those_of_the_code() -> None:
    """``python tests/conformance/feature_tables.py`` writes them anew."""
    tables = pairs.load("feature_tables")
    assert tables.FILE.read_bytes() == tables.content()


def test_columns_need_what_they_need() -> None:
    assert [(spec.name, set(spec.needs)) for spec in FEATURES] == list(tiny.NEEDS.items())


def test_three_hundred_sessions_of_the_city(pair: Any, town: Any) -> None:
    """Queries are equal, and features too, to the last bit: 1 step is left to other platforms' logarithms."""
    for number, session in enumerate(pairs.sentences(town, 300)):
        assert pair.same_query(session), session.group
        if number % 6 == 0:
            assert pair.farthest(session) <= 1, session.group


def test_three_hundred_sessions_that_nobody_would_write(pair: Any, town: Any) -> None:
    found = 0
    for number, session in enumerate(pairs.hostile(pair, town, 300, seed=1)):
        assert pair.same_query(session), [(m.text, m.foreign_spans) for m in session.messages]
        found += bool(make_query(session, pair.index).wishes[0] >= 0)
        if number % 12 == 0:
            assert pair.farthest(session) <= 1
    assert found > 30, "the sessions say something"


@pytest.mark.parametrize("name", ["stem", "negated", "renewals", "aged", "in_digits"])
def test_a_difference_would_be_found(name: str, pair: Any, town: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "stem": lambda word: word,
        "negated": lambda text: [False] * (len(text) + 1),
        "renewals": lambda text, values, places: set(),
        "aged": lambda said: [(0, message) for message in reversed(list(said)) if not message.empty],
        "in_digits": lambda text: text,
    }
    monkeypatch.setattr(tiny, name, wrong[name])
    assert not all(pair.same_query(session) for session in pairs.hostile(pair, town, 300, seed=1))


@pytest.mark.parametrize("price", [1620.0, 7956.0, 12967.0, 142.95, 809.5, 4.88, 100.0])
def test_a_price_at_its_bound_is_inside(price: float) -> None:
    """Two functions for one logarithm once put some of these outside, by 2e-15."""
    index = CatalogueIndex.build(Catalogue("one", "restaurant", (Item("restaurant", "A", price=price),)))
    for text in (f"under {price:g} yuan", f"over {price:g} yuan", f"{price:g}-{price:g}元"):
        session = Session((Message(text, Direction.OUTGOING),), (), 0, "price")
        query = make_query(session, index)
        assert price in [pytest.approx(float(bound), rel=1e-6) for bound in query.wishes[:2]], text
        assert match_all(query, index)[0, COLUMN["price_fit"]] == 1.0, text
        assert (
            pairs.Pair(Catalogue("one", "restaurant", (Item("restaurant", "A", price=price),))).farthest(session) == 0
        )


# --- golden files -----------------------------------------------------------------------------------------------------


def test_golden_features() -> None:
    golden = json.loads((GOLDEN / "features.json").read_text(encoding="utf-8"))
    for text in golden["texts"]:
        assert tiny.normalise(text["raw"]) == text["normalised"]
        assert [list(found) for found in tiny.terms(text["normalised"])] == text["terms"]


def test_golden_vectors_of_a_bundle() -> None:
    golden = json.loads((FIXTURES / "golden.json").read_bytes())
    plan = json.loads((FIXTURES / "plan.json").read_bytes())
    index = tiny.Index(golden["catalogue"].encode())
    assert index.digest == golden["index_digest"]
    for session in golden["sessions"]:
        texts = [golden["texts"][at] for at in session["texts"]]
        messages = [
            pairs.device_pb2.MessageSignal(
                text=text["text"],
                direction=pairs.device_pb2.DIRECTION_OUTGOING,
                foreign_spans=[pairs.device_pb2.Span(start=a, end=b) for a, b in text["foreign_spans"]],
            )
            for text in texts
        ]
        occasion = pb.MakeQuery(messages=messages, earlier=[pb.Choice(item=i, app=a) for i, a in session["earlier"]])
        assert tiny.make_query(occasion, index) == session["query"]
        columns = tiny.Matcher(session["query"], index).columns
        for use in session["uses"]:
            granted = set(use["sources"])
            found = np.array([columns[n] if tiny.NEEDS[n] <= granted else [0.0] * index.n for n in plan["features"]])
            assert np.abs(found.T - array(use["features"])).max() <= 1e-6
    for case in golden["clip"]:
        terms = plan["mechanism"]
        asked = pb.Contribute(
            delta=array(case["values"]).tolist(), l2_clip_norm=terms["l2_clip_norm"], grid_step=terms["grid_step"]
        )
        reply = tiny.contribute(asked)
        assert (None if reply.refusal else list(reply.values)) == case["grid"]


def array(body: Any) -> Any:
    return np.frombuffer(base64.b64decode(body["data"]), body["dtype"]).reshape(body["shape"])


def test_golden_schedules() -> None:
    for case in json.loads((GOLDEN / "schedule.json").read_text(encoding="utf-8"))["schedules"]:
        key = case["seed"], case["round"], case["phone"], "shuffle"
        drawn = tiny.uniforms(*key)
        assert [next(drawn) for _ in case["uniforms"]] == case["uniforms"]
        size = case["batch_size"]
        batches = [[*rows, *[-1] * size][:size] for rows in tiny.schedule(case["examples"], case, tiny.uniforms(*key))]
        assert batches == case["order"]


def test_uniforms_past_the_first_block() -> None:
    drawn = tiny.uniforms(2**63 - 1, -1, "手机", "negatives")
    expected = simulation_rng(2**63 - 1, -1, "手机", "negatives").random(1000)
    assert [next(drawn) for _ in range(1000)] == expected.tolist()


def test_contributions_agree_and_keep_the_bound() -> None:
    """Exact arithmetic here, f64 there: at most one place apart, and seldom."""
    rng = np.random.default_rng(5)
    apart = 0
    for size in (1, 2, 23, 300):
        for scale in (1e-9, 0.1, 1.0, 30.0, 1e180, 1e-180):
            clip = float(rng.uniform(0.1, 2.0))
            delta, step = rng.standard_normal(size) * scale, grid_step(clip)
            asked = pb.Contribute(delta=delta.tolist(), l2_clip_norm=clip, grid_step=step)
            found = np.array(tiny.contribute(asked).values)
            off = np.abs(found - to_grid(clip_l2(delta, clip).values, step))
            assert off.max() <= 1
            apart += int(off.sum())
            assert sum(Fraction(int(value)) ** 2 for value in found) * Fraction(step) ** 2 <= Fraction(clip) ** 2
    assert apart <= 2
