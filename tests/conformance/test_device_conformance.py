"""The conformance kit: the daemon passes, devices with one fault fail in the right cases, fixtures are up to date."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from fedlearn.errors import ConfigError, OutOfRange, UnknownSetting
from fedlearn_client.cli import main
from fedlearn_client.conformance import behaviour, cases, situations
from fedlearn_client.conformance.callers import Callers, Entry, read_callers
from fedlearn_client.conformance.cases import NotServed, Outcome, Verdict, in_part
from fedlearn_client.conformance.kit import NUMBERS, kit
from fedlearn_client.conformance.lines import Direct
from fedlearn_client.conformance.numbers import Numbers
from fedlearn_client.conformance.papers import FIXTURES
from fedlearn_client.conformance.phone import Phone


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_of_kit", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


wrong = load("wrong_devices")


def failed(outcomes: list[Outcome]) -> list[str]:
    assert all(one.verdict is not Verdict.NOT_SERVED for one in outcomes), outcomes
    return [one.id for one in outcomes if one.verdict is Verdict.FAILED]


def ask(callers: Callers, parts: tuple[str, ...]) -> list[Outcome]:
    return [one for part in parts for one in kit(callers, callers.target, time.time(), part)]


# --- the right device -------------------------------------------------------------------------------------------------


def test_the_daemon_passes_every_case(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """In this process: relay, door, services, store and guard are the real ones; the worker is no process."""
    with wrong.device() as callers:
        file = wrong.callers_file(callers, tmp_path / "callers.json")
        status = main(["conformance", "--target", callers.target, "--callers", str(file), "--json", "--complete"])
    report = json.loads(capsys.readouterr().out)
    assert [one for one in report["cases"] if one["verdict"] != "passed"] == []
    assert (status, report["failed"], report["not_served"]) == (0, 0, 0)
    assert report["passed"] == len(report["cases"]) > 250
    parts = Counter(one["id"].partition(".")[0] for one in report["cases"])
    assert set(parts) > NUMBERS
    assert parts["consent"] > 20
    assert parts["guard"] > 50


def test_a_second_run_says_that_the_target_is_not_fresh() -> None:
    with wrong.device() as callers:
        assert failed(ask(callers, ("fresh", "withdraw.receipt"))) == []
        # documents of a later moment are newer, and taken
        again = list(kit(callers, callers.target, time.time() + 2, "fresh"))
        assert failed(again) == ["fresh.off", "fresh.nothing"]
        assert "is this target fresh?" in again[0].came
        assert failed(list(kit(callers, callers.target, time.time() + 4, "status"))) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="callers are other users: only root can become them")
def test_the_daemon_passes_as_processes_of_several_users(capsys: pytest.CaptureFixture[str]) -> None:
    """``tests/long`` asks every case so."""
    with served(capsys) as folder:
        target = ["--target", f"unix:{folder}/s", "--callers", f"{folder}/callers.toml", "--complete"]
        for part in ("guard", "query.chinese", "consent.no_trace", "consent.watch", "stranger", "withdraw.receipt"):
            assert main(["conformance", *target, "--only", part]) == 0, capsys.readouterr().out
        said = capsys.readouterr().out
    assert "passed      consent.no_trace" in said
    assert "failed     " not in said


class served:  # noqa: N801 - a context manager
    """A daemon by the command line, in a folder of ``--prepare``."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kit-")
        self._capsys = capsys

    def __enter__(self) -> Path:
        folder = Path(self._folder.name)
        folder.chmod(0o755)
        assert main(["conformance", "--prepare", str(folder)]) == 0
        assert (folder / "root.key.pub").read_text().strip() in self._capsys.readouterr().out
        code = "import sys; from fedlearn_client.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "serve", "--settings", str(folder / "device.toml"), "--conformance"]
        self._daemon = subprocess.Popen(command, stderr=subprocess.PIPE)
        began = time.monotonic()
        while not (folder / "s").exists():
            assert self._daemon.poll() is None
            assert time.monotonic() - began < 60
            time.sleep(0.02)
        return folder

    def __exit__(self, *_: object) -> None:
        self._daemon.terminate()
        _, errors = self._daemon.communicate(timeout=60)
        self._folder.cleanup()
        assert (self._daemon.returncode, errors) == (0, b"")


# --- wrong devices ----------------------------------------------------------------------------------------------------


def names(faults: Any) -> list[str]:
    return [fault.name for fault in faults]


