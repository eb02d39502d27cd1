"""Where the oracle draws tastes from: a Gaussian at the posterior's mode (Laplace), corrected by importance weights.

Plain prior draws leave an effective sample of a few dozen out of 2,000 once a phone has twenty choices; draws around
the mode keep most of them. The weights make any proposal exact in the limit (Owen 2013, ch. 9), so everything
here may be approximate: it leaves homes and the spread of vague words out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fedlearn.lab.city.generator import Episode
from fedlearn.lab.city.people import (
    APPS,
    BUDGET,
    DINING,
    LATENTS,
    WEIGHTS,
    ChoiceModel,
    Content,
    band_probabilities,
    cuisine_probabilities,
    softmax,
)
from fedlearn.lab.city.places import F64
from fedlearn.lab.city.tables import CUISINES
from fedlearn.rng import simulation_rng

F32 = NDArray[np.float32]

WHITE = (APPS + 1) * LATENTS
"""Size of the whitened state: the shared taste, then each app's own part, all independent standard normal."""
NEWTON_STEPS = 12
CLOSE_ENOUGH = 0.03
"""Newton stops when no coordinate moves by this share of its prior deviation."""


@dataclass(frozen=True)
class Evidence:
    """What a device knows when one session asks for a ranking.

    Args:
        past: earlier sessions with their choices.
        present: the session asked about; its ``chosen`` is never read.
        other_apps: whether sights, books, clips and products are known.
    """

    past: tuple[Episode, ...]
    present: Episode
    other_apps: bool

    @property
    def sights(self) -> list[int]:
        """Sights visited so far, today's included; empty when other apps are unknown."""
        return [e.sight for e in (*self.past, self.present)] if self.other_apps else []

    def items(self, app: int) -> list[int]:
        """Items chosen so far in content app ``app``; empty when other apps are unknown."""
        if not self.other_apps:
            return []
        return [item for e in (*self.past, self.present) for where, item in e.picks if where == app]


@dataclass(frozen=True)
class Draws:
    """Weighted draws of tastes.

    Args:
        theta: f32[M, APPS, LATENTS].
        log_weight: f32[M], log prior density minus log proposal density, up to a constant.
    """

    theta: F32
    log_weight: F32


def standard_normals(draws: int, seed: int) -> F32:
    """Return f32[draws, WHITE] in antithetic pairs; shared by all phones."""
    rng = simulation_rng(seed, -1, "", "oracle")
    half = rng.standard_normal(((draws + 1) // 2, WHITE), dtype=np.float32)
    return np.concatenate([half, -half])[:draws]


def propose(model: ChoiceModel, evidence: Evidence, normals: F32) -> Draws:
    """Draw tastes around the posterior's mode given the evidence."""
    mixing = _mixing(model.rho)
    public = np.array([_public(model, episode, evidence.other_apps) for episode in evidence.past])
    white = np.zeros(WHITE)
    precision = np.eye(WHITE)
    for _ in range(NEWTON_STEPS):
        gradient, information = _curvature(model, evidence, public, (mixing @ white).reshape(APPS, LATENTS))
        bent = information @ mixing.reshape(APPS, LATENTS, WHITE)
        precision = np.eye(WHITE) + mixing.T @ bent.reshape(APPS * LATENTS, WHITE)
        step = np.linalg.solve(precision, mixing.T @ gradient.ravel() - white)
        white = white + step
        if np.abs(step).max() < CLOSE_ENOUGH:
            break
    spread = np.linalg.inv(np.linalg.cholesky(precision)).astype(np.float32)
    points = white.astype(np.float32) + normals @ spread
    theta = (points @ mixing.T.astype(np.float32)).reshape(len(points), APPS, LATENTS)
    log_weight = 0.5 * (np.einsum("mw,mw->m", normals, normals) - np.einsum("mw,mw->m", points, points))
    return Draws(theta, log_weight)


@cache
def _mixing(rho: float) -> F64:
    """f64[APPS * LATENTS, WHITE]: tastes from the whitened state."""
    apps = np.hstack([np.full((APPS, 1), np.sqrt(rho)), np.sqrt(1.0 - rho) * np.eye(APPS)])
    return np.kron(apps, np.eye(LATENTS))


def _curvature(model: ChoiceModel, evidence: Evidence, public: F64, theta: F64) -> tuple[F64, F64]:
    """Gradient f64[APPS, LATENTS] and information f64[APPS, LATENTS, LATENTS] of the log-likelihood in the tastes."""
    gradient, information = np.zeros((APPS, LATENTS)), np.zeros((APPS, LATENTS, LATENTS))
    for app, phi in enumerate(model.app_phi):
        items = evidence.sights if app == 0 else evidence.items(app)
        if items:
            add = _logit(phi, np.zeros((1, len(phi))), items, theta[app])
            gradient[app] += add[0]
            information[app] += add[1]
    if evidence.past:
        add = _logit(model.dining_phi, public, [e.chosen for e in evidence.past], theta[DINING])
        gradient[DINING] += add[0]
        information[DINING] += add[1]
    for content in (e.content for e in (*evidence.past, evidence.present)):
        add = _wish(model, content, theta[DINING])
        gradient[DINING] += add[0]
        information[DINING] += add[1]
    return gradient, information


def _logit(phi: F64, base: F64, chosen: Sequence[int], theta: F64) -> tuple[F64, F64]:
    """Conditional logit: gradient and information of ``chosen``; ``base`` has a row per choice, or one for all."""
    p = softmax(base + phi @ theta)
    times = len(chosen) / len(p)
    mean = p @ phi
    information = phi.T @ (p.sum(0)[:, None] * phi) - mean.T @ mean
    return phi[chosen].sum(0) - times * mean.sum(0), times * information


def _public(model: ChoiceModel, episode: Episode, other_apps: bool) -> F64:
    content = episode.content
    wishes = [model.public_utility(intent) for intent in content.intents()]
    utility = np.mean(wishes, axis=0)
    if other_apps:
        near = model.area == model.sight_area[episode.sight]
        utility = utility + model.sight_pull(content.intent.near) * near
    return np.asarray(utility)


def _wish(model: ChoiceModel, content: Content, theta: F64) -> tuple[F64, F64]:
    """Gradient and information of P(content | dining tastes)."""
    gradient, information = np.zeros(LATENTS), np.zeros((LATENTS, LATENTS))
    scale = WEIGHTS.intent_taste
    if content.cuisines != (-1,):
        p, n, said = cuisine_probabilities(theta), len(CUISINES), list(content.cuisines)
        gradient[:n] -= scale * p
        gradient[said] += scale * p[said] / p[said].sum()
        information[:n, :n] += scale**2 * (np.diag(p) - np.outer(p, p))
    if content.bands != (-1,):
        p, level, said = band_probabilities(theta, model.band_level), model.band_level, list(content.bands)
        mean = p @ level
        gradient[BUDGET] = scale * (p[said] @ level[said] / p[said].sum() - mean)
        information[BUDGET, BUDGET] = scale**2 * (p @ level**2 - mean**2)
    return gradient, information
