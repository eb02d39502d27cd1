"""Strict reading of JSON objects: every field is taken once, by its path, and a surplus one is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Final, TypeVar

from fedlearn.errors import BundleRefused

MOST_TEXT: Final = 128
MOST_LIST: Final = 100_000
BIGGEST_INT: Final = 2**53 - 1  # what every JSON reader holds exactly

_DIGEST: Final = re.compile(r"[0-9a-f]{64}\Z")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_VERSION: Final = re.compile(r"(0|[1-9][0-9]{0,5})(\.(0|[1-9][0-9]{0,5})){0,3}\Z")

T = TypeVar("T")


class Fields:
    """One JSON object that is being read.

    Args:
        body: what JSON gave.
        path: of the object, for messages; "" for the document itself.

    Raises:
        BundleRefused: it is no object; so does every method for a field that is absent or wrong.
    """

    def __init__(self, body: object, path: str) -> None:
        if not isinstance(body, Mapping):
            raise BundleRefused(f"{path or 'document'}: not a JSON object.")
        self._rest: dict[str, object] = dict(body)
        self._path = path

    def path(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self._path}.{name}" if self._path else name

    def take(self, name: str) -> object:
        """Return a field as JSON gave it."""
        if name not in self._rest:
            raise BundleRefused(f"{self.path(name)}: absent.")
        return self._rest.pop(name)

    def take_if_there(self, name: str, absent: object) -> object:
        """Return a field, or ``absent``."""
        return self._rest.pop(name, absent)

    def text(self, name: str, *, empty: bool = False) -> str:
        """Return a text of 1..128 code points without control characters; ``empty`` allows ""."""
        return checked_text(self.take(name), self.path(name), empty=empty)

    def number(self, name: str, *, above: float, most: float = math.inf) -> float:
        """Return a finite number in (above, most]."""
        value = self.take(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not above < value <= most:
            raise BundleRefused(f"{self.path(name)}: must be a finite number > {above:g}{_most(most)}.")
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if not math.isfinite(found):
            raise BundleRefused(f"{self.path(name)}: must be finite.")
        return found

    def integer(self, name: str, *, least: int, most: int = BIGGEST_INT) -> int:
        """Return an integer in [least, most]."""
        return checked_integer(self.take(name), self.path(name), least, most)

    def flag(self, name: str) -> bool:
        """Return a boolean."""
        value = self.take(name)
        if not isinstance(value, bool):
            raise BundleRefused(f"{self.path(name)}: must be true or false.")
        return value

    def rows(self, name: str, read: Callable[[object, str], T], *, most: int = MOST_LIST) -> tuple[T, ...]:
        """Return a list, each entry read by ``read(entry, path)``."""
        value = self.take(name)
        if not isinstance(value, list) or len(value) > most:
            raise BundleRefused(f"{self.path(name)}: must be a list of at most {most} entries.")
        return tuple(read(entry, f"{self.path(name)}[{position}]") for position, entry in enumerate(value))

    def end(self) -> None:
        """Refuse a field that nobody took."""
        if self._rest:
            raise BundleRefused(f"{self.path(min(self._rest)[:MOST_TEXT])}: no such field.")


def checked_text(value: object, path: str, *, empty: bool = False, most: int = MOST_TEXT) -> str:
    """Return ``value`` if it is a text of at most ``most`` code points without control characters."""
    if not isinstance(value, str) or len(value) > most or not (value or empty):
        raise BundleRefused(f"{path}: must be a text of {0 if empty else 1}..{most} characters.")
    if _CONTROL.search(value):
        raise BundleRefused(f"{path}: must have no control characters.")
    return value


def checked_integer(value: object, path: str, least: int, most: int) -> int:
    """Return ``value`` if it is an integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BundleRefused(f"{path}: must be an integer in [{least}, {most}].")
    return value


def checked_digest(value: object, path: str) -> str:
    """Return ``value`` if it is a SHA-256 in 64 lower-case hexadecimal digits."""
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise BundleRefused(f"{path}: must be a SHA-256 in 64 lower-case hexadecimal digits.")
    return value


def checked_version(value: object, path: str) -> str:
    """Return ``value`` if it is a version of one to four numbers, e.g. ``0.1.0``."""
    if not isinstance(value, str) or not _VERSION.match(value):
        raise BundleRefused(f"{path}: must be a version of one to four numbers, e.g. 0.1.0.")
    return value


def version_key(version: str) -> tuple[int, ...]:
    """Return what orders versions: ``0.10`` is later than ``0.9`` and the same as ``0.10.0``."""
    numbers = [int(part) for part in version.split(".")]
    return tuple(numbers + [0] * (4 - len(numbers)))


def require_sorted(names: tuple[str, ...], path: str) -> None:
    """Refuse names that are not in strictly rising order of their code points."""
    if any(later <= earlier for earlier, later in pairwise(names)):
        raise BundleRefused(f"{path}: names must be sorted, each once.")


def _most(most: float) -> str:
    return "" if math.isinf(most) else f" and <= {most:g}"
