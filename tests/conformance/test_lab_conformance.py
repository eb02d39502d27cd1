"""The built-in data sets and metrics conform; broken ones are caught."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from fedlearn.catalogue import Catalogue, Item
from fedlearn.lab.config import CityData
from fedlearn.lab.conformance import DatasetConformance, MetricConformance
from fedlearn.lab.data.city import CityDataset
from fedlearn.lab.dataset import SessionDataset, TaskProtocol
from fedlearn.lab.evaluation import Metric
from fedlearn.lab.registry import build_metric
from fedlearn.signals import Choice, Device, Direction, Message, Session


class TestCity(DatasetConformance):
    def dataset(self) -> SessionDataset:
        return CityDataset(CityData("city", 30, 0.6, 0, "mixed", 500, 1, 2))


class TestHitRate(MetricConformance):
    def metric(self) -> Metric:
        return build_metric("HR@10")


class TestNdcg(MetricConformance):
    def metric(self) -> Metric:
        return build_metric("NDCG@5")


class TestReciprocalRank(MetricConformance):
    def metric(self) -> Metric:
        return build_metric("MRR")


class Broken:
    """A small correct data set, to be broken in one place each."""

    catalogue = Catalogue("c", "toy", (Item("toy", "kite"), Item("toy", "train")))
    protocol = TaskProtocol("chat to toy", "last session")
    digest = "0" * 64
    session = Session((Message("a kite", Direction.OUTGOING),), (Choice("toy:train", "shop"),), 0, "g")
    ids = ("a", "b")

    def devices(self) -> Iterator[Device]:
        for name in self.ids:
            yield Device(name, (self.session,))


class Forgetful(Broken):
    passes = 0

    def devices(self) -> Iterator[Device]:
        type(self).passes += 1
        yield Device(f"phone{self.passes}", (self.session,))


def suite(**changes: object) -> DatasetConformance:
    made = DatasetConformance()
    broken = type("Changed", (Broken,), changes)
    made.dataset = broken  # type: ignore[method-assign]
    return made


def all_tests(suite: object) -> list[str]:
    return [name for name in dir(suite) if name.startswith("test_")]


def test_the_unbroken_one_passes() -> None:
    for name in all_tests(suite()):
        getattr(suite(), name)()


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({"catalogue": Catalogue("c", "toy", (Item("toy", "kite"),) * 2)}, "test_catalogue_has_items_with_unique_keys"),
        ({"catalogue": Catalogue("c", "toy", (Item("toy", "kite"),))}, "test_catalogue_has_items_with_unique_keys"),
        ({"digest": "abc"}, "test_digest_is_a_stable_sha256"),
        ({"protocol": TaskProtocol("", "")}, "test_protocol_says_how_to_read_results"),
        ({"devices": Forgetful.devices, "passes": 0}, "test_devices_repeat_exactly"),
        ({"ids": ("a", "a")}, "test_device_ids_are_unique"),
        ({"session": replace(Broken.session, chosen=2)}, "test_choices_are_positions_in_the_catalogue"),
        (
            {"session": replace(Broken.session, earlier=(Choice("toy:robot", "shop"),))},
            "test_earlier_choices_are_catalogue_keys",
        ),
        ({"session": replace(Broken.session, group="")}, "test_choices_are_positions_in_the_catalogue"),
        ({"ids": ()}, "test_somebody_can_train"),
    ],
)
def test_broken_data_sets_are_caught(changes: dict[str, object], method: str) -> None:
    with pytest.raises(AssertionError):
        getattr(suite(**changes), method)()


def write_into(ranks: np.ndarray) -> np.ndarray:
    ranks[:] = 1
    return ranks.astype(float)


@pytest.mark.parametrize(
    ("metric", "method"),
    [
        (lambda ranks: float(ranks.mean()) * np.ones(len(ranks)), "test_each_session_stands_alone"),
        (lambda ranks: ranks, "test_one_finite_value_a_session"),
        (lambda ranks: np.where(ranks > 3, np.nan, 1.0), "test_one_finite_value_a_session"),
        (write_into, "test_ranks_stay_as_they_are"),
        (lambda ranks: np.ones(max(len(ranks), 1)), "test_no_session_is_no_value"),
    ],
)
def test_broken_metrics_are_caught(metric: Metric, method: str) -> None:
    made = MetricConformance()
    made.metric = lambda: metric  # type: ignore[method-assign]
    with pytest.raises(AssertionError):
        getattr(made, method)()
