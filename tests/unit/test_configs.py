"""Every config that ships loads, and every wrong one is refused with the field's name and a fix."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest

from fedlearn.errors import (
    ConfigError,
    DataError,
    DataMissing,
    EmptyPopulation,
    FedlearnError,
    OutOfRange,
    UnknownSetting,
)
from fedlearn.lab.config import CityData, CrossWozData, ExperimentConfig, to_plain
from fedlearn.lab.configs import compose, experiments, groups, packaged_configs
from fedlearn.lab.door import from_plain, load_yaml, save_yaml

CHOICES = sorted((group, choice) for group, choices in groups().items() for choice in choices)
NEEDS = {
    ("data", "crosswoz"): ["data.root=anywhere"],
    ("data", "plugin"): ["data.name=somebodys"],
    ("experiment", "crosswoz_restaurants"): ["data.root=anywhere"],
    ("runtime", "fleet"): [
        "privacy=blt",
        "cohort=bounded",
        "evaluation.controls=false",
        *(f"runtime.fleet.{name}=anywhere" for name in ("bundle", "root_key")),
        *(f"runtime.fleet.{name}=1000" for name in ("population", "round_size")),
    ],
}


@pytest.mark.parametrize("name", experiments())
def test_first_line_of_a_preset_is_its_command(name: str) -> None:
    line = experiments()[name]
    words = shlex.split(line)
    assert words[:2] == ["fedlearn", "train"]
    assert f"experiment={name}" in words
    assert isinstance(compose(words[2:]), ExperimentConfig)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    assert isinstance(compose([f"{group}={choice}", *NEEDS.get((group, choice), [])]), ExperimentConfig)


def test_every_config_says_what_it_is_for() -> None:
    for path in packaged_configs().rglob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("# "), f"{path.name}: begin with a comment"


def test_a_config_survives_its_file(tmp_path: Path) -> None:
    config = compose(["experiment=city_quick", "seeds=[3,1]", "server_opt=adam"])
    save_yaml(config, tmp_path / "config.yaml")
    assert load_yaml(tmp_path / "config.yaml") == config
    assert from_plain(to_plain(config)).digest == config.digest


def test_what_comes_from_elsewhere_resolves_nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's interpolations are the submitter's; a config that arrives would read this side's environment."""
    monkeypatch.setenv("SECRET_OF_THE_NODE", "hunter2")
    plain = to_plain(compose(["experiment=city_quick"]))
    plain["run"]["name"] = "${oc.env:SECRET_OF_THE_NODE}"
    with pytest.raises(ConfigError, match=r"^run\.name: holds \$\{") as caught:
        from_plain(plain)
    assert "SECRET" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert compose(["experiment=city_quick", "run.name=${oc.env:SECRET_OF_THE_NODE}"]).run.name == "hunter2"


def test_digest_sees_what_decides_the_result_and_nothing_else() -> None:
    base = compose(["experiment=city_quick"])
    assert (
        compose(["experiment=city_quick", "run.dir=elsewhere", "run.name=other", "tracking=mlflow"]).digest
        == base.digest
    )
    for override in ("data.seed=1", "privacy.epsilon=2.9", "evaluation.users=4999", "seeds=[1]", "runtime.shards=2"):
        assert compose(["experiment=city_quick", override]).digest != base.digest


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        compose([]).seeds = (1,)  # type: ignore[misc]


MISSPELT = [
    ("privacy.epsilom=1", "privacy.epsilom", "privacy.epsilon"),
    ("+privacy.epsilom=1", "privacy.epsilom", "privacy.epsilon"),
    ("cohort.round=3", "cohort.round", "cohort.rounds"),
    ("+cohort.round=3", "cohort.round", "cohort.rounds"),
    ("data.device=3", "data.device", "data.devices"),
    ("+data.device=3", "data.device", "data.devices"),
    ("seed=1", "seed", "seeds"),
    ("+seed=1", "seed", "seeds"),
    ("+evaluation.metric=[MRR]", "evaluation.metric", "evaluation.metrics"),
    ("privacy=gausian", "privacy=gausian", "gaussian"),
    ("data=citty", "data=citty", "city"),
    ("experiment=city_quik", "experiment=city_quik", "city_quick"),
    ("runtime.engine=vmapp", "runtime.engine", "vmap"),
    ("runtime.name=rey", "runtime.name", "ray"),
    ("features.sources=[catalog]", "features.sources", "catalogue"),
    ("policy.name=strict", "policy.name", "none"),
    ("tracking.name=tensorbord", "tracking.name", "tensorboard"),
]


