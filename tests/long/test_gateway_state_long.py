"""A gateway's state at full size: 50 kills, 50 abandoned attempts between two participations."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from fedlearn.device.requests import Denial
from fedlearn_server.gateway.state import GatewayState, Offer

UNIT = Path(__file__).parents[1] / "unit"


def _unit(name: str):
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, UNIT / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


fleet = _unit("gateway_fleet")
intakes = _unit("test_gateway_intake")


@pytest.mark.long
def test_killed_fifty_times(tmp_path: Path) -> None:
    intakes.kill(str(tmp_path / "gateway.sqlite"), tmp_path / "phones", width=3000, kills=50, seed=11)


@pytest.mark.long
def test_fifty_abandoned_attempts_between_two_participations(tmp_path: Path) -> None:
    """The step stays, so b counts steps that were released, and not attempts: nobody is let in early or too often."""
    state = GatewayState.open(tmp_path / "gateway.sqlite")
    phones = fleet.Fleet(state, fleet.terms(separation=3, participations=2, round_size=2, target=2, over_selection=9.0))
    phones.enrol(*range(200))
    took_part: list[int] = []
    for step in range(8):
        for tries in range(50 if step in {1, 3} else 0):
            collection = phones.open(step)
            assert (collection.step, collection.tries) == (step, tries)
            offer = phones.ask(0)
            if isinstance(offer, Offer):
                phones.send(phones.upload(0, offer.task))
                took_part.append(step)
            assert state.close(collection, phones.now) is None
        collection = phones.open(step)
        offer = phones.ask(0)
        if isinstance(offer, Offer):
            phones.send(phones.upload(0, offer.task))
            took_part.append(step)
        phones.send(*[phones.upload(10 + 2 * step + number) for number in (0, 1)])
        assert state.close(collection, phones.now) is not None
    assert took_part == [0, 3]
    phones.open(8)
    assert phones.ask(0) is Denial.PARTICIPATIONS
    state.disconnect()
