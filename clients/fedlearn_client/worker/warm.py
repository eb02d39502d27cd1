"""Uses once whatever a request needs: nothing can be imported, and no file opened, once the worker is sealed."""

from __future__ import annotations

import base64

import numpy as np

from fedlearn.catalogue import Catalogue, Item
from fedlearn.clip import clip_l2
from fedlearn.engine.negatives import sample_candidates
from fedlearn.features.index import CatalogueIndex
from fedlearn.features.ingest import make_query_from, read_message
from fedlearn.features.match import match_all
from fedlearn.privacy.exact_normal import rounded_normal
from fedlearn.privacy.grid import to_grid
from fedlearn.rng import os_bytes, simulation_rng
from fedlearn_client.worker.graphs import open_graph

_IDENTITY = base64.b64decode("CAo6NwoQCgF4EgF5IghJZGVudGl0eRIBaVoPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEBI=")


def up() -> None:
    """Run a made-up item, message, graph and update through everything."""
    index = CatalogueIndex.build(Catalogue("warm", "food", (Item("food", "noodle bar", {"dish": ("noodles",)}, 10.0),)))
    said = read_message("noodles below 20, please \u9762\u6761", (), index)
    match_all(make_query_from([] if said is None else [said], (), index), index)
    sample_candidates(np.zeros(1, np.int64), 1, 1, simulation_rng(0, 0, "", "warm"))
    to_grid(clip_l2(np.ones(2, np.float32), 1.0).values, 0.5)
    rounded_normal(2, 1.0, os_bytes)
    open_graph(_IDENTITY, "warm").run(None, {"x": np.zeros(1, np.float32)})
