"""A toy shop: 40 phones, 20 items, and people who say what they want. Everything fedlearn asks of a plugin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedlearn.catalogue import Catalogue, Item
from fedlearn.lab.dataset import TaskProtocol
from fedlearn.lab.evaluation import Metric
from fedlearn.models import MatchModel, Model
from fedlearn.rng import simulation_rng
from fedlearn.signals import Choice, Device, Direction, Message, Session

KINDS, COLOURS = ("kite", "train", "puzzle", "robot"), ("red", "blue", "green", "yellow", "white")
ITEMS = tuple(
    Item("toy", f"{colour} {kind}", {"kind": (kind,), "colour": (colour,)}, price=5.0 + 3 * k + c, rating=3.5)
    for k, kind in enumerate(KINDS)
    for c, colour in enumerate(COLOURS)
)


class ToyShop:
    """``data=plugin data.name=toyshop``; option ``devices`` (default 40)."""

    def __init__(self, devices: int) -> None:
        self.catalogue = Catalogue("toyshop", "toy", ITEMS)
        self.protocol = TaskProtocol("chat to toy, toyshop", "the last session of each phone")
        self.digest = f"{devices:064x}"
        self._count = devices

    def devices(self) -> Iterator[Device]:
        """Each phone has a favourite colour; each session asks for a kind of toy."""
        for position in range(self._count):
            name = f"phone{position}"
            rng = simulation_rng(0, 0, name, "toyshop")
            colour = COLOURS[rng.integers(len(COLOURS))]
            yield Device(name, tuple(self._session(rng, name, colour, time) for time in range(4)))

    def _session(self, rng: np.random.Generator, name: str, colour: str, time: int) -> Session:
        kind = int(rng.integers(len(KINDS)))
        said = Message(f"we need a {KINDS[kind]}, {colour} if they have it", Direction.OUTGOING, time)
        earlier = (Choice(f"toy:{colour} {KINDS[0]}", "shop", 0),)
        chosen = kind * len(COLOURS) + COLOURS.index(colour)
        return Session((said,), earlier, chosen, group=f"{name}/{time}")


def make_shop(options: Mapping[str, bool | int | float | str]) -> ToyShop:
    """Entry point of the group ``fedlearn.data``."""
    return ToyShop(int(options.get("devices", 40)))


def make_model(width: int, options: Mapping[str, bool | int | float | str]) -> Model:
    """Entry point of the group ``fedlearn.models``: the match model with a stronger pull to zero."""
    return MatchModel(width, l2=float(options.get("l2", 0.05)))


def near_miss(cutoff: int | None) -> Metric:
    """Entry point of the group ``fedlearn.metrics``: 1 where the choice was second or third; takes no cutoff."""
    del cutoff
    return lambda ranks: ((ranks > 1) & (ranks <= 3)).astype(np.float64)
