"""Codecs: decoding is exact, addition is exact on the grid, and what is not a codec is refused."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fedlearn.codec import CODECS, codec_by_name, valid_scale
from fedlearn.errors import CodecRefused


def test_names_and_dtypes() -> None:
    assert {name: codec.dtype.str for name, codec in CODECS.items()} == {"f32": "<f4", "f64": "<f8", "grid64": "<i8"}


def test_sums() -> None:
    """A sum of phones in f32 is kept in f64; the others stay what they are."""
    assert {name: codec.sum_name for name, codec in CODECS.items()} == {"f32": "f64", "f64": "f64", "grid64": "grid64"}
    assert all(CODECS[codec.sum_name].sum_name == codec.sum_name for codec in CODECS.values())


@pytest.mark.parametrize("name", ["ring64", "f16", "", "F64"])
def test_refused(name: str) -> None:
    with pytest.raises(CodecRefused, match="codec="):
        codec_by_name(name)


def test_grid_decodes_exactly() -> None:
    values = np.array([0, 1, -1, 2**31, -(2**52) + 1, 2**53], "<i8")
    scale = 2.0**-31
    decoded = codec_by_name("grid64").decode(values, scale)
    assert decoded.dtype == np.float64
    assert [Fraction(v) for v in decoded.tolist()] == [int(v) * Fraction(scale) for v in values]


def test_grid_adds_exactly_where_f64_could_not() -> None:
    left, right = np.array([2**60, -(2**60)], "<i8"), np.array([1, -1], "<i8")
    assert codec_by_name("grid64").add(left, right).tolist() == [2**60 + 1, -(2**60) - 1]
    assert float(2**60) + 1.0 == float(2**60)


def test_f32_adds_in_f64() -> None:
    left, right = np.array([1.0], "<f4"), np.array([2.0**-40], "<f4")
    total = codec_by_name("f32").add(left, right)
    assert total.dtype == np.dtype("<f8")
    assert total[0] == 1.0 + 2.0**-40
    assert np.float32(1.0) + np.float32(2.0**-40) == np.float32(1.0)


def test_addition_changes_neither_side() -> None:
    for codec in CODECS.values():
        left, right = np.ones(3, codec.dtype), np.ones(3, codec.dtype)
        codec.add(left, right)
        assert (left == 1).all()
        assert (right == 1).all()


@pytest.mark.parametrize(
    ("name", "scale", "valid"),
    [
        ("f32", 1.0, True),
        ("f64", 1.0, True),
        ("f64", 0.5, False),
        ("f64", math.nan, False),
        ("grid64", 2.0**-30, True),
        ("grid64", 1.0, True),
        ("grid64", 0.75, False),
        ("grid64", 0.0, False),
        ("grid64", -0.5, False),
        ("grid64", math.inf, False),
        ("grid64", math.nan, False),
    ],
)
def test_scales(name: str, scale: float, valid: bool) -> None:
    assert valid_scale(codec_by_name(name), scale) is valid
