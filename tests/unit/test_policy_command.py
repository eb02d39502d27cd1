"""`fedlearn policy`, from a template to a verified envelope, as somebody types it."""

from __future__ import annotations

import importlib.util
import json
import re
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from fedlearn.cli import main
from fedlearn.errors import PolicyInvalid
from fedlearn.policy.command import main as policy_main
from fedlearn.policy.load import load_policy, policy_digest, policy_from_json, policy_to_json

_spec = importlib.util.spec_from_file_location("policy_papers", Path(__file__).with_name("policy_papers.py"))
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with keys, a policy, and a clock that stands still."""
    monkeypatch.setattr("fedlearn.policy.command.system_clock", lambda: p.NOW)
    for key in ("root", "anne", "ben", "clara", "status"):
        assert main(["ledger", "keygen", str(tmp_path / key)]) == 0
    (tmp_path / "places.json").write_text(json.dumps(policy_to_json(p.POLICY)))
    return tmp_path


def policy(desk: Path, *words: str) -> int:
    """Run a sub-command; words that begin with @ are files of the desk."""
    return main(["policy", *(str(desk / word[1:]) if word.startswith("@") else word for word in words)])


def roster(desk: Path, *more: str) -> int:
    approvers = [word for name in ("anne", "ben", "clara") for word in ("--approver", f"@{name}.pub")]
    return policy(
        desk, "roster", "--version", "1", "--expires", "2027-06-01T00:00:00Z", "--threshold", "2", *approvers,
        "--status-key", "@status.pub", "--key", "@root", "--out", "@roster.json", *more,
    )  # fmt: skip


VERIFY = ("verify", "@places.dsse.json", "--roster", "@roster.json", "--root", "@root.pub")


def test_from_a_policy_to_a_phones_decision(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = policy_digest(p.POLICY)
    assert roster(desk) == 0
    assert policy(desk, "sign", "@places.json", "--key", "@anne") == 0
    assert policy(desk, *VERIFY) == 3
    assert policy(desk, "sign", "@places.json", "--key", "@ben") == 0
    capsys.readouterr()
    assert policy(desk, *VERIFY) == 0
    assert "approved by 2 of 3" in capsys.readouterr().out
    assert policy(desk, "status", "--version", "1", "--key", "@status", "--out", "@status.json") == 0
    assert policy(desk, *VERIFY, "--status", "@status.json") == 0
    assert policy(desk, *VERIFY, "--status", "@status.json", "--seen-status", "2") == 3
    assert policy(desk, *VERIFY, "--seen-roster", "2") == 3
    for what, words in (
        (("--stop", "all"), "everything"),
        (("--stop", digest), "stopped"),
        (("--revoke", digest), "rev"),
    ):
        assert policy(desk, "status", "--version", "2", "--key", "@status", "--out", "@stop.json", *what) == 0
        capsys.readouterr()
        assert policy(desk, *VERIFY, "--status", "@stop.json") == 3
        assert words in capsys.readouterr().err
    assert policy(desk, *VERIFY, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "places", "digest": digest, "status": "not checked"}


def test_signing_twice_or_into_another_envelope(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy(desk, "sign", "@places.json", "--key", "@anne", "--into", "@a.dsse.json") == 0
    assert policy(desk, "sign", "@places.json", "--key", "@anne", "--into", "@a.dsse.json") == 3
    other = json.loads((desk / "places.json").read_text())
    (desk / "other.json").write_text(json.dumps({**other, "version": 4}))
    before = (desk / "a.dsse.json").read_bytes()
    assert policy(desk, "sign", "@other.json", "--key", "@ben", "--into", "@a.dsse.json") == 3
    assert "holds another document" in capsys.readouterr().err
    assert (desk / "a.dsse.json").read_bytes() == before


def test_what_lint_calls_an_error_is_not_signed(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = policy_to_json(p.POLICY)
    body["sources"][0]["collection"] = "screen"
    (desk / "scraped.json").write_text(json.dumps(body))
    assert policy(desk, "sign", "@scraped.json", "--key", "@anne") == 2
    assert "sources[0].collection=screen" in capsys.readouterr().err
    assert not (desk / "scraped.dsse.json").exists()
    assert policy(desk, "lint", "@scraped.json") == 1


def test_a_template_says_what_to_fill_in(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy(desk, "template", "--out", "@mine.yaml") == 0
    assert policy(desk, "template", "--out", "@mine.yaml") == 2
    capsys.readouterr()
    assert policy(desk, "template") == 0
    assert capsys.readouterr().out == (desk / "mine.yaml").read_text()
    assert policy(desk, "lint", "@mine.yaml", "--json") == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert all("template" in row["message"] or "placeholder" in row["message"] for row in found), found
    text = (desk / "mine.yaml").read_text()
    filled = re.sub(r"REPLACE", "Own", text).replace("0" * 64, p.OPERATOR.public).replace("2027-01-31", "2027-12-31")
    filled = filled.replace("text: Own with what is sent", "text: Own words on what is sent")
    (desk / "mine.yaml").write_text(filled)
    assert policy(desk, "lint", "@mine.yaml", "--strict") == 0, capsys.readouterr().out


def test_lint_as_somebody_reads_it(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert policy(desk, "lint", "@places.json") == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    body = policy_to_json(p.POLICY)
    body["budget"]["epsilon"] = 11
    (desk / "wide.json").write_text(json.dumps(body))
    assert policy(desk, "lint", "@wide.json") == 0
    assert policy(desk, "lint", "@wide.json", "--strict") == 1
    assert policy(desk, "lint", "@wide.json", "--previous", "@places.json") == 1
    assert "version=3: changed since version 3" in capsys.readouterr().out
    body["budget"]["epsilom"] = 11
    (desk / "wide.json").write_text(json.dumps(body))
    assert policy(desk, "lint", "@wide.json") == 2
    assert "error FL801: budget.epsilom: unknown field" in capsys.readouterr().err


def test_show(desk: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    city = repository / "configs" / "policy" / "city.yaml"
    assert main(["policy", "show", str(city)]) == 0
    shown = capsys.readouterr().out
    digest = policy_digest(load_policy(city))
    for words in (digest, "what the owner wrote", "PLACEHOLDER", "epsilon 3", "chosen_before", "restaurants-training"):
        assert words in shown, words
    assert policy(desk, "show", "@places.json", "--json") == 0
    assert policy_from_json(json.loads(capsys.readouterr().out)) == p.POLICY
    (desk / "places.dsse.json").write_bytes(p.policy_envelope())
    assert policy(desk, "show", "@places.dsse.json") == 0
    assert "UNCHECKED" in capsys.readouterr().out
    (desk / "roster.json").write_bytes(p.roster_envelope())
    assert policy(desk, "show", "@roster.json") == 2


def test_a_file_that_is_not_there_or_cannot_be_written(desk: Path) -> None:
    with pytest.raises(PolicyInvalid, match="cannot be read"):
        policy_main(["verify", str(desk / "absent"), "--roster", str(desk / "x"), "--root", str(desk / "root.pub")])
    assert policy(desk, "template", "--out", "@absent/x.yaml") == 2
    assert policy(desk, "show", "@absent.yaml") == 2


def test_private_keys_stay_private(desk: Path) -> None:
    """Control: what signs is readable by its owner alone, or it does not sign."""
    (desk / "anne").chmod(0o644)
    assert stat.S_IMODE((desk / "anne").stat().st_mode) == 0o644
    assert policy(desk, "sign", "@places.json", "--key", "@anne") == 3
    assert not (desk / "places.dsse.json").exists()


def test_a_roster_out_of_range_is_not_signed(desk: Path) -> None:
    assert roster(desk, "--threshold", "4") == 2
    assert not (desk / "roster.json").exists()
