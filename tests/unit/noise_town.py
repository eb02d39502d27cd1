"""A correlated mechanism under test: sums that a test knows, what was released, and what should have been."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedlearn.privacy.correlated import CorrelatedMechanism
from fedlearn.privacy.events import MatrixGaussian
from fedlearn.privacy.exact_scalar import ByteSource
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Factorization, Toeplitz, Tree
from fedlearn.privacy.grid import grid_step
from fedlearn.types import BoundedSum, Charge

Matrix = NDArray[np.float64]

CLIP = 0.75
STEP = grid_step(CLIP)
NOISE = 2.5
DENOMINATOR = 64.0
BLT = Blt((0.9, 0.4), (0.55, 0.3))
BANDED = Toeplitz((1.0, 0.6, 0.45, 0.3))
FULL = Toeplitz(tuple(math.comb(2 * i, i) / 4**i for i in range(12)))
"""The square root of the prefix sums (Fichtenberger, Henzinger and Upadhyay 2023), as wide as the run is long."""

EVERY: dict[str, Factorization] = {
    "independent": INDEPENDENT,
    "banded": BANDED,
    "full": FULL,
    "blt": BLT,
    "tree": Tree(),
}

_charges = count(1)


def event(factorization: Factorization, steps: int = 12, noise_multiplier: float = NOISE) -> MatrixGaussian:
    return MatrixGaussian(factorization, steps, 4, min(3, -(-steps // 4)), noise_multiplier)


def opened(
    spent: MatrixGaussian,
    directory: Path,
    *,
    next_step: int = 0,
    dimension: int = 20_000,
    byte_source: ByteSource | None = None,
) -> CorrelatedMechanism:
    return CorrelatedMechanism.open(
        "run",
        spent,
        DENOMINATOR,
        l2_sensitivity=CLIP,
        grid_step=STEP,
        dimension=dimension,
        next_step=next_step,
        directory=directory,
        byte_source=byte_source,
    )


def known_sum(step: int, dimension: int) -> BoundedSum:
    """The same sum every time: what a device that knows all others could subtract."""
    values = np.random.Generator(np.random.Philox(key=step)).integers(-(2**34), 2**34, dimension) * STEP
    return BoundedSum(values, CLIP, STEP, step, 3)


def charge_for(bounded: BoundedSum, noise_multiplier: float = NOISE) -> Charge:
    return Charge(next(_charges), bounded.step, noise_multiplier, bounded.digest)


def released(mechanism: CorrelatedMechanism, dimension: int = 20_000) -> Matrix:
    """Release the next step; return what may be published."""
    bounded = known_sum(mechanism.next_step, dimension)
    return mechanism.release(bounded, charge_for(bounded)).values


def added(values: Matrix, step: int) -> Matrix:
    """Return what was added to the sum of a step, in grid steps: an exact integer."""
    return (values * DENOMINATOR - known_sum(step, values.size).values) / STEP


def released_noise(mechanism: CorrelatedMechanism, dimension: int = 20_000) -> Matrix:
    """Release the next step; return what was added to its sum."""
    step = mechanism.next_step
    return added(released(mechanism, dimension), step)


def strategy(factorization: Factorization, steps: int) -> Matrix:
    """Return C as the papers define it, dense; for the tree, whose C is not square, nothing."""
    first = np.zeros(steps)
    match factorization:
        case Toeplitz():
            first[: len(factorization.coefficients)] = factorization.coefficients[:steps]
        case Blt():
            first[0] = 1.0
            for decay, scale in zip(factorization.decay, factorization.scale, strict=True):
                first[1:] += scale * decay ** np.arange(steps - 1)
    return sum(first[lag] * np.eye(steps, k=-lag) for lag in range(steps))


def noise_map(factorization: Factorization, steps: int) -> Matrix:
    """Return the linear map from independent noise to what is added: C^-1, or the tree's differences of prefixes."""
    return tree_map(steps) if isinstance(factorization, Tree) else np.linalg.inv(strategy(factorization, steps))


def tree_map(steps: int) -> Matrix:
    """Each prefix is a sum of aligned blocks, the largest first; a column per block (Kairouz et al. 2021)."""
    blocks: dict[tuple[int, int], int] = {}
    prefixes = []
    for end in range(1, steps + 1):
        start, used = 0, []
        while start < end:
            size = 1
            while start % (2 * size) == 0 and start + 2 * size <= end:
                size *= 2
            used.append(blocks.setdefault((start, size), len(blocks)))
            start += size
        prefixes.append(used)
    rows = np.zeros((steps + 1, len(blocks)))
    for row, used in enumerate(prefixes, start=1):
        rows[row, used] = 1.0
    return np.diff(rows, axis=0)


def misfit(noise: Matrix, mixing: Matrix, std: float) -> float:
    """Return by how many standard errors the worst entry of the steps' covariance is off ``mixing mixing' std^2``.

    Args:
        noise: [steps, d], with independent columns.
        mixing: [steps, any].
        std: of the independent noise.
    """
    expected = mixing @ mixing.T
    observed = noise @ noise.T / (std**2 * noise.shape[1])
    variance = np.diag(expected)
    # Var of a sample covariance of normals: (s_ii s_jj + s_ij^2) / d
    error = np.sqrt((np.outer(variance, variance) + expected**2) / noise.shape[1])
    return float((np.abs(observed - expected) / error).max())


def scale_of(mechanism_slack: float, noise_multiplier: float = NOISE) -> float:
    """Return the std of the independent noise in grid steps."""
    return noise_multiplier * CLIP / STEP * (1 + mechanism_slack)


def plaintexts(rows: Iterable[NDArray[np.int64]], places: Sequence[int]) -> list[bytes]:
    """Return pieces of secret rows as they would look in a file: four values, in 6 and in 8 bytes each, and in f64."""
    pieces = []
    for row in rows:
        for place in places:
            part = row[place : place + 4]
            pieces += [part.astype("<i8").tobytes(), part.astype("<f8").tobytes()]
            pieces.append(b"".join(int(value).to_bytes(6, "little", signed=True) for value in part))
    return pieces


def files_with(pieces: Sequence[bytes], directory: Path) -> list[str]:
    """Return the files below a directory that hold any of the pieces."""
    return [
        path.name
        for path in directory.rglob("*")
        if path.is_file() and any(piece in path.read_bytes() for piece in pieces)
    ]
