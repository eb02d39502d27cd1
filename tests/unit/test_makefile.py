"""What the Makefile's demos do to a user's own files: nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

FEDLEARN = """\
#!/bin/sh
echo "$FEDLEARN_STATE $*" >> "$LOG"
test "$1" != "$FAILS"
"""


@pytest.mark.parametrize("fails", ["", "up", "train"])
def test_the_demo_starts_and_stops_only_its_own_deployment(repository: Path, tmp_path: Path, fails: str) -> None:
    if shutil.which("make") is None:
        pytest.skip("no make")
    shutil.copy(repository / "Makefile", tmp_path)
    program = tmp_path / "bin" / "fedlearn"
    program.parent.mkdir()
    program.write_text(FEDLEARN)
    program.chmod(0o700)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".installed-lab").touch()
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LOG": str(tmp_path / "log"), "FAILS": fails}
    done = subprocess.run(
        ["make", "-o", ".venv/.installed-lab", "demo-superlink", "BIN=bin"],
        cwd=tmp_path,
        env={**environment, "FEDLEARN_STATE": str(tmp_path / "users")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) is (fails == ""), done.stderr
    calls = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert {call[0] for call in calls} == {str(tmp_path / "build" / "demo-superlink")}
    verbs = [call[1] for call in calls]
    assert (
        verbs == {"": ["up", "train", "ledger", "down"], "up": ["up", "down"], "train": ["up", "train", "down"]}[fails]
    )
    assert (tmp_path / "build" / "demo-superlink").stat().st_mode & 0o077 == 0
