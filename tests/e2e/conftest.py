"""Fixtures of the tests that train from end to end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from small_city import SmallCity
    from superlink_world import SuperLinkWorld


def _load(name: str) -> ModuleType:
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)  # its dataclasses look themselves up there
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


_small_city = _load("small_city")


@pytest.fixture(scope="session")
def small_city() -> SmallCity:
    """The city."""
    return _small_city.SmallCity()


@pytest.fixture(scope="session")
def superlink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SuperLinkWorld]:
    """A real SuperLink for the tests of this worker; a test registers nodes of its own."""
    world = _load("superlink_world").SuperLinkWorld(tmp_path_factory.mktemp("superlink"))
    try:
        world.start()
        yield world
    finally:
        world.close()


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
