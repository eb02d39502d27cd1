"""What a device keeps of a session once its text is gone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedlearn.errors import DataCorrupt

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]

PRICE_LOW, PRICE_HIGH, PRICE_LEVEL, FREE, RATING, HOURS_LOW, HOURS_HIGH, NEAR = range(8)
"""Positions in ``Query.wishes``; nan where nothing was said."""

_WISHES = 8
_WIDTHS = (4, 3, 2, 3)
_HEAD = len(_WIDTHS)


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """Sparse numbers that name catalogue terms, values and items; nothing of the text that is not in the catalogue.

    An age of 0 is the present wish: the latest messages up to where the talk last turned to the target's domain. An
    older message has the age 1, 2, ... counted back from there over messages that said something about the catalogue.

    Args:
        digest: digest of the ``CatalogueIndex`` it was made with.
        terms: i32[t, 4], rows (term id, count 1..255, polarity -1 | +1, age 0..255), sorted.
        values: i32[v, 3], rows (value id, polarity -1 | 0 | +1, age), sorted; 0 is a wish that was withdrawn.
        names: i32[m, 2], rows (name id, age): items that the text names, sorted.
        choices: i32[c, 3], rows (item id over items and context, app tag, age), latest first; ages count choices.
        wishes: f32[8], the present wish; positions as named above.
    """

    digest: str
    terms: I32
    values: I32
    names: I32
    choices: I32
    wishes: F32

    def flat(self) -> I32:
        """Return the query as one i32 vector: four row counts, the blocks in field order, then the bits of f32[8]."""
        blocks = (self.terms, self.values, self.names, self.choices)
        head = np.array([len(b) for b in blocks], dtype=np.int32)
        return np.concatenate([head, *(b.ravel() for b in blocks), self.wishes.view(np.int32)])

    @staticmethod
    def from_flat(flat: I32, digest: str) -> Query:
        """Undo ``flat``; the arrays are views of the vector.

        Raises:
            DataCorrupt: the vector's length contradicts its counts.
        """
        sizes = [int(c) * w for c, w in zip(flat[:_HEAD], _WIDTHS, strict=False)]
        if len(sizes) < _HEAD or min(sizes) < 0 or len(flat) != _HEAD + sum(sizes) + _WISHES:
            raise DataCorrupt(f"a stored Query has {len(flat)} numbers, which contradicts its counts; write it again.")
        ends = [int(e) for e in np.cumsum([_HEAD, *sizes])]
        blocks = [flat[a:b].reshape(-1, w) for a, b, w in zip(ends, ends[1:], _WIDTHS, strict=False)]
        terms, values, names, choices = blocks
        return Query(digest, terms, values, names, choices, flat[ends[-1] :].view(np.float32))
