"""Makes the shipped coefficients again: ``python -m fedlearn.privacy.coefficients``, some ten seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fedlearn.privacy.participation import most_participations
from fedlearn.privacy.shipped import write_shipped

SEPARATIONS: Final = {
    20: (2, 5, 10, 20),
    60: (3, 5, 10, 20, 60),
    100: (5, 10, 20, 50),
    200: (10, 20, 50, 100),
    500: (20, 50, 100, 250),
    1000: (50, 100, 200, 500),
    2000: (100, 200, 400, 1000),
    2048: (100, 400),
}
"""Steps, and the min_separations of each, with as many participations as they leave room for."""

# Gboard es-ES 2022: a gap of 313 steps and at most 6 participations
GBOARD: Final = (2000, 314, 6)

if __name__ == "__main__":
    grid = [
        (steps, b, most_participations(steps, b)) for steps, separations in SEPARATIONS.items() for b in separations
    ]
    write_shipped(Path(__file__).parent, [*grid, GBOARD])
