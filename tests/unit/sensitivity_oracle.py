"""Slow and exact: the strategy matrix written out, and its squared sensitivity over every participation set."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

import numpy as np

from fedlearn.privacy.factorization import Blt, Factorization, Toeplitz, Tree

Matrix = list[list[Fraction]]
Draw = Callable[[np.random.Generator, int], tuple[int, int, int]]


def strategy(factorization: Factorization, steps: int) -> Matrix:
    """Return C row by row."""
    if isinstance(factorization, Tree):
        return [
            [Fraction(start <= step < start + size) for step in range(steps)]
            for size in (1 << height for height in range(steps.bit_length()))
            for start in range(0, steps - size + 1, size)
        ]
    column = exact_column(factorization, steps)
    return [[column[row - step] if row >= step else Fraction(0) for step in range(steps)] for row in range(steps)]


def exact_column(factorization: Toeplitz | Blt, steps: int) -> list[Fraction]:
    if isinstance(factorization, Toeplitz):
        values = [Fraction(value) for value in factorization.coefficients]
        return values + [Fraction(0)] * (steps - len(values))
    pairs = [(Fraction(d), Fraction(s)) for d, s in zip(factorization.decay, factorization.scale, strict=True)]
    return [Fraction(1)] + [sum(s * d**power for d, s in pairs) for power in range(steps - 1)]


def participation_sets(steps: int, separation: int, most: int) -> Iterator[tuple[int, ...]]:
    """Yield every set of 1 ... ``most`` steps, any two at least ``separation`` apart."""
    pending: list[tuple[int, ...]] = [(step,) for step in range(steps)]
    while pending:
        chosen = pending.pop()
        yield chosen
        if len(chosen) < most:
            pending.extend((*chosen, step) for step in range(chosen[-1] + separation, steps))


def moved_by(matrix: Matrix, chosen: Sequence[int]) -> Fraction:
    """Return ||sum of the chosen columns||^2."""
    return sum((sum((row[step] for step in chosen), Fraction(0)) ** 2 for row in matrix), Fraction(0))


def brute_force(matrix: Matrix, separation: int, most: int) -> Fraction:
    """Return the largest ``moved_by`` over all participation sets, exactly: in integers, over one denominator."""
    steps = len(matrix[0])
    denominator = math.lcm(*(value.denominator for row in matrix for value in row))
    whole = [[int(value * denominator) for value in row] for row in matrix]
    gram = [[sum(row[x] * row[y] for row in whole) for y in range(steps)] for x in range(steps)]
    best = max(
        sum(gram[x][x] for x in chosen) + 2 * sum(gram[x][y] for x in chosen for y in chosen if x < y)
        for chosen in participation_sets(steps, separation, most)
    )
    return Fraction(best, denominator**2)


def bounds(random: np.random.Generator, longest: int) -> tuple[int, int, int]:
    """Draw (steps, min_separation, max_participations)."""
    steps = int(random.integers(1, longest + 1))
    separation = int(random.integers(1, steps + 1))
    # every step allowed makes 2^steps sets: fewer steps there
    steps = min(steps, 8 + 3 * separation)
    most = -(-steps // separation)
    return steps, separation, int(random.integers(1, most + 1))


def sparse_bounds(random: np.random.Generator, longest: int) -> tuple[int, int, int]:
    """Draw bounds of many steps and few participations: trees of more levels, blocks smaller than the separation."""
    steps = int(random.integers(longest // 2, longest + 1))
    separation = int(random.integers(steps // 4, steps // 2))
    return steps, separation, int(random.integers(2, -(-steps // separation) + 1))


def draw(kind: str, random: np.random.Generator, steps: int) -> Factorization:
    """Draw a factorization of a kind: "toeplitz" (any number of bands), "banded" (few), "blt", or "tree"."""
    if kind == "tree":
        return Tree()
    if kind == "blt":
        buffers = int(random.integers(1, 4))
        scale = random.random(buffers) + 1e-3
        return Blt(tuple(random.uniform(1e-3, 0.999, buffers)), tuple(scale / scale.sum() * random.uniform(0.01, 0.99)))
    bands = int(random.integers(1, (steps if kind == "toeplitz" else min(steps, 3)) + 1))
    falling = np.sort(random.random(bands - 1))[::-1]
    if random.random() < 0.3:
        falling[random.random(bands - 1) < 0.5] = falling.min(initial=1.0)  # ties, as plateaus
        falling = np.sort(falling)[::-1]
    return Toeplitz((1.0, *map(float, falling)))


def check(kind: str, cases: int, longest: int, seed: int, draw_bounds: Draw = bounds) -> int:
    """Compare ``cases`` random cases; return how many of them had a worst case that is not a whole number."""
    from fedlearn.privacy.sensitivity import squared_sensitivity

    random = np.random.default_rng(seed)
    fractional = 0
    for _ in range(cases):
        steps, separation, most = draw_bounds(random, longest)
        factorization = draw(kind, random, steps)
        exact = brute_force(strategy(factorization, steps), separation, most)
        ours = Fraction(squared_sensitivity(factorization, steps, separation, most))
        where = (factorization, steps, separation, most)
        if kind == "tree":
            assert ours == exact, where
        # at least the truth, and above it by no more than rounding: 2 (3 n + 2 k + 2 m + 4) 2^-53 twice over
        assert exact <= ours <= exact * (1 + Fraction(1, 10**12)), where
        fractional += exact.denominator != 1
    return fractional
