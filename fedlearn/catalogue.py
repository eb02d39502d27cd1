"""The public catalogue: what can be recommended, and what else the owner may have chosen.

A catalogue is public data. It never holds a statistic made from users (no click counts, no learned popularity).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Item:
    """One row of the public catalogue.

    Args:
        domain: what kind of thing it is, e.g. ``"restaurant"``, ``"book"``.
        name: display name, unique inside its domain.
        attributes: attribute name -> values as they may be said in a sentence, e.g.
            ``{"dish": ("mapo tofu",), "cuisine": ("sichuan",), "facility": ("wifi",), "type": ("luxury",)}``.
        price: price per head or per night in the catalogue's currency, >= 0, or None when unknown. 0 is free.
        rating: 0..5, or None when unknown.
        duration: how long a visit takes, as the catalogue words it, or "".
        nearby: keys (``domain:name``) of items close to this one, in any domain.
    """

    domain: str
    name: str
    attributes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    price: float | None = None
    rating: float | None = None
    duration: str = ""
    nearby: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """``domain:name``, unique in a catalogue."""
        return f"{self.domain}:{self.name}"


@dataclass(frozen=True)
class Catalogue:
    """The items of one target domain, in ranking order, and the items of every other domain.

    Args:
        name: what the catalogue is called in reports.
        domain: the domain that is ranked.
        items: the items of ``domain``; an item's position is its id (label) everywhere.
        context: items of other domains that an owner may have chosen earlier.
    """

    name: str
    domain: str
    items: tuple[Item, ...]
    context: tuple[Item, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Key -> position in ``items``."""
        return {item.key: position for position, item in enumerate(self.items)}

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the canonical JSON of every item, in order."""
        found = hashlib.sha256(f"[{_json(self.name)},{_json(self.domain)},[".encode())
        for position, item in enumerate((*self.items, *self.context)):  # not in one text: it can be megabytes
            found.update(f"{',' if position else ''}{_json(_canonical(item))}".encode())
        found.update(b"]]")
        return found.hexdigest()


def _canonical(item: Item) -> list[object]:
    attributes = sorted((name, list(values)) for name, values in item.attributes.items())
    return [item.domain, item.name, attributes, item.price, item.rating, item.duration, list(item.nearby)]


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
