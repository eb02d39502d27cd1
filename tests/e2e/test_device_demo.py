"""``fedlearn demo-device`` tells its story to the end, and what it tells is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fedlearn.cli import main


def test_the_story_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["demo-device", "--dir", str(tmp_path / "demo")]) == 0
    told = capfd.readouterr().out
    outcomes = re.findall(r'"((?:refused: |acknowledged)[a-z_]*)"', told)
    assert outcomes == [
        "refused: not_ready",
        "acknowledged",
        "refused: too_soon",
        "refused: not_the_approved_plan",
        "refused: breaks_policy",
    ]
    assert "with one changed bit: FL804" in told
    assert "kept: 0." in told
    assert "Requests that left the phone: 0." in told
    assert re.search(r"words of the owner in them: 0 of [1-9]", told)
    assert "message content of chat" in told.split("7. The owner changes their mind")[0]
    assert "message content of chat" not in told.split("7. The owner changes their mind")[1]
    assert '"kind": "withdrawn"' in told
    digests = re.findall(r"digest:? ([0-9a-f]{16})", told)
    assert len(digests) == 2
    assert digests[0] != digests[1]
