"""``fedlearn train`` with an adapted clip, and with private steps on the phones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from fedlearn.report.rounds import read_rounds


def test_an_adapted_clip_is_recorded_round_by_round(small_city, tmp_path: Path) -> None:
    """From far too long it shrinks by 0.2 x (1 - 0.5) a round in the logarithm; the noise on that is 0.012."""
    run = tmp_path / "run"
    noise = ("privacy.epsilon=null", "privacy.noise_multiplier=0.5", "privacy.clip=5.0")
    small_city.train(run, "privacy.adaptive_clip.target_quantile=0.5", *noise, "cohort.rounds=6")
    clips = [record.clip for record in read_rounds(run / "metrics.jsonl")]
    assert clips[0] == 5.0
    moves = np.diff(np.log(clips))
    assert len(moves) == 5
    assert moves.sum() < -0.3
    assert (np.abs(moves) < 0.2).all()
    assert "Clip over rounds" in (run / "report.html").read_text(encoding="utf-8")


def test_private_steps_run_by_either_engine(small_city, tmp_path: Path) -> None:
    asked = ("client.example_privacy.noise_multiplier=0.5", "client.example_privacy.clip=1.0", "cohort.rounds=2")
    found = []
    for engine in ("vmap", "loop"):
        small_city.train(tmp_path / engine, *asked, "privacy=none", f"runtime.engine={engine}")
        found.append([record.update_norm for record in read_rounds(tmp_path / engine / "metrics.jsonl")])
    np.testing.assert_allclose(*found, rtol=1e-5)
    small_city.train(tmp_path / "plain", "privacy=none", "cohort.rounds=2")
    plain = [record.update_norm for record in read_rounds(tmp_path / "plain" / "metrics.jsonl")]
    assert not np.allclose(found[0], plain, rtol=1e-2)
    assert json.loads((tmp_path / "vmap" / "summary.json").read_text(encoding="utf-8"))