@pytest.mark.parametrize(("override", "field", "hint"), MISSPELT)
def test_a_name_that_does_not_exist_gets_a_suggestion(override: str, field: str, hint: str) -> None:
    with pytest.raises(UnknownSetting) as caught:
        compose([override])
    message = str(caught.value)
    assert message.startswith(field), message
    assert hint in message.removeprefix(field), message


WRONG: list[tuple[list[str], type[FedlearnError], str]] = [
    (["privacy.epsilon=0"], OutOfRange, "privacy.epsilon"),
    (["privacy.epsilon=-1"], OutOfRange, "privacy.epsilon"),
    (["privacy.epsilon=nan"], OutOfRange, "privacy.epsilon"),
    (["privacy.epsilon=inf"], OutOfRange, "privacy.epsilon"),
    (["privacy.epsilon=null"], OutOfRange, "privacy.epsilon"),
    (["privacy.noise_multiplier=1"], OutOfRange, "privacy.epsilon"),
    (["privacy.epsilon=null", "privacy.noise_multiplier=0"], OutOfRange, "privacy.noise_multiplier"),
    (["privacy.delta=0"], OutOfRange, "privacy.delta"),
    (["privacy.delta=1"], OutOfRange, "privacy.delta"),
    (["privacy.delta=null"], OutOfRange, "privacy.delta"),
    (["privacy.clip=0"], OutOfRange, "privacy.clip"),
    (["privacy.clip=-0.5"], OutOfRange, "privacy.clip"),
    (["privacy.clip=nan"], OutOfRange, "privacy.clip"),
    (["privacy.epsilon=1e9"], OutOfRange, "privacy.epsilon"),
    (["privacy.epsilon=null", "privacy.noise_multiplier=1e7"], OutOfRange, "privacy.noise_multiplier"),
    (["seeds=[99999999999999999999999]"], OutOfRange, "seeds"),
    (["run.name=a/b"], OutOfRange, "run.name"),
    (["data.devices=20000", "privacy.delta=1e-3"], OutOfRange, "privacy.delta"),
    (["data.devices=50", "privacy.delta=1e-3", "cohort.fraction=null", "cohort.size=51"], OutOfRange, "cohort.size"),
    (["evaluation.metrics=[MRR,MRR]"], OutOfRange, "evaluation.metrics"),
    (["~client"], ConfigError, "client"),
    (["privacy=none", "privacy.clip=0"], OutOfRange, "privacy.clip"),
    (["cohort.fraction=1.5"], OutOfRange, "cohort.fraction"),
    (["cohort.fraction=0"], OutOfRange, "cohort.fraction"),
    (["cohort.fraction=null"], OutOfRange, "cohort.size"),
    (["cohort.size=10"], OutOfRange, "cohort.size"),
    (["cohort.fraction=null", "cohort.size=0"], OutOfRange, "cohort.size"),
    (["cohort.rounds=0"], OutOfRange, "cohort.rounds"),
    (["client.epochs=0"], OutOfRange, "client.epochs"),
    (["client.batch_size=0"], OutOfRange, "client.batch_size"),
    (["client.candidates=1"], OutOfRange, "client.candidates"),
    (["client.learning_rate=0"], OutOfRange, "client.learning_rate"),
    (["server_opt.learning_rate=-1"], OutOfRange, "server_opt.learning_rate"),
    (["server_opt.average_last=2"], OutOfRange, "server_opt.average_last"),
    (["runtime.shards=0"], OutOfRange, "runtime.shards"),
    (["runtime.threads=0"], OutOfRange, "runtime.threads"),
    (["runtime.deadline_s=0"], OutOfRange, "runtime.deadline_s"),
    (["evaluation.every=0"], OutOfRange, "evaluation.every"),
    (["evaluation.users=0"], OutOfRange, "evaluation.users"),
    (["evaluation.bootstrap=1"], OutOfRange, "evaluation.bootstrap"),
    (["evaluation.metrics=[]"], OutOfRange, "evaluation.metrics"),
    (["features.sources=[]"], OutOfRange, "features.sources"),
    (["features.sources=[chat,chat]"], OutOfRange, "features.sources"),
    (["seeds=[]"], OutOfRange, "seeds"),
    (["seeds=[1,1]"], OutOfRange, "seeds"),
    (["data=crosswoz", "data.root=x", "data.folds=1"], OutOfRange, "data.folds"),
    (["data=crosswoz", "data.root=x", "data.folds=0"], OutOfRange, "data.folds"),
    (["data=crosswoz", "data.root=x", "data.fold_by=week"], UnknownSetting, "data.fold_by"),
    (["data=plugin", "data.name=x", "data.folds=2"], OutOfRange, "data.folds"),
    (["data=crosswoz"], ConfigError, "data.root"),
    (["data=plugin"], ConfigError, "data.name"),
    (["cohort.rounds=many"], ConfigError, "cohort.rounds"),
    (["+cohort.rounds=many"], ConfigError, "cohort.rounds"),
    (["privacy.epsilon=three"], ConfigError, "privacy.epsilon"),
    (["seeds=[a]"], ConfigError, "seeds"),
    (["client.shuffle=perhaps"], ConfigError, "client.shuffle"),
    (["tracking=mlflow", "tracking.uri=https://bob:hunter2@mlflow.example/"], OutOfRange, "tracking.uri"),
    (["tracking=mlflow", "tracking.uri=https://hunter2@mlflow.example/"], OutOfRange, "tracking.uri"),
    (["tracking.uri='https://[hunter2'"], OutOfRange, "tracking.uri"),
]


