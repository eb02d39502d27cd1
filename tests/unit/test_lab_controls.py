"""The controls on a hand-made data set whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.catalogue import Catalogue, Item
from fedlearn.errors import EmptyPopulation
from fedlearn.features import FEATURES
from fedlearn.lab import central
from fedlearn.lab.config import ExperimentConfig, PluginData
from fedlearn.lab.configs import compose
from fedlearn.lab.controls import WORDS, _donors, run_controls
from fedlearn.lab.dataset import TaskProtocol
from fedlearn.lab.prepare import Prepared, Split, limit_test_users, prepare_dataset, splits
from fedlearn.models import MatchModel
from fedlearn.signals import Device, Direction, Message, Session

DISHES = ("mapo tofu", "roast duck", "dumplings", "hotpot", "noodles", "congee", "satay", "ramen")


class Canteen:
    """Eight places, one dish each; the owner always asks for the dish and goes where it is served."""

    protocol = TaskProtocol("canteen", "the last session of each phone")
    digest = "canteen"

    def __init__(self, phones: int = 12) -> None:
        self.phones = phones

    @property
    def catalogue(self) -> Catalogue:
        items = tuple(Item("restaurant", f"Place {n}", {"dish": (dish,)}) for n, dish in enumerate(DISHES))
        return Catalogue("canteen", "restaurant", items)

    def devices(self) -> Iterator[Device]:
        for phone in range(self.phones):
            sessions = []
            for visit in range(3):
                chosen = (phone + 3 * visit) % len(DISHES)
                text = Message(f"I want {DISHES[chosen]}", Direction.OUTGOING)
                sessions.append(Session((text,), (), chosen, f"{phone}-{visit}"))
            yield Device(f"phone{phone}", tuple(sessions))


@pytest.fixture
def config() -> ExperimentConfig:
    base = compose(["privacy=none"])
    return replace(base, data=PluginData("canteen", {}, 1, "last_session"))


@pytest.fixture
def canteen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path))
    return prepare_dataset(Canteen())


def test_controls_rank_what_they_should(config: ExperimentConfig, canteen: Prepared) -> None:
    (split,) = splits(canteen, config.data)
    found = {control.name: control.ranks for control in run_controls(config, canteen, split)}
    assert (found["BM25, last message"] == 1).all()
    assert (found["central, same features"] == 1).all()
    assert (found["local-only"] == 1).all()
    # popularity ignores what was said, and shuffled chat says what somebody else wanted
    assert found["popularity"].mean() > 2.0
    assert found["central, shuffled chat"].mean() > 1.5


def test_the_words_feature_that_stands_for_bm25_exists() -> None:
    assert WORDS in {spec.name for spec in FEATURES}


def test_last_session_split_trains_on_all_but_the_last(config: ExperimentConfig, canteen: Prepared) -> None:
    (split,) = splits(canteen, config.data)
    assert split.test.tolist() == list(range(2, 36, 3))
    assert sorted([*split.train, *split.test]) == list(range(36))


@pytest.mark.parametrize("by", ["user", "dialogue"])
def test_folds_cover_every_session_once_and_never_split_a_key(by: str, canteen: Prepared) -> None:
    found = splits(canteen, PluginData("canteen", {}, 4, by))
    assert sorted(np.concatenate([split.test for split in found])) == list(range(36))
    for split in found:
        assert not set(split.train) & set(split.test)
        if by == "user":
            owner = canteen.device_of_row
            assert not set(owner[split.train]) & set(owner[split.test])
            assert set(split.devices) == set(owner[split.train])


def test_more_folds_than_groups_is_refused(canteen: Prepared) -> None:
    with pytest.raises(EmptyPopulation, match=r"data\.folds=13"):
        splits(canteen, PluginData("canteen", {}, 13, "user"))


def test_a_population_without_sessions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_CACHE", str(tmp_path))
    with pytest.raises(EmptyPopulation):
        prepare_dataset(Canteen(phones=0))


def test_donors_are_always_another_phone(canteen: Prepared) -> None:
    donors = _donors(canteen)
    assert donors is not None
    assert (canteen.device_of_row[donors] != canteen.device_of_row).all()


def test_test_users_are_limited_by_whole_users() -> None:
    split = Split(0, np.arange(4), np.arange(0), np.arange(8))
    owner = np.repeat(np.arange(4), 2)
    limited = limit_test_users(split, owner, 2)
    assert len(limited.test) == 4
    assert len(np.unique(owner[limited.test])) == 2


def test_central_fit_finds_the_minimum_of_a_convex_loss() -> None:
    """Oracle: at the minimum the gradient of loss + ridge is zero (McFadden 1974: the logit's score equations)."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 6, 50)
    weights = central.fit(MatchModel(3), features, labels)["weights"].astype(np.float64)
    logits = features @ weights
    chances = np.exp(logits - logits.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    chosen = features[np.arange(50), labels]
    gradient = (np.einsum("nk,nkd->nd", chances, features) - chosen).mean(0) + 2 * central.RIDGE * weights
    assert np.abs(gradient).max() < 1e-4
