"""Fixtures of the tests that train from end to end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_city import SmallCity

_spec = importlib.util.spec_from_file_location("small_city", Path(__file__).with_name("small_city.py"))
_small_city = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _small_city  # its dataclass looks itself up there
_spec.loader.exec_module(_small_city)


@pytest.fixture(scope="session")
def small_city() -> SmallCity:
    """The city."""
    return _small_city.SmallCity()


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[[Sequence[str]], tuple[int, str]]:
    """Run the command in this process; return its exit status and what it wrote."""
    from fedlearn.cli import main

    def run(arguments: Sequence[str]) -> tuple[int, str]:
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run
