"""A service's settings: one TOML file into one frozen dataclass, every key known, every value of its type."""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from fedlearn.errors import ConfigError, OutOfRange, UnknownSetting

T = TypeVar("T")

_LARGEST_FILE: Final = 64 * 1024
_WORDS: Final = {Path: "a path", str: "a text", bool: "true or false", float: "a number", int: "a whole number"}


def read_toml(path: Path) -> Mapping[str, Any]:
    """Return the table of a settings file; raise ConfigError where there is none, or it is not TOML."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"settings={path}: cannot be read ({os.strerror(error.errno or 0)}).") from error
    if len(data) > _LARGEST_FILE:
        raise ConfigError(f"settings={path}: larger than 64 KiB.")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"settings={path}: not TOML: {error}") from error


def from_table(kind: type[T], table: Mapping[str, Any]) -> T:
    """Return the settings of a table.

    Args:
        kind: a dataclass of paths, texts, numbers, truths and lists of texts; it checks ranges itself.
        table: of a TOML file.

    Raises:
        UnknownSetting: a key that does not exist.
        OutOfRange: a value of the wrong type or outside its range.
        ConfigError: a required key is absent.
    """
    hints = typing.get_type_hints(kind)
    known = {one.name: one for one in dataclasses.fields(kind)}  # type: ignore[arg-type]  # of the caller's making
    for name in table:
        if name not in known:
            raise UnknownSetting(f"{name}: is not a setting; there are {', '.join(known)}.")
    for name, one in known.items():
        if one.default is dataclasses.MISSING and name not in table:
            raise ConfigError(f"{name}: must be set.")
    return kind(**{name: _converted(name, value, hints[name]) for name, value in table.items()})


def _converted(name: str, value: object, kind: Any) -> Any:
    if isinstance(kind, types.UnionType):  # Path | None; TOML has no null
        kind = Path
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    if kind in {str, bool, int} and type(value) is kind:
        return value
    if kind is float and type(value) in {int, float}:
        return float(typing.cast("float", value))
    if kind == tuple[str, ...] and isinstance(value, list) and all(isinstance(one, str) for one in value):
        return tuple(value)
    raise OutOfRange(f"{name}: must be {_WORDS.get(kind, 'a list of texts')}.")
