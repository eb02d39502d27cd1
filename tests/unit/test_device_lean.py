"""What a phone's daemon imports from here: no numpy, nothing large, and no signature library until one is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

MODULES = [
    *("archive", "bundle", "catalogue_bundle", "catalogue_file", "credential", "fields", "graphs", "manifest"),
    *("ledger_head", "mechanism", "mechanism_codec", "operators", "padding", "plan", "plan_codec", "requests"),
    *("task", "task_codec", "weights"),
]
HEAVY = ["numpy", "scipy", "torch", "onnx", "onnxruntime", "flwr", "securesystemslib", "yaml", "fedlearn.types"]


@pytest.mark.parametrize("module", MODULES)
def test_imports(module: str) -> None:
    code = f"import sys, fedlearn.device.{module}; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_every_module_is_listed() -> None:
    from pathlib import Path

    import fedlearn.device

    found = {path.stem for path in Path(fedlearn.device.__file__).parent.glob("*.py")} - {"__init__"}
    assert found == set(MODULES)
