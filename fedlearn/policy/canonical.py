"""One document, one sequence of bytes: what digests and signatures are made over, and the strict way back.

Canonical bytes are JSON in ASCII: keys sorted by code point, no white space, everything outside ASCII as lower-case
``\\uXXXX``, integers in decimal, floats as the shortest text that reads back to the same number (Python's ``repr``:
``0.1``, ``1e-05``, ``3.0``).
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Final, NoReturn

from fedlearn.errors import PolicyInvalid

_SURROGATES: Final = range(0xD800, 0xE000)


def canonical_bytes(value: object) -> bytes:
    """Return the canonical bytes of a JSON value (dict with text keys, list, str, int, float, bool, None).

    Raises:
        PolicyInvalid: NaN, an infinity, or something that JSON has no word for.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise PolicyInvalid(f"document: cannot be written as JSON ({error}).") from error
    return text.encode("ascii")


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 digest, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def parse_strict(data: bytes, max_bytes: int, what: str) -> object:
    """Parse UTF-8 JSON in which nothing is ambiguous.

    Args:
        data: the bytes.
        max_bytes: more are refused unread.
        what: names the document in messages.

    Raises:
        PolicyInvalid: too large, not UTF-8, not JSON, a key given twice, NaN or an infinity (a number that overflows
            included), half a surrogate pair, or nested too deep.
    """
    if len(data) > max_bytes:
        raise PolicyInvalid(f"{what}: {len(data)} bytes; at most {max_bytes} are read.")

    shared: dict[str, str] = {}  # a catalogue names the same neighbours tens of thousands of times

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                raise PolicyInvalid(f"{what}: {key[:80]!r} is given twice; keep one.")
            found[key] = _with_shared_texts(value, shared)
        return found

    def refuse(text: str) -> NoReturn:
        raise PolicyInvalid(f"{what}: holds {text}, which is no number; write a finite one.")

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise PolicyInvalid(f"{what}: {text[:40]} is too large; write a finite number.")
        return value

    try:
        text = data.decode("utf-8")
        value: object = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse, parse_float=number)
        if "\\u" in text:
            _refuse_surrogates(value, what)
    except PolicyInvalid:
        raise
    except RecursionError as error:
        raise PolicyInvalid(f"{what}: nested too deep.") from error
    except ValueError as error:  # undecodable, not JSON, or an integer of thousands of digits
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise PolicyInvalid(f"{what}: not UTF-8 JSON ({reason}).") from error
    return value


def _with_shared_texts(value: Any, shared: dict[str, str]) -> Any:
    """Replace the texts of a list by equal ones that were seen before, in place."""
    if isinstance(value, list):
        value[:] = [shared.setdefault(one, one) if isinstance(one, str) else one for one in value]
    return value


def _refuse_surrogates(value: object, what: str) -> None:
    if isinstance(value, str):
        if any(ord(character) in _SURROGATES for character in value):
            raise PolicyInvalid(f"{what}: half a surrogate pair; write the character itself.")
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item, what)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key, what)
            _refuse_surrogates(item, what)
