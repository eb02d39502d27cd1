"""The whole conformance kit against a daemon of its own process, with callers of several users and the real worker."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from fedlearn_client.cli import main

_spec = importlib.util.spec_from_file_location(
    "device_conformance", Path(__file__).parents[1] / "conformance" / "test_device_conformance.py"
)
assert _spec is not None
assert _spec.loader is not None
conformance = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = conformance
_spec.loader.exec_module(conformance)

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="callers are other users: only root can become them"),
]


def test_the_daemon_passes_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    with conformance.served(capsys) as folder:
        target = ["--target", f"unix:{folder}/s", "--callers", f"{folder}/callers.toml"]
        assert main(["conformance", *target, "--complete"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    with capsys.disabled():
        sys.stdout.write(f"\n{last}\n")
