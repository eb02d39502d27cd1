"""A policy in the lab: read strictly at the door, and asked before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fedlearn.errors import ConfigError, OutOfRange, PolicyInvalid, UnknownSetting
from fedlearn.lab.config import ExperimentConfig, flat_settings, to_plain
from fedlearn.lab.configs import compose, packaged_configs
from fedlearn.lab.door import from_plain, load_yaml, save_yaml, setting_paths
from fedlearn.lab.policy_check import mechanism_terms, require_allowed
from fedlearn.lab.run import train
from fedlearn.lab.training import plan_for
from fedlearn.policy.document import Policy
from fedlearn.policy.load import load_policy, policy_digest
from fedlearn.policy.times import parse_time

NOW = 1_800_000_000.0


def policy_of(config: ExperimentConfig) -> Policy:
    assert config.policy is not None
    return config.policy


def allowed(config: ExperimentConfig, population: int, now: float = NOW) -> None:
    require_allowed(config, [plan_for(config, population)], lambda: now)


@pytest.mark.parametrize("name", ["city", "crosswoz"])
def test_a_group_file_is_a_policy_document(name: str, tmp_path: Path) -> None:
    config = compose([f"policy={name}"])
    assert config.policy == load_policy(packaged_configs() / "policy" / f"{name}.yaml")
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config
    assert from_plain(to_plain(config)).digest == config.digest
    assert config.digest != compose([]).digest
    tag = ("policy.digest", f'"{policy_digest(policy_of(config))}"')
    assert tag in flat_settings(config), "the summary's settings name the policy by its digest"


def test_without_a_policy_nothing_changes() -> None:
    config = compose([])
    assert config.policy is None
    assert to_plain(config)["policy"] == {"name": "none"}
    require_allowed(config, [None], lambda: NOW)


def test_a_policy_can_be_overridden_and_stays_strict() -> None:
    assert policy_of(compose(["policy=city", "policy.mechanism.min_round_size=200"])).mechanism.min_round_size == 200
    assert "policy.mechanism.min_round_size" in setting_paths()
    for override, kind, words in (
        ("policy.version=0", PolicyInvalid, "policy.version=0"),
        ("policy.version=true", PolicyInvalid, "policy.version=True"),
        ("+policy.typo=1", PolicyInvalid, "policy.typo: unknown field"),
        ("policy.mechanism.min_round_siz=1", UnknownSetting, "policy.mechanism.min_round_size"),
        ("policy.schema=fedlearn.policy/2", PolicyInvalid, "policy.schema"),
        ("policy.sources=[]", PolicyInvalid, "policy.sources"),
    ):
        with pytest.raises(kind, match=words.replace(".", r"\.")):
            compose(["policy=city", override])
    for override in ("+policy.typo=1", "policy.name=city"):
        with pytest.raises(UnknownSetting, match="policy"):
            compose([override])
    with pytest.raises(ConfigError):
        from_plain({**to_plain(compose([])), "policy": ["city"]})


RUNS = [
    (["experiment=city_quick", "policy=city"], 1000),
    (["experiment=city_bounded", "policy=city"], 10_000),
    (["policy=city", "privacy=blt", "cohort=bounded"], 1000),
    (["policy=city", "privacy=independent", "cohort=bounded"], 1000),
    (["policy=city", "privacy=banded", "cohort=bounded"], 1000),
    (["policy=city", "privacy=tree", "cohort=bounded"], 1000),
    (["experiment=crosswoz_restaurants", "data.root=.", "policy=crosswoz"], 60),
]


@pytest.mark.parametrize(("overrides", "population"), RUNS, ids=lambda value: str(value)[:60])
def test_shipped_policies_admit_shipped_experiments(overrides: list[str], population: int) -> None:
    allowed(compose(overrides), population)


REFUSED = [
    (["privacy.epsilon=3.5"], 1000, r"privacy\.epsilon=3\.5: over budget\.epsilon=3"),
    (["privacy.delta=2e-4"], 1000, r"privacy\.delta=0\.0002: over budget\.delta"),
    (
        ["privacy.epsilon=null", "privacy.noise_multiplier=1.9"],
        1000,
        r"privacy\.noise_multiplier=1\.9: under mechanism",
    ),
    (["privacy.clip=0.6"], 1000, r"privacy\.clip=0\.6: over mechanism\.max_l2_clip_norm=0\.5"),
    (["cohort.rounds=101"], 1000, r"cohort\.rounds=101: over mechanism\.max_steps=100"),
    (["cohort.fraction=0.04"], 1000, r"cohort \(expected size\)=40: under mechanism\.min_round_size=50"),
    ([], 999, r"devices=999: under population\.minimum_devices=1000"),
    (["privacy=none"], 1000, r"privacy\.mode=none"),
    (
        ["privacy=independent", "cohort=bounded", "privacy.min_separation=15"],
        1000,
        r"privacy\.min_separation=15: under",
    ),
    (["policy.mechanism.kinds=[tree]"], 1000, r"privacy\.mode='gaussian': not in mechanism\.kinds"),
    (["policy.features=[]"], 1000, r"features\.sources: 'words' is not among"),
    (["policy.expires='2027-01-01T00:00:00Z'"], 1000, r"policy\.expires=2027-01-01T00:00:00Z: has passed"),
    (
        ["privacy.adaptive_clip.target_quantile=0.5", "privacy.adaptive_clip.count_noise=null"],
        1000,
        r"privacy\.adaptive_clip: moves the clip",
    ),
]


@pytest.mark.parametrize(("overrides", "population", "words"), REFUSED, ids=[row[2][:40] for row in REFUSED])
def test_a_run_that_breaks_a_floor_is_refused_by_both_names(overrides: list[str], population: int, words: str) -> None:
    with pytest.raises(OutOfRange, match=words) as caught:
        allowed(compose(["experiment=city_quick", "policy=city", *overrides]), population)
    assert str(caught.value).startswith("policy=city does not allow this run")


def test_sources_and_purposes_bind_the_lab_too() -> None:
    config = compose(["policy=city"])
    policy = policy_of(config)
    chat, *choices = policy.sources
    disputed = replace(config, policy=replace(policy, sources=(replace(chat, disputed=True), *choices)))
    with pytest.raises(OutOfRange, match=r"features\.sources: 'words' needs message_content"):
        allowed(disputed, 1000)
    no_training = replace(config, policy=replace(policy, purposes=policy.purposes[:1]))
    with pytest.raises(OutOfRange, match=r"policy\.purposes: none is of kind train"):
        allowed(no_training, 1000)
    scraped = replace(config, policy=replace(policy, sources=(replace(chat, collection="screen"), *choices)))
    with pytest.raises(OutOfRange, match=r"policy\.sources\[0\]\.collection=screen"):
        allowed(scraped, 1000)
    allowed(config, 1000, parse_time(policy.expires, "expires") - 1)


def test_mechanism_terms_say_what_a_phone_may_do() -> None:
    for overrides, population, kind, b, k in (
        (["experiment=city_quick"], 1000, "gaussian", 1, 60),
        (["experiment=city_bounded"], 10_000, "blt", 20, 3),
        (["experiment=city_bounded", "privacy=independent"], 10_000, "independent", 20, 3),
        (["experiment=city_bounded", "privacy=tree"], 10_000, "tree", 20, 3),
    ):
        plan = plan_for(compose(overrides), population)
        assert plan is not None
        terms = mechanism_terms(plan)
        assert (terms.kind, terms.min_separation, terms.max_participations, terms.steps) == (kind, b, k, 60)


def test_nothing_is_written_for_a_run_that_is_refused(tmp_path: Path) -> None:
    place = f"run.dir={tmp_path / 'run'}"
    config = compose(["experiment=city_quick", "data.devices=60", "data.restaurants=500", "policy=city", place])
    with pytest.raises(OutOfRange, match=r"devices=60: under population\.minimum_devices=1000"):
        train(config, console=Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_run_under_a_policy_names_it_in_its_summary(tmp_path: Path) -> None:
    config = compose([
        "experiment=city_quick", "data.devices=60", "data.restaurants=500", "evaluation.controls=false",
        "evaluation.bootstrap=100", "cohort.rounds=2", "privacy.delta=1e-4", "policy=city",
        "policy.population.minimum_devices=60", "policy.mechanism.min_round_size=20",
        "policy.mechanism.min_noise_multiplier=0.5", f"run.dir={tmp_path / 'run'}",
    ])  # fmt: skip
    summary = train(config, console=Console(quiet=True)).summary
    named = {setting.key: setting.value for setting in summary.settings if setting.key.startswith("policy.")}
    assert named == {
        "policy.name": '"city"',
        "policy.version": "1",
        "policy.digest": f'"{policy_digest(policy_of(config))}"',
    }
