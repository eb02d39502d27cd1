"""The settings of adaptive clipping and private steps: off unless asked for, strict, and kept in the run's config."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedlearn.errors import ConfigError, OutOfRange, UnknownSetting
from fedlearn.lab import compose
from fedlearn.lab.config import AdaptiveClipConfig, ExamplePrivacyConfig
from fedlearn.lab.door import load_yaml, save_yaml
from fedlearn.lab.local_training import training_terms
from fedlearn.lab.training import adaptive_clip_for, plan_for, without_privacy
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings
from fedlearn.terms import ExamplePrivacy

BASE = "experiment=city_quick"
ADAPTIVE = "privacy.adaptive_clip.target_quantile=0.7"
PRIVATE = ("client.example_privacy.noise_multiplier=0.8", "client.example_privacy.clip=1.5")


def test_off_by_default_and_by_null() -> None:
    for overrides in ([], ["privacy.adaptive_clip=null", "client.example_privacy=null"]):
        config = compose([BASE, *overrides])
        assert (config.privacy.adaptive_clip, config.client.example_privacy) == (None, None)
        assert config.digest == compose([BASE]).digest


def test_settings_arrive_where_they_are_used(tmp_path: Path) -> None:
    config = compose([BASE, ADAPTIVE, "privacy.clip=0.3", *PRIVATE])
    assert config.privacy.adaptive_clip == AdaptiveClipConfig(0.7, 0.2, None)
    assert config.client.example_privacy == ExamplePrivacyConfig(0.8, 1.5)
    assert adaptive_clip_for(config.privacy, None) == AdaptiveClipSettings(0.3, 0.7, 0.2, None)
    assert training_terms(config.client).example_privacy == ExamplePrivacy(0.8, 1.5)
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config
    assert config.digest != compose([BASE]).digest
    assert without_privacy(config).privacy.adaptive_clip == config.privacy.adaptive_clip


def test_a_count_noise_below_half_the_calibrated_noise_is_refused() -> None:
    config = compose(
        [
            BASE,
            ADAPTIVE,
            "privacy.adaptive_clip.count_noise=0.5",
            "privacy.noise_multiplier=2.0",
            "privacy.epsilon=null",
        ]
    )
    with pytest.raises(OutOfRange, match=r"count_noise=0\.5: must be above half"):
        adaptive_clip_for(config.privacy, plan_for(config, 1000))


BAD = [
    ("privacy.adaptive_clip.target_quantile=1.0", OutOfRange, r"privacy\.adaptive_clip\.target_quantile=1\.0"),
    ("privacy.adaptive_clip.learning_rate=0.1", ConfigError, r"privacy\.adaptive_clip\.target_quantile=null"),
    ("+privacy.adaptive_clip.quantile=0.5", UnknownSetting, r"privacy\.adaptive_clip\.quantile does not exist"),
    ("client.example_privacy.clip=1.0", ConfigError, r"client\.example_privacy\.noise_multiplier=null"),
    ("client.example_privacy={noise_multiplier:1.0,clip:-1.0}", OutOfRange, r"client\.example_privacy\.clip=-1\.0"),
    ("client.example_privacy.noise=1.0", UnknownSetting, r"client\.example_privacy\.noise does not exist"),
]


@pytest.mark.parametrize(("override", "error", "message"), BAD, ids=[override for override, _, _ in BAD])
def test_refusals_name_the_field(override: str, error: type[ConfigError], message: str) -> None:
    with pytest.raises(error, match=message):
        compose([BASE, override])


@pytest.mark.parametrize("overrides", [["privacy=blt"], ["privacy.min_separation=20"]])
def test_a_mechanism_over_all_steps_keeps_its_clip(overrides: list[str]) -> None:
    compose([BASE, *overrides])
    with pytest.raises(OutOfRange, match=r"privacy\.adaptive_clip: does not go with.*charged on its own"):
        compose([BASE, *overrides, ADAPTIVE])
