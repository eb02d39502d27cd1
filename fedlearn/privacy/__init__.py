"""User-level differential privacy: events, accounting, calibration, secret sampling, the grid, and mechanisms."""

from __future__ import annotations

from fedlearn.privacy.events import NeighboringRelation, PoissonGaussian, Unit
from fedlearn.privacy.grid import from_grid, grid_step, to_grid
from fedlearn.privacy.mechanisms import GaussianMechanism, Mechanism, unprotected_mean
from fedlearn.privacy.plan import PrivacyPlan, PrivacySettings, make_plan
from fedlearn.privacy.sampling import RoundKey, SamplingKey, included
from fedlearn.privacy.secrets import SecretStore

__all__ = [
    "GaussianMechanism",
    "Mechanism",
    "NeighboringRelation",
    "PoissonGaussian",
    "PrivacyPlan",
    "PrivacySettings",
    "RoundKey",
    "SamplingKey",
    "SecretStore",
    "Unit",
    "from_grid",
    "grid_step",
    "included",
    "make_plan",
    "to_grid",
    "unprotected_mean",
]
