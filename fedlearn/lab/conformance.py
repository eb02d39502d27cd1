"""Tests that every data set and metric must pass; subclass in a test file, pytest collects the methods. ::

    class TestMyShop(DatasetConformance):
        def dataset(self) -> SessionDataset: ...

    class TestMyMetric(MetricConformance):
        def metric(self) -> Metric: ...

Models have ``fedlearn.engine.conformance.ModelConformance``.
"""

from __future__ import annotations

import re
from itertools import islice

import numpy as np

from fedlearn.features import CatalogueIndex, make_query
from fedlearn.lab.dataset import OracleDataset, SessionDataset
from fedlearn.lab.evaluation import Metric
from fedlearn.types import F64

DEVICES = 50
"""Phones looked at; a data set may have millions."""


class DatasetConformance:
    """What training and evaluation rely on. Override ``dataset``."""

    def dataset(self) -> SessionDataset:
        """Return a fresh data set; two calls describe the same one."""
        raise NotImplementedError

    def test_catalogue_has_items_with_unique_keys(self) -> None:
        """A position in the catalogue is an item's identity."""
        catalogue = self.dataset().catalogue
        _require(len(catalogue) >= 2, "catalogue: needs at least 2 items to rank.")
        keys = [item.key for item in (*catalogue.items, *catalogue.context)]
        _require(len(keys) == len(set(keys)), "catalogue: two items have the same domain and name.")
        _require(
            all(item.domain == catalogue.domain for item in catalogue.items),
            f"catalogue.items: every item must be of domain {catalogue.domain!r}; others belong in context.",
        )

    def test_digest_is_a_stable_sha256(self) -> None:
        """Two data sets with one digest are one data set: stores and runs are kept under it."""
        first, second = self.dataset().digest, self.dataset().digest
        _require(re.fullmatch(r"[0-9a-f]{64}", first) is not None, "digest: must be 64 lower-case hex digits.")
        _require(first == second, "digest: differs between two calls.")

    def test_protocol_says_how_to_read_results(self) -> None:
        """Task, split, negatives and tie rule are given in words."""
        protocol = self.dataset().protocol
        words = (protocol.task, protocol.split, protocol.negatives, protocol.tie_rule)
        _require(all(word.strip() for word in words), "protocol: no field may be empty.")

    def test_devices_repeat_exactly(self) -> None:
        """The same phones in the same order, every time."""
        dataset = self.dataset()
        first = list(islice(dataset.devices(), DEVICES))
        _require(bool(first), "devices: there is none.")
        _require(first == list(islice(dataset.devices(), DEVICES)), "devices: the second pass differs from the first.")
        _require(first == list(islice(self.dataset().devices(), DEVICES)), "devices: a fresh data set differs.")

    def test_device_ids_are_unique(self) -> None:
        """An id keys all randomness of a phone, and is the unit of privacy."""
        seen: set[str] = set()
        for device in self.dataset().devices():
            _require(bool(device.id) and device.id not in seen, f"device id {device.id!r}: empty or not unique.")
            seen.add(device.id)

    def test_choices_are_positions_in_the_catalogue(self) -> None:
        """The label of a session ranks among the catalogue's items."""
        dataset = self.dataset()
        for device in islice(dataset.devices(), DEVICES):
            for session in device.sessions:
                inside = 0 <= session.chosen < len(dataset.catalogue)
                _require(inside, f"{device.id}: chosen={session.chosen} is no position in the catalogue.")
                _require(bool(session.group), f"{device.id}: a session needs a group; folds never split one.")

    def test_earlier_choices_are_catalogue_keys(self) -> None:
        """What was chosen before is named as the catalogue names it, or it can never become a feature."""
        dataset = self.dataset()
        catalogue = dataset.catalogue
        known = {item.key for item in (*catalogue.items, *catalogue.context)}
        for device in islice(dataset.devices(), DEVICES):
            for session in device.sessions:
                strange = [choice.item for choice in session.earlier if choice.item not in known]
                _require(not strange, f"{device.id}: earlier choice {strange[:1]} is not a key of the catalogue.")

    def test_every_session_becomes_a_query(self) -> None:
        """Ingest accepts every message, whatever it holds."""
        dataset = self.dataset()
        index = CatalogueIndex.build(dataset.catalogue)
        for device in islice(dataset.devices(), DEVICES):
            for session in device.sessions:
                _require(make_query(session, index).digest == index.digest, f"{device.id}: no Query could be made.")

    def test_somebody_can_train(self) -> None:
        """At least one phone has an example."""
        _require(any(device.sessions for device in self.dataset().devices()), "devices: no phone has a session.")

    def test_oracle_scores_rank_every_item(self) -> None:
        """For data sets that know the truth: one finite score an item."""
        dataset = self.dataset()
        if not isinstance(dataset, OracleDataset):
            return
        position = next(place for place, device in enumerate(dataset.devices()) if device.sessions)
        for scores in (dataset.oracle_scores(position, 0), dataset.truth_scores(position, 0)):
            _require(scores.shape == (len(dataset.catalogue),), "oracle: must give one score an item.")
            _require(bool(np.isfinite(scores).all()), "oracle: scores must be finite.")


class MetricConformance:
    """What tables and intervals rely on. Override ``metric``."""

    def metric(self) -> Metric:
        """Return the metric, its cutoff already chosen."""
        raise NotImplementedError

    def test_one_finite_value_a_session(self) -> None:
        """Ranks i64[n] give f64[n], finite."""
        values = self._values(100)
        _require(values.shape == (100,) and values.dtype == np.float64, "metric: must return f64, one value a rank.")
        _require(bool(np.isfinite(values).all()), "metric: must be finite.")

    def test_each_session_stands_alone(self) -> None:
        """A value depends on its own rank only: means over users, folds and resamples rely on it."""
        ranks = np.arange(1, 101)
        alone = np.concatenate([self.metric()(ranks[i : i + 1]) for i in range(len(ranks))])
        _require(np.array_equal(self._values(100), alone), "metric: a session's value depends on other sessions.")

    def test_no_session_is_no_value(self) -> None:
        """An empty test set gives an empty array."""
        _require(self.metric()(np.zeros(0, np.int64)).shape == (0,), "metric: must accept no rank at all.")

    def test_ranks_stay_as_they_are(self) -> None:
        """The caller's array is not written to."""
        ranks = np.arange(1, 11)
        self.metric()(ranks)
        _require(np.array_equal(ranks, np.arange(1, 11)), "metric: writes into its argument.")

    def _values(self, count: int) -> F64:
        return self.metric()(np.arange(1, count + 1))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
