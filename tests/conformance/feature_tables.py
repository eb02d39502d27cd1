"""Writes ``docs/features-tables.json``: the word lists and expressions that docs/features.md refers to, spelled out.

``python tests/conformance/feature_tables.py`` writes the file anew; ``test_tiny_device.py`` compares it with the
code, so that a port never works from an old list.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from fedlearn.features import language, numbers, patterns, text
from fedlearn.features.index import SPEC_VERSION

FILE = Path(__file__).parents[2] / "docs" / "features-tables.json"
KINDS = ("band", "ceiling", "floor", "about")


def tables() -> dict[str, Any]:
    """Return every list and expression of the specification, in the order in which they are tried."""
    return {
        "schema": "fedlearn.features-tables/1",
        "spec_version": SPEC_VERSION,
        "text": {"cjk": _ranges(text._CJK), "stop_words": sorted(text.STOP_WORDS)},
        "language": {
            "stop": language.STOP,
            "negative": language.NEGATIVE,
            "positive": language.POSITIVE,
            "after": language._AFTERS.pattern,
            "change": language.CHANGE,
            "subjects": language.SUBJECTS,
        },
        "numbers": {
            "fractions": [list(pair) for pair in numbers._FRACTIONS],
            "chinese": numbers._CN_NUMBER.pattern,
            "chinese_digits": numbers._CN_DIGITS,
            "chinese_units": numbers._CN_UNITS,
            "english": numbers._EN_NUMBER.pattern,
            "english_words": numbers._EN_WORDS,
        },
        "wishes": {
            "prices": [[KINDS[kind], pattern.pattern] for kind, pattern in patterns._PRICES],
            "cheap": patterns._CHEAP.pattern,
            "expensive": patterns._DEAR.pattern,
            "free": patterns._FREE.pattern,
            "near": patterns._NEAR.pattern,
            "ratings": [pattern.pattern for pattern in patterns._RATINGS],
            "rating_ceiling": patterns._RATING_CEILING.pattern,
            "well_rated": patterns._WELL_RATED.pattern,
            "well_rated_floor": patterns.WELL_RATED,
            "duration": patterns._DURATION.pattern,
            "duration_hours": patterns._HOURS,
        },
    }


def _ranges(characters: str) -> list[list[int]]:
    """Return the code points of ``a-bc-d`` as [first, last]; most have no glyph."""
    ends = [part.split("-") for part in re.findall(".-.", characters)]
    return [[ord(first), ord(last)] for first, last in ends]


def content() -> bytes:
    """Return the file's bytes."""
    return (json.dumps(tables(), indent=1, ensure_ascii=False) + "\n").encode()


if __name__ == "__main__":
    FILE.write_bytes(content())
    sys.stdout.write(f"{FILE.stat().st_size} bytes\n")
