"""How near the clip comes to its quantile, over many populations: the figures that the documentation states."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings

_path = Path(__file__).parents[1] / "unit" / "adaptive_town.py"
_spec = importlib.util.spec_from_file_location("adaptive_town", _path)
town = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town
_spec.loader.exec_module(town)

CASES = {
    # quantile, learning rate, count noise, most median and most largest relative error after 100 rounds
    "median": (0.5, 0.2, None, 0.02, 0.05),
    "upper": (0.8, 0.5, None, 0.02, 0.06),
    "papers_count_noise": (0.5, 0.2, town.COHORT / 20, 0.03, 0.15),
}


@pytest.mark.long
@pytest.mark.parametrize("case", CASES)
def test_error_after_a_hundred_rounds(case: str) -> None:
    quantile, learning_rate, count_noise, median, largest = CASES[case]
    errors = []
    for seed in range(40):
        rows = town.updates(seed)
        target = float(np.quantile(np.linalg.norm(rows, axis=1), quantile))
        for factor in (0.1, 10.0):
            adaptive = AdaptiveClipSettings(factor * target, quantile, learning_rate, count_noise)
            errors.append(abs(town.adapt(rows, adaptive, rounds=100, seed=seed)[-1] / target - 1))
    print(f"{case}: median error {np.median(errors):.4f}, largest {max(errors):.4f} of {len(errors)}")
    assert np.median(errors) < median
    assert max(errors) < largest
