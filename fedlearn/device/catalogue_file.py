"""``catalogue.json``: a ``Catalogue`` as canonical JSON, and the strict way back. The digest survives both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from fedlearn.catalogue import Catalogue, Item
from fedlearn.device.fields import Fields, checked_text
from fedlearn.errors import BundleRefused, PolicyInvalid
from fedlearn.policy.canonical import canonical_bytes, parse_strict

SCHEMA: Final = "fedlearn.catalogue/1"
MOST_ITEMS: Final = 200_000
MOST_VALUES: Final = 1024
MOST_TEXT: Final = 512
_BEST_RATING: Final = 5


def catalogue_bytes(catalogue: Catalogue) -> bytes:
    """Return ``catalogue.json``: a pure function of the catalogue. Fields that say nothing are left out.

    Raises:
        BundleRefused: a phone would refuse the catalogue; the message names item and field.
    """
    rows = [_to_json(item, catalogue.domain) for item in catalogue.items]
    body: dict[str, object] = {
        "schema": SCHEMA,
        "name": catalogue.name,
        "domain": catalogue.domain,
        "items": rows,
        "context": [_to_json(item, "") for item in catalogue.context],
    }
    if any(item.domain != catalogue.domain for item in catalogue.items):
        raise BundleRefused(f"items: must all be of domain {catalogue.domain!r}; others belong into context.")
    data = canonical_bytes(body)
    if catalogue_from_bytes(data, len(data)).digest != catalogue.digest:
        raise BundleRefused("catalogue: does not survive its own JSON; give prices and ratings as finite numbers.")
    return data


def catalogue_from_bytes(data: bytes, max_bytes: int) -> Catalogue:
    """Read ``catalogue.json``.

    Args:
        data: the file.
        max_bytes: largest file that is read.

    Raises:
        BundleRefused: too large, another schema, a field that is absent, unknown or out of range, an item twice, or
            not the canonical bytes of what it says.
    """
    try:
        body = parse_strict(data, max_bytes, "catalogue.json")
    except PolicyInvalid as error:
        raise BundleRefused(str(error)) from error
    fields = Fields(body, "")
    if fields.take("schema") != SCHEMA:
        raise BundleRefused(f"schema: must be {SCHEMA}; update the runtime, or export again.")
    name, domain = fields.text("name"), fields.text("domain")
    items = fields.rows("items", lambda row, path: _from_json(row, path, domain), most=MOST_ITEMS)
    context = fields.rows("context", lambda row, path: _from_json(row, path, ""), most=MOST_ITEMS)
    fields.end()
    keys = [item.key for item in (*items, *context)]
    if not items or len(set(keys)) != len(keys):
        raise BundleRefused("items: none, or an item is there twice.")
    if not _is_canonical(body, data):
        raise BundleRefused("catalogue.json: not canonical JSON; write it with catalogue_bytes.")
    return Catalogue(name, domain, items, context)


def _is_canonical(body: object, data: bytes) -> bool:
    """Return whether ``canonical_bytes(body) == data``, without a second copy of what can be megabytes."""
    at = 0
    for piece in _pieces(body):
        if not data.startswith(piece, at):
            return False
        at += len(piece)
    return at == len(data)


def _pieces(body: object) -> Iterator[bytes]:
    """Yield ``canonical_bytes(body)`` in pieces: of an object's lists one entry at a time."""
    if not isinstance(body, dict):
        yield canonical_bytes(body)
        return
    for position, name in enumerate(sorted(body)):
        yield (b"," if position else b"{") + canonical_bytes(name) + b":"
        value = body[name]
        if not isinstance(value, list) or not value:
            yield canonical_bytes(value)
            continue
        for place, entry in enumerate(value):
            yield (b"," if place else b"[") + canonical_bytes(entry)
        yield b"]"
    yield b"}" if body else b"{}"


def attributes_of(catalogue: Catalogue) -> tuple[str, ...]:
    """Return the attribute names of all items, sorted."""
    return tuple(sorted({name for item in (*catalogue.items, *catalogue.context) for name in item.attributes}))


def _to_json(item: Item, domain: str) -> dict[str, object]:
    body: dict[str, object] = {"name": item.name}
    optional: tuple[tuple[str, object, bool], ...] = (
        ("domain", item.domain, not domain),
        ("attributes", {name: list(values) for name, values in item.attributes.items()}, bool(item.attributes)),
        ("price", item.price, item.price is not None),
        ("rating", item.rating, item.rating is not None),
        ("duration", item.duration, bool(item.duration)),
        ("nearby", list(item.nearby), bool(item.nearby)),
    )
    body.update((name, value) for name, value, there in optional if there)
    return body


def _from_json(row: object, path: str, domain: str) -> Item:
    """Return an item; one of the ranked domain does not say its domain, and any other does."""
    fields = Fields(row, path)
    item = Item(
        domain=domain or fields.text("domain"),
        name=_text(fields.take("name"), fields.path("name")),
        attributes=_attributes(fields.take_if_there("attributes", None), fields.path("attributes")),
        price=_number(fields.take_if_there("price", None), fields.path("price"), math.inf),
        rating=_number(fields.take_if_there("rating", None), fields.path("rating"), _BEST_RATING),
        duration=_text(fields.take_if_there("duration", ""), fields.path("duration"), empty=True),
        nearby=_texts(fields.take_if_there("nearby", []), fields.path("nearby")),
    )
    fields.end()
    # A field that is there and says nothing would be a second way to write the same item
    if isinstance(row, Mapping) and not all(said for name, said in row.items() if name not in ("price", "rating")):
        raise BundleRefused(f"{path}: an empty field; leave it out.")
    if isinstance(row, Mapping) and any(row.get(name, 0) is None for name in ("price", "rating")):
        raise BundleRefused(f"{path}: price and rating must be numbers; leave out what is not known.")
    return item


def _attributes(value: object, path: str) -> dict[str, tuple[str, ...]]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or len(value) > MOST_VALUES:
        raise BundleRefused(f"{path}: must be a JSON object of at most {MOST_VALUES} names.")
    return {checked_text(name, path): _values(value[name], f"{path}.{name}") for name in value}


def _texts(value: object, path: str) -> tuple[str, ...]:
    return tuple(_text(entry, path) for entry in _rows(value, path))


def _values(value: object, path: str) -> tuple[str, ...]:
    """Return what may be said of an item, spelled as its source spells it: line breaks are left to the matching."""
    rows = _rows(value, path)
    if not all(isinstance(entry, str) and len(entry) <= MOST_TEXT for entry in rows):
        raise BundleRefused(f"{path}: must be texts of at most {MOST_TEXT} characters.")
    return tuple(str(entry) for entry in rows)


def _rows(value: object, path: str) -> Sequence[object]:
    if not isinstance(value, list) or len(value) > MOST_VALUES:
        raise BundleRefused(f"{path}: must be a list of at most {MOST_VALUES} texts.")
    return value


def _text(value: object, path: str, *, empty: bool = False) -> str:
    return checked_text(value, path, empty=empty, most=MOST_TEXT)


def _number(value: object, path: str, most: float) -> float | None:
    """Return a finite number in [0, most] just as it was written: the digest tells 50 from 50.0."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most or value == math.inf:
        raise BundleRefused(f"{path}: must be a finite number in [0, {most:g}].")
    return value