def check(fault: Any, outcomes: list[Outcome]) -> None:
    found = failed(outcomes)
    assert set(fault.fails) <= set(found), found
    elsewhere = [one for one in found if not any(in_part(one, part) for part in (*fault.fails, *fault.may_fail))]
    assert elsewhere == []
    assert len(found) < len(outcomes)
    assert all(one.expected and one.came for one in outcomes if one.verdict is Verdict.FAILED)


@pytest.mark.parametrize("fault", wrong.WRONG_NUMBERS, ids=names(wrong.WRONG_NUMBERS))
def test_wrong_numbers_are_found(fault: Any) -> None:
    with wrong.numbers(fault.break_it) as address:
        check(fault, ask(Callers(address), fault.asked))


@pytest.mark.parametrize("fault", wrong.WRONG_BEHAVIOUR, ids=names(wrong.WRONG_BEHAVIOUR))
def test_wrong_behaviour_is_found(fault: Any) -> None:
    with wrong.device(fault.break_it) as callers:
        check(fault, ask(callers, fault.asked))


# --- what cannot be asked ---------------------------------------------------------------------------------------------


def test_what_is_not_served_is_neither_passed_nor_failed(capsys: pytest.CaptureFixture[str]) -> None:
    with wrong.numbers() as address:
        target = ["conformance", "--target", address]
        assert main([*target, "--only", "query"]) == 0
        assert main([*target, "--only", "consent"]) == 1  # nothing passed
        assert "because the kit has no keys" in capsys.readouterr().out
        assert main([*target, "--only", "roles.Consent.List"]) == 1
        assert "the callers file does not say how to connect as chat" in capsys.readouterr().out
        callers = Callers(address, {name: Entry() for name in ("chat", "surface", "settings", "system", "stranger")})
        outcomes = list(kit(callers, address, time.time(), "stranger"))
        callers.close()
        assert {one.verdict for one in outcomes} == {Verdict.NOT_SERVED}
        assert {one.came.partition(" ")[2] for one in outcomes} == {"is not served"}


def test_nobody_at_the_address(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["conformance", "--target", f"unix:{tmp_path}/none", "--only", "contribute"]) == 1
    assert "nobody answers" in capsys.readouterr().out


def test_a_case_that_is_not_served_fails_a_complete_run(tmp_path: Path) -> None:
    with wrong.device() as callers:
        most = replace(callers, entries={name: one for name, one in callers.entries.items() if name != "chat"})
        file = wrong.callers_file(most, tmp_path / "callers.json")
        target = ["conformance", "--target", callers.target, "--callers", str(file), "--only", "roles"]
        assert main(target) == 0
        assert main([*target, "--complete"]) == 1


def test_only_a_test_build_answers_with_numbers() -> None:
    with wrong.device(conformance=False) as callers:
        outcomes = ask(callers, ("contribute.above", "query.chinese", "guard.no_status"))
    assert {one.verdict for one in outcomes} == {Verdict.NOT_SERVED}


def test_only_root_becomes_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    callers = Callers("unix:/nowhere", {"chat": Entry(uid=54321), "other": Entry(uid=12345)})
    with pytest.raises(NotServed, match="only root can call as uid 54321"):
        callers.line("chat")
    assert isinstance(callers.line("other"), Direct)
    callers.close()


def test_a_broken_reply_fails_its_case_alone() -> None:
    def broken() -> None:
        raise ValueError("no message")

    found = list(cases.run([cases.Case("a", "A.", broken), cases.Case("b", "B.", lambda: None)]))
    assert [one.verdict for one in found] == [Verdict.FAILED, Verdict.PASSED]


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("[nobody]\nuid = 5", UnknownSetting, "nobody"),
        ("[chat]\nport = 5", UnknownSetting, "chat.port"),
        ("chat = 5", OutOfRange, "chat"),
        ("[chat]\nuid = -1", OutOfRange, "chat.uid"),
        ("[chat]\nuid = true", OutOfRange, "chat.uid"),
        ("[chat]\naddress = ''", OutOfRange, "chat.address"),
        ("keys = 5", OutOfRange, "keys"),
        ("[chat", ConfigError, "not TOML"),
    ],
)
def test_a_wrong_callers_file_is_named(text: str, kind: type[ConfigError], words: str, tmp_path: Path) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(text)
    with pytest.raises(kind, match=words):
        read_callers(path, "unix:/x")
    assert main(["conformance", "--target", "unix:/x", "--callers", str(path)]) == 2


def test_wrong_arguments(tmp_path: Path) -> None:
    assert main(["conformance"]) == 2
    assert main(["conformance", "--target", "unix:/x", "--only", "everything"]) == 2
    assert main(["conformance", "--target", "unix:/x", "--callers", str(tmp_path / "none.toml")]) == 2
    (tmp_path / "c.toml").write_text('keys = "nowhere"')
    assert main(["conformance", "--target", "unix:/x", "--callers", str(tmp_path / "c.toml")]) == 2
    (tmp_path / "file").write_text("")
    assert main(["conformance", "--prepare", str(tmp_path / "file")]) == 2


