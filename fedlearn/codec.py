"""Codecs: how a contribution's ``values`` encode a vector, and how two contributions add up.

=======  =====  =================================================  ==================================
codec    dtype  decoded vector                                     use
=======  =====  =================================================  ==================================
f32      <f4    ``values``                                         one phone, privacy off
f64      <f8    ``values``                                         sums, privacy off
grid64   <i8    ``scale * values``, exact and order-independent    phones and sums, privacy on
ring64   --     reserved for split aggregation, refused by name    --
=======  =====  =================================================  ==================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import CodecRefused
from fedlearn.types import F64


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to encode a vector.

    Args:
        name: the name on the wire.
        dtype: dtype of the encoded values, little-endian.
        sum_name: codec of a sum of two contributions of this codec.
    """

    name: str
    dtype: np.dtype[np.generic]
    sum_name: str

    def decode(self, values: NDArray[np.generic], scale: float) -> F64:
        """Return the encoded vector in model units, f64[d]; NaN and infinity stay what they are."""
        with np.errstate(invalid="ignore"):  # a signalling NaN sets the flag when it is widened
            decoded: F64 = values.astype(np.float64)
        return decoded if scale == 1.0 else decoded * scale

    def add(self, left: NDArray[np.generic], right: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the encoded sum, in the dtype of ``sum_name``; both sides must share one scale."""
        dtype = CODECS[self.sum_name].dtype
        total: NDArray[np.generic] = np.add(left.astype(dtype), right.astype(dtype))
        return total


CODECS = {
    codec.name: codec
    for codec in (
        Codec("f32", np.dtype("<f4"), "f64"),
        Codec("f64", np.dtype("<f8"), "f64"),
        Codec("grid64", np.dtype("<i8"), "grid64"),
    )
}


def codec_by_name(name: str) -> Codec:
    """Return the codec, or raise CodecRefused for an unknown or reserved name."""
    if name == "ring64":
        raise CodecRefused("codec='ring64' is reserved until split aggregation exists: send grid64.")
    if name not in CODECS:
        raise CodecRefused(f"codec={name!r} is unknown: use one of {', '.join(CODECS)}.")
    return CODECS[name]


def valid_scale(codec: Codec, scale: float) -> bool:
    """Float codecs have scale 1; a grid step is a finite positive power of two, so that decoding is exact."""
    if codec.name != "grid64":
        return scale == 1.0
    return math.isfinite(scale) and scale > 0 and math.frexp(scale)[0] == 0.5
