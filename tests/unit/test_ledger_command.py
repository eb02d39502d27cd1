"""``fedlearn ledger``, as an operator, an authority and a reviewer use it."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedlearn.cli import main
from fedlearn.ledger import LEDGER_FILE, Ledger, Planned
from fedlearn.ledger.export import HEADER
from fedlearn.ledger.tables import rounded_up
from fedlearn.privacy.events import PoissonGaussian

DIGEST = hashlib.sha256(b"x").hexdigest()
Cli = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Cli:
    def run(*arguments: str) -> tuple[int, str]:
        capfd.readouterr()
        status = main(["ledger", *arguments])
        captured = capfd.readouterr()
        return status, captured.out + captured.err

    return run


def make(cli: Cli) -> Path:
    """A shared ledger with a quota and a run of three releases."""
    assert cli("keygen", "authority.key")[0] == 0
    options = ("--population", "phones in one city", "--epsilon", "3", "--delta", "1e-6")
    status, said = cli(
        "create", "shared.sqlite", *options, "--kind", "enrolled", "--authority-key", "authority.key.pub"
    )
    assert status == 0, said
    status, said = cli("grant", "shared.sqlite", *QUOTA, "--epsilon", "2", "--authority-key", "authority.key")
    assert status == 0, said
    with Ledger.open("shared.sqlite") as ledger:
        account = ledger.open_run("run-1", "ranking", "2026", [Planned(PoissonGaussian(2.0, 0.01), 50)], DIGEST)
        for step in range(3):
            account.commit(account.charge(account.reserve(step, 0), DIGEST, DIGEST), DIGEST)
    return Path("shared.sqlite")


QUOTA = ("--purpose", "ranking", "--epoch", "2026")


def test_what_it_shows(cli: Cli) -> None:
    make(cli)
    status, said = cli("show", "shared.sqlite")
    assert status == 0
    for words in ("phones in one city", "run=run-1", "50 x poisson_gaussian", "published_digest=", "3 committed"):
        assert words in said
    status, said = cli("show", "shared.sqlite", "--json")
    bodies = [json.loads(line) for line in said.splitlines()]
    assert [body["sequence"] for body in bodies] == list(range(12))
    status, said = cli("budget", "shared.sqlite")
    assert status == 0
    assert "lifetime spend" in said
    assert "ranking / 2026" in said
    status, said = cli("budget", "shared.sqlite", "--json")
    body = json.loads(said)
    cap, quota = body["lines"]
    assert (cap["granted"], quota["granted"], quota["open_runs"]) == (3.0, 2.0, 1)
    assert 0 < cap["spent"]["epsilon"] < cap["held"]["epsilon"] < cap["held"]["filter_epsilon"] < 2.0


def test_an_export_and_its_checkpoint(cli: Cli) -> None:
    make(cli)
    status, said = cli("export", "shared.sqlite", "--out", "export.jsonl", "--checkpoint", "checkpoint.json")
    assert (status, said) == (0, "")
    lines = Path("export.jsonl").read_text(encoding="ascii").splitlines()
    assert lines[0] == HEADER == '{"format":"fedlearn-ledger","version":2}'
    assert len(lines) == 13
    assert set(json.loads(lines[1])) == {"sequence", "kind", "body", "hash", "signature"}
    assert cli("export", "shared.sqlite")[1].splitlines() == lines
    assert json.loads(Path("checkpoint.json").read_text(encoding="ascii"))["length"] == 12
    status, said = cli("export", "shared.sqlite", "--out", "nowhere/export.jsonl")
    assert status == 2
    assert "name a file" in said


def test_verified_by_the_verifier_that_shares_no_code(cli: Cli) -> None:
    make(cli)
    status, said = cli("verify", "shared.sqlite")
    assert status == 0, said
    assert "not anchored: later entries may be missing" in said
    cli("export", "shared.sqlite", "--checkpoint", "checkpoint.json")
    key = Path("authority.key.pub").read_text(encoding="ascii").strip()
    options = ("--checkpoint", "checkpoint.json", "--authority-key", key)
    status, said = cli("verify", "shared.sqlite", *options)
    assert status == 0, said
    assert "not anchored" not in said


def test_an_export_is_verified_where_there_is_no_ledger(cli: Cli) -> None:
    make(cli)
    cli("export", "shared.sqlite", "--out", "export.jsonl", "--checkpoint", "checkpoint.json")
    cli("export", "shared.sqlite", "--checkpoint", "checkpoint.json")
    lines = Path("export.jsonl").read_text(encoding="ascii").splitlines(keepends=True)
    Path("short.jsonl").write_text("".join(lines[:-1]), encoding="ascii")
    status, said = cli("verify", "export.jsonl", "--checkpoint", "checkpoint.json", "--json")
    assert status == 0, said
    assert json.loads(said)["records"][0]["path"] == "export.jsonl"
    status, said = cli("verify", "short.jsonl", "--checkpoint", "checkpoint.json")
    assert status == 3, said
    assert "REJECTED" in said


def test_the_text_of_a_record_cannot_steer_the_terminal(cli: Cli) -> None:
    assert cli("create", "x", "--population", "a\x1b[31mb\nc", "--epsilon", "1", "--delta", "1e-6")[0] == 0
    for command in ("show", "budget"):
        said = cli(command, "x")[1]
        assert "a\\u001b[31mb\\u000ac" in said
        assert "\x1b" not in said


@pytest.mark.parametrize(
    ("epsilon", "text"), [(1.23441, "1.235"), (3.0, "3"), (2.99996, "3"), (0.0, "0"), (12.3401, "12.35")]
)
def test_an_epsilon_in_a_table_is_never_rounded_down(epsilon: float, text: str) -> None:
    assert rounded_up(epsilon) == text


def test_a_ledger_in_a_folder_and_one_that_is_cut_short(cli: Cli) -> None:
    Path("folder").mkdir()
    status, said = cli("create", "folder", "--population", "p", "--epsilon", "1", "--delta", "1e-6")
    assert status == 0, said
    assert cli("show", "folder")[0] == 0
    whole = (Path("folder") / LEDGER_FILE).read_bytes()
    Path("short.sqlite").write_bytes(whole[:5000])
    status, said = cli("show", "short.sqlite")
    assert status == 3
    assert said.startswith("error FL602: short.sqlite:")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("named", "epsilon", "words"),
    [("ranking", "nan", "epsilon=nan"), ("ranking", "inf", "epsilon=inf"), ("ranking", "5", "the cap 3"),
     ("ranking", "0", "epsilon=0.0"), ("", "1", "purpose")],
)  # fmt: skip
def test_a_quota_out_of_range_is_bad_input(cli: Cli, named: str, epsilon: str, words: str) -> None:
    make(cli)
    options = ("--purpose", named, "--epoch", "2026", "--epsilon", epsilon, "--authority-key", "authority.key")
    status, said = cli("grant", "shared.sqlite", *options)
    assert status == 2, said
    assert "error FL102" in said
    assert words in said


TAMPER = {
    "a flipped digit": "UPDATE entries SET body = replace(body, '\"count\":50', '\"count\":51') WHERE sequence = 2",
    "a dropped entry": "DELETE FROM entries WHERE sequence = 4",
    "a forged signature": (
        "UPDATE entries SET signature = iif(signature LIKE 'a%', 'b', 'a') || substr(signature, 2) WHERE sequence = 5"
    ),
    "swapped entries": (
        "UPDATE entries SET sequence = -1 WHERE sequence = 6; UPDATE entries SET sequence = 6 WHERE sequence = 7;"
        "UPDATE entries SET sequence = 7 WHERE sequence = -1"
    ),
    "a renewal without a signature": (
        "UPDATE entries SET body = replace(body, '\"epsilon\":2.0', '\"epsilon\":3.0') WHERE sequence = 1"
    ),
}


@pytest.mark.parametrize("how", TAMPER)
def test_tampering_is_found(cli: Cli, how: str) -> None:
    path = make(cli)
    connection = sqlite3.connect(path)
    connection.executescript(f"DROP TRIGGER no_update; DROP TRIGGER no_delete; {TAMPER[how]}")
    connection.close()
    status, said = cli("budget", "shared.sqlite")
    assert status == 3
    assert "error FL602" in said
    if how in {"a dropped entry", "a renewal without a signature"}:  # the others are the verifier's own tests
        status, said = cli("verify", "shared.sqlite")
        assert status == 3, said
        assert "entry" in said


def test_an_older_copy_is_found_and_recovered(cli: Cli) -> None:
    path = make(cli)
    shutil.copy(path, "copy.sqlite")
    with Ledger.open(path) as ledger:
        account = ledger.run("run-1")
        account.charge(account.reserve(3, 0), DIGEST, DIGEST)
    assert cli("export", "shared.sqlite", "--checkpoint", "checkpoint.json")[0] == 0
    shutil.copy("copy.sqlite", path)
    status, said = cli("verify", "shared.sqlite", "--checkpoint", "checkpoint.json")
    assert status == 3, said
    status, said = cli("verify", "shared.sqlite")  # the machine that made the charges knows better than the record
    assert status == 3
    assert "error FL603" in said
    assert "VERIFIED" not in said
    assert "RESTORED" in cli("budget", "shared.sqlite")[1]
    status, said = cli("recover", "shared.sqlite", "--authority-key", "authority.key", "--reason", "disk replaced")
    assert status == 0, said
    status, said = cli("verify", "shared.sqlite")
    assert status == 0, said
    cap = json.loads(cli("budget", "shared.sqlite", "--json")[1])["lines"][0]
    assert cap["spent"] == cap["held"]
    assert cap["spent"]["events"][0]["count"] == 50


def test_a_run_directory_is_named_as_well(cli: Cli) -> None:
    path = make(cli)
    Path("run").mkdir()
    shutil.copy(path, Path("run") / LEDGER_FILE)
    assert cli("show", "run")[0] == 0
    assert len(cli("show", "run", "--json")[1].splitlines()) == 12


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("budget", "nowhere"), 3, "name the file, or make one"),
        (("keygen", "nowhere/key"), 2, "name a file"),
        (("create", "x", "--population", "p", "--epsilon", "-1", "--delta", "1e-6"), 2, "epsilon=-1.0"),
        (("create", "x", "--population", "p", "--epsilon", "1", "--delta", "2"), 2, "delta=2.0"),
        (("create", "x", "--population", "", "--epsilon", "1", "--delta", "1e-6"), 2, "population"),
        (
            ("create", "x", "--population", "p", "--epsilon", "1", "--delta", "1e-6", "--authority-key", "nope"),
            2,
            "no public key",
        ),
        (("show", "mysql://root@host/x"), 2, "postgresql://"),
    ],
)
def test_bad_input_names_the_fix(cli: Cli, arguments: tuple[str, ...], status: int, words: str) -> None:
    found, said = cli(*arguments)
    assert found == status, said
    assert words in said
    assert not Path("x").exists()


def test_it_needs_no_torch_flower_or_hydra(tmp_path: Path) -> None:
    """The wheel test installs ``review`` alone; here the modules are counted."""
    code = (
        "import sys; from fedlearn.cli import main; main(['ledger', 'keygen', 'k'])\n"
        "sys.exit(bool({'torch', 'flwr', 'hydra', 'sqlalchemy.orm'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path, capture_output=True)