@pytest.mark.parametrize(("overrides", "kind", "field"), WRONG, ids=[" ".join(row[0]) for row in WRONG])
def test_a_wrong_value_is_refused_by_name(overrides: list[str], kind: type[FedlearnError], field: str) -> None:
    with pytest.raises(kind) as caught:
        compose(overrides)
    assert field in str(caught.value), str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_an_edited_folder_is_searched_first(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "city.yaml").write_text("defaults: [city_schema]\ndevices: 77\n")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# fedlearn train experiment=mine\ncohort:\n  rounds: 3\n")
    config = compose(["experiment=mine"], config_dir=tmp_path)
    assert isinstance(config.data, CityData)
    assert (config.data.devices, config.cohort.rounds) == (77, 3)
    assert config.data.rho == 0.6, "what the edited file leaves out comes from the schema"


def test_a_folder_counts_for_one_call_only(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "city.yaml").write_text("defaults: [city_schema]\ndevices: 78\n")
    compose([], config_dir=tmp_path)
    after = compose([]).data
    assert isinstance(after, CityData)
    assert after.devices == 1000


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="config-dir"):
        compose([], config_dir=tmp_path / "absent")


def test_errors_of_bad_input_share_an_exit_status() -> None:
    assert issubclass(EmptyPopulation, DataError)
    assert issubclass(OutOfRange, ConfigError)


def test_privacy_none_on_top_of_a_preset_drops_its_promise() -> None:
    config = compose(["experiment=crosswoz_restaurants", "data.root=.", "privacy=none"])
    assert (config.privacy.mode, config.privacy.epsilon, config.privacy.delta) == ("none", None, None)


def test_where_the_data_lies_is_no_part_of_the_config_digest(tmp_path: Path) -> None:
    here = compose(["experiment=crosswoz_restaurants", "data.root=."])
    there = compose(["experiment=crosswoz_restaurants", f"data.root={tmp_path}"])
    assert here.digest == there.digest
    assert isinstance(here.data, CrossWozData)
    assert Path(here.data.root).is_absolute(), "a run resumed from another folder must find its data"
