"""Trained models, made up, for tests of fedlearn.export."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.export.plan import Trained
from fedlearn.features import FEATURES
from fedlearn.models import MatchModel
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.policy.document import Policy, RecipientKind
from fedlearn.policy.load import load_policy
from fedlearn.privacy.factorization import Blt
from fedlearn.privacy.grid import grid_step
from fedlearn.terms import ExamplePrivacy, TrainingTerms

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("features_town", Path(__file__).with_name("features_town.py"))
assert _spec is not None
assert _spec.loader is not None
features_town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(features_town)

CITY = ROOT / "configs" / "policy" / "city.yaml"
KEY = "3b6a27bcceb6a42d62a3a8d02a6f0d73653215771de243a63ac048a18b59da29"  # of RFC 8032's all-zero seed; nobody's
MECHANISM = MechanismTerms("blt", Blt((0.9, 0.5), (0.1, 0.2)), 8.0, 0.1, grid_step(0.1), 40, 20, 2)
TERMS = TrainingTerms(epochs=2, batch_size=4, learning_rate=0.3, shuffle=True, candidates=8)


def policy(key: str = KEY) -> Policy:
    """The city's, with a task key that is no placeholder."""
    found = load_policy(CITY)
    recipients = tuple(
        replace(entry, task_key=key) if entry.kind is RecipientKind.OPERATOR else entry for entry in found.recipients
    )
    return replace(found, recipients=recipients)


def match_run(**changes: Any) -> Trained:
    rng = np.random.default_rng(3)
    made = Trained(
        name="evening",
        model=MatchModel(len(FEATURES)),
        parameters={"weights": rng.standard_normal(len(FEATURES)).astype(np.float32)},
        examples="match",
        example_options=(),
        features=tuple(spec.name for spec in FEATURES),
        terms=TERMS,
        mechanism=MECHANISM,
        catalogue=features_town.TOWN,
    )
    return replace(made, **changes)


def tower_run(**changes: Any) -> Trained:
    model = TwoTowerModel(terms=64, items=20, width=6, hidden=8)
    options = (("rows", 64), ("terms", 12))
    made = match_run(
        model=model, parameters=model.initial(4), examples="two_tower", example_options=options, features=()
    )
    return replace(made, **changes)


def private_steps(trained: Trained) -> Trained:
    return replace(trained, terms=replace(trained.terms, example_privacy=ExamplePrivacy(0.5, 0.8)))
