"""Strict JSON for frozen dataclasses: what the type says is what the file holds, no key more and no key less.

A record is a dataclass whose fields are str, int, float, bool, ``StrEnum``, another record, ``X | None``,
``tuple[X, ...]`` or ``Mapping[K, X]``. JSON has no infinity: a float that is not finite is the string ``"inf"``,
``"-inf"`` or ``"nan"``. A class may name properties in ``DERIVED``: they are written for readers and checked on
reading, so that a file that contradicts itself is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, ClassVar, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from fedlearn.errors import ConfigError, DataCorrupt, DataMissing

NOT_FINITE = ("inf", "-inf", "nan")


class Record(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


R = TypeVar("R", bound=Record)
_FIELD_TYPES: dict[type[Any], Mapping[str, Any]] = {}


def encode(value: object) -> object:
    """Turn a record, or a part of one, into JSON values (dict, list, str, int, float, bool, None)."""
    if is_dataclass(value):
        names = (*(f.name for f in fields(value)), *derived(type(value)))
        return {name: encode(getattr(value, name)) for name in names}
    if isinstance(value, Mapping):
        return {str(k): encode(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [encode(v) for v in value]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | bool | int | float):
        # A numpy scalar that subclasses float would print itself otherwise than a float does.
        return float(value) if isinstance(value, float) else value
    raise TypeError(f"A record cannot hold a {type(value).__name__}: use the types in fedlearn.report.schema.")


def decode(cls: type[R], data: object, source: str, at: str = "") -> R:
    """Build a record of ``cls`` from JSON values.

    Args:
        cls: the record's class.
        data: what ``json.loads`` returned.
        source: the file's name, for the message.
        at: dotted place of ``data`` inside the file, empty at the top.

    Raises:
        DataCorrupt: a key is unknown or missing, or a value has another type; the message names file and key.
    """
    if not isinstance(data, dict):
        raise _corrupt(source, at, f"expected an object, found {_shown(data)}")
    hints = field_types(cls)
    extra = derived(cls)
    for key in data:
        if key not in hints and key not in extra:
            raise DataCorrupt(
                f"{source}: unknown key {_join(at, key)!r}: not in this schema version; write the file again."
            )
    for key in (*hints, *extra):
        if key not in data:
            raise DataCorrupt(f"{source}: missing key {_join(at, key)!r}: write the file again with this version.")
    values = {key: _value(hint, data[key], source, _join(at, key)) for key, hint in hints.items()}
    try:
        record = cls(**values)
    except ConfigError as err:
        raise _corrupt(source, at, str(err).rstrip(".")) from err
    for key in extra:
        if data[key] != encode(getattr(record, key)):
            raise _corrupt(source, _join(at, key), f"{_shown(data[key])} contradicts the values beside it")
    return record


def dumps(record: Record, *, indent: int | None = None) -> str:
    """Serialise a record as JSON text; with ``indent=None`` on one line. Keys keep the order of the fields."""
    separators = (",", ":") if indent is None else (",", ": ")
    return json.dumps(encode(record), ensure_ascii=False, allow_nan=False, indent=indent, separators=separators)


def read_bytes(path: Path, what: str, fix: str) -> bytes:
    """Read a file.

    Raises:
        DataMissing: there is no such file.
        DataCorrupt: it cannot be read.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as err:
        raise DataMissing(f"{path}: no {what} here; {fix}") from err
    except OSError as err:
        raise DataCorrupt(f"{path}: the {what} cannot be read ({err}); {fix}") from err


def parse(data: bytes, source: str) -> object:
    """Parse UTF-8 JSON.

    Raises:
        DataCorrupt: it is not UTF-8, not JSON, or holds a bare NaN or Infinity.
    """
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except ValueError as err:
        raise DataCorrupt(f"{source}: not JSON ({err}); restore the file, or make the run again.") from err


def _refuse_constant(name: str) -> object:
    raise ValueError(f"bare {name}")


def derived(cls: type[Any]) -> tuple[str, ...]:
    """Properties of a record class that are written beside its fields."""
    return cast(tuple[str, ...], getattr(cls, "DERIVED", ()))


def field_types(cls: type[Any]) -> Mapping[str, Any]:
    """Field names of a record class and their resolved types, in order."""
    if cls not in _FIELD_TYPES:
        hints = get_type_hints(cls)
        _FIELD_TYPES[cls] = MappingProxyType({f.name: hints[f.name] for f in fields(cls)})
    return _FIELD_TYPES[cls]


def optional_part(hint: Any) -> Any | None:
    """Return X for ``X | None``, else None."""
    if get_origin(hint) not in (Union, UnionType):
        return None
    (inner,) = [a for a in get_args(hint) if a is not NoneType]
    return inner


def nested(hint: Any) -> Iterator[type[Any]]:
    """Record classes inside a type, outermost first."""
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from nested(part)


def _value(hint: Any, data: Any, source: str, at: str) -> Any:
    inner = optional_part(hint)
    if inner is not None:
        return None if data is None else _value(inner, data, source, at)
    origin = get_origin(hint)
    if origin is tuple:
        if not isinstance(data, list):
            raise _corrupt(source, at, f"expected a list, found {_shown(data)}")
        item = get_args(hint)[0]
        return tuple(_value(item, v, source, f"{at}[{i}]") for i, v in enumerate(data))
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        if not isinstance(data, dict):
            raise _corrupt(source, at, f"expected an object, found {_shown(data)}")
        key, item = get_args(hint)
        return {_value(key, k, source, at): _value(item, v, source, _join(at, k)) for k, v in data.items()}
    if is_dataclass(hint):
        return decode(cast(type[Any], hint), data, source, at)
    return _scalar(hint, data, source, at)


def _scalar(hint: Any, data: Any, source: str, at: str) -> Any:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if data not in tuple(hint):
            raise _corrupt(source, at, f"expected one of {', '.join(hint)}, found {_shown(data)}")
        return hint(data)
    # bool is a subclass of int, so the exact type is compared.
    if hint is float:
        if type(data) in (int, float) or data in NOT_FINITE:
            return float(data)
    elif type(data) is hint:
        return data
    raise _corrupt(source, at, f"expected {hint.__name__}, found {_shown(data)}")


def _corrupt(source: str, at: str, what: str) -> DataCorrupt:
    return DataCorrupt(f"{source}: {at or 'the top level'}: {what}; write the file again with this version.")


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key


def _shown(data: object) -> str:
    text = json.dumps(data, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
