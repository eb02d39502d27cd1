"""Strict conversion between JSON values and frozen dataclasses: every field, no other field, exactly its type.

Fields are str, int, float, bool, ``StrEnum``, another such dataclass, or ``tuple[X, ...]``. A bool is no number, and an
integer is a float only where a float is asked for, so that ``3`` and ``3.0`` make the same document.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any, Final, TypeVar, get_args, get_origin, get_type_hints

from fedlearn.errors import PolicyInvalid

T = TypeVar("T")
LARGEST_INTEGER: Final = 2**53 - 1
"""What every JSON reader reads exactly."""
_WORDS: Final = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def to_json(value: Any) -> Any:
    """Return the JSON value of a document, or of a part of one."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    return value.value if isinstance(value, StrEnum) else value


def from_json(kind: type[T], body: object, schema: str, what: str) -> T:
    """Convert a whole document, which says its schema in the field ``schema``.

    Raises:
        PolicyInvalid: not an object, or the schema is absent or another one, or what ``from_value`` raises.
    """
    if not isinstance(body, Mapping):
        raise PolicyInvalid(f"{what}: must be a mapping of fields, beginning with schema: {schema}.")
    if body.get("schema") != schema:
        raise PolicyInvalid(f"schema={_shown(body.get('schema'))}: a {what} of this version says schema: {schema}.")
    rest = {key: value for key, value in body.items() if key != "schema"}
    document: T = from_value(kind, rest, "")
    return document


def from_value(kind: Any, value: object, path: str) -> Any:
    """Convert ``value`` to ``kind``.

    Raises:
        PolicyInvalid: names the field, e.g. ``sources[2].retention_days``, and the fix.
    """
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise PolicyInvalid(f"{path}={_shown(value)}: must be a list.")
        return tuple(from_value(get_args(kind)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if is_dataclass(kind):
        return _record(kind, value, path)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        choices = [member.value for member in kind]
        if not isinstance(value, str) or value not in choices:
            raise PolicyInvalid(f"{path}={_shown(value)}: choose from {', '.join(choices)}.")
        return kind(value)
    return _scalar(kind, value, path)


def field_paths(kind: Any) -> list[str]:
    """Return the dotted names of a document's fields; a list is one field."""
    found: list[str] = []
    for name, hint in _hints(kind).items():
        found += [f"{name}.{path}" for path in field_paths(hint)] if is_dataclass(hint) else [name]
    return found


def _record(kind: Any, value: object, path: str) -> Any:
    if not isinstance(value, Mapping):
        raise PolicyInvalid(f"{path}={_shown(value)}: must be a mapping of fields.")
    hints = _hints(kind)
    for key in value:
        if key not in hints:
            raise PolicyInvalid(f"{_join(path, _shown_key(key))}: unknown field; known here: {', '.join(hints)}.")
    for key in hints:
        if key not in value:
            raise PolicyInvalid(f"{_join(path, key)}: missing; add it.")
    return kind(**{key: from_value(hint, value[key], _join(path, key)) for key, hint in hints.items()})


def _scalar(kind: Any, value: object, path: str) -> Any:
    fits = isinstance(value, int | float) if kind is float else isinstance(value, kind)
    if not fits or (isinstance(value, bool) and kind is not bool):
        hint = "; put it in quotes" if kind is str else ""
        raise PolicyInvalid(f"{path}={_shown(value)}: must be {_WORDS[kind]}{hint}.")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_INTEGER:
        raise PolicyInvalid(f"{path}: too large a number; at most {LARGEST_INTEGER}.")
    if kind is float and isinstance(value, int | float):
        if not math.isfinite(value):
            raise PolicyInvalid(f"{path}={value}: must be a finite number.")
        return float(value)
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST_INTEGER:
        return "a huge number"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _shown_key(key: object) -> str:
    return key[:60] if isinstance(key, str) and key.isprintable() else _shown(key)