def test_prepare_keeps_keys_and_hides_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "kit"
    assert main(["conformance", "--prepare", str(folder)]) == 0
    before = {path.name: path.read_bytes() for path in (folder / "keys").iterdir()}
    assert main(["conformance", "--prepare", str(folder)]) == 0
    assert {path.name: path.read_bytes() for path in (folder / "keys").iterdir()} == before
    assert (folder / "keys").stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in (folder / "keys").iterdir()} == {0o600}
    said = capsys.readouterr().out
    assert all(secret.decode().strip() not in said for secret in before.values())
    assert read_callers(folder / "callers.toml", "unix:/x").entries["chat"].uid == 21001


# --- cases and fixtures -----------------------------------------------------------------------------------------------


def every_case() -> Iterator[cases.Case]:
    yield from Numbers(Direct("unix:/nowhere")).cases()
    yield from behaviour.cases(Phone(Callers("unix:/nowhere"), None))


def test_every_case_has_an_id_of_its_own_and_a_sentence() -> None:
    found = list(every_case())
    assert [name for name, count in Counter(case.id for case in found).items() if count > 1] == []
    for case in found:
        assert case.sentence.endswith("."), case
        assert case.sentence[0].isupper(), case


def near(found: Any, expected: Any) -> bool:
    """Equal, but for the last digits of floats, which another platform may compute otherwise."""
    if isinstance(expected, dict) and expected.get("dtype") == "<f4":
        arrays = [np.frombuffer(base64.b64decode(one["data"]), "<f4") for one in (found, expected)]
        return found["shape"] == expected["shape"] and np.allclose(*arrays, rtol=1e-6, atol=1e-6, equal_nan=True)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    if isinstance(expected, float):
        return bool(abs(found - expected) <= 1e-6)
    return bool(found == expected)


def test_fixtures_are_what_the_exporter_writes() -> None:
    """``python tests/conformance/kit_fixtures.py`` writes them anew."""
    made = load("kit_fixtures").fixtures()
    assert {path.name for path in FIXTURES.iterdir()} == {*made, "catalogue.json"}
    for name, data in made.items():
        shipped = (FIXTURES / name).read_bytes()
        if name in {"golden.json", "vectors.json"}:
            assert near(json.loads(data), json.loads(shipped)), name
        else:
            assert data == shipped, name
    altered = json.loads(made["vectors.json"])
    altered["update"][1]["delta"]["data"] = altered["update"][2]["delta"]["data"]
    assert not near(altered, json.loads(made["vectors.json"]))


def test_contributions_keep_the_bound_in_exact_arithmetic() -> None:
    """And none lies where two right implementations could round to different places."""
    vectors = json.loads((FIXTURES / "vectors.json").read_bytes())["contribute"]
    assert sum(one["grid"] is None for one in vectors) == 3
    for one in vectors:
        if one["grid"] is None:
            continue
        delta = [Fraction(float.fromhex(value)) for value in one["delta"]]
        bound, step = Fraction(one["clip"]), Fraction(one["grid_step"])
        assert sum((k * step) ** 2 for k in one["grid"]) <= bound**2, one["id"]
        norm = root(sum(value**2 for value in delta))
        if norm < bound * Fraction(99, 100):
            assert one["grid"] == [int(value / step) for value in delta], one["id"]
        elif norm > bound * Fraction(101, 100):
            exact = [value * bound / norm / step for value in delta]
            assert one["grid"] == [int(value) for value in exact], one["id"]
            assert all(Fraction(1, 1000) < abs(value) % 1 < Fraction(999, 1000) for value in exact), one["id"]


def root(value: Fraction) -> Fraction:
    """The square root of a number, to 300 bits behind its first."""
    shift = 2 * (300 + max(0, value.denominator.bit_length() - value.numerator.bit_length()))
    return Fraction(math.isqrt((value.numerator << shift) // value.denominator), 1 << shift // 2)


def test_situations_are_whole() -> None:
    """A port merges nothing: every question has everything."""
    found = situations.situations()
    assert len({one.id for one in found}) == len(found) > 50
    for one in found:
        for question in one.body["asked"]:
            if "event" not in question:
                assert question.keys() == {"now", "policy", "plan", "bundle", "status", "task"}
                assert "mechanism" in question["task"]
                assert len(question["task"]["plan_digest"]) == 64
        assert one.least <= one.rho
