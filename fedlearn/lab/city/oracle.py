"""The best ranking a device's signals allow: expected choice probabilities under the exact posterior.

The posterior over tastes is reached by importance sampling (``proposal``); homes, the area the maps app knows, unknown
sights and the meanings of vague words are summed out exactly for every draw (Rao-Blackwellisation).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from fedlearn.errors import OutOfRange
from fedlearn.lab.city.generator import City, Episode
from fedlearn.lab.city.people import (
    DINING,
    WEIGHTS,
    ChoiceModel,
    band_probabilities,
    content_probability,
    cuisine_probabilities,
)
from fedlearn.lab.city.places import AREAS, F64
from fedlearn.lab.city.proposal import F32, Draws, Evidence, propose, standard_normals

MIN_DRAWS = 100


@dataclass(frozen=True)
class Answer:
    """A ranking and how much of the sample stands behind it.

    Args:
        scores: f64[N], expected choice probability of each restaurant; sums to 1.
        effective_draws: effective sample size of the importance weights (Kong 1992), 1..draws.
    """

    scores: F64
    effective_draws: float


class CityOracle:
    """Ranks restaurants as well as a device's own signals allow.

    Args:
        city: the city.
        draws: importance draws of tastes, >= 100.

    Raises:
        OutOfRange: too few draws.
    """

    def __init__(self, city: City, draws: int = 2000) -> None:
        if draws < MIN_DRAWS:
            raise OutOfRange(f"oracle draws={draws}: must be >= {MIN_DRAWS}, e.g. 2000.")
        self._city = city
        self._normals = standard_normals(draws, city.config.seed)
        self._menu = _Menu(city.model)

    def scores(self, device_index: int, session_index: int, *, use_other_apps: bool = True) -> F64:
        """Return f64[N]: expected choice probabilities given the device's signals up to a session.

        The signals: every outgoing message up to and in the session, the restaurants chosen in earlier sessions, and
        (``use_other_apps``) sights, books, clips and products chosen before it, today's sight included.
        """
        return self.answer(device_index, session_index, use_other_apps=use_other_apps).scores

    def answer(self, device_index: int, session_index: int, *, use_other_apps: bool = True) -> Answer:
        """Return ``scores`` with the effective sample size."""
        episodes = self._city.life(device_index).episodes
        session_index = range(len(episodes))[session_index]
        evidence = Evidence(episodes[:session_index], episodes[session_index], use_other_apps)
        return self.rank(evidence)

    def rank(self, evidence: Evidence) -> Answer:
        """Return the answer to any evidence, e.g. one made of another phone's signals."""
        draws = propose(self._city.model, evidence, self._normals)
        return self._menu.answer(evidence, draws)

    def truth_scores(self, device_index: int, session_index: int) -> F64:
        """Return f64[N]: the true utility, with tastes, home and intent known; only the choice's noise is not."""
        life = self._city.life(device_index)
        episode = life.episodes[session_index]
        return self._city.model.utility(life.tastes, life.intents[session_index], episode.sight)


@dataclass(frozen=True)
class _Meaning:
    """One intent the words of a session can mean, for every draw.

    Args:
        chance: f32[M], P(content, intent | tastes) up to a constant of the session.
        public: f32[N], exp of the public utility and of today's sight where it is known, restaurants in area order.
        total: f32[M], sum over all restaurants of exp(utility), home left out.
        by_area: f32[M, AREAS], the same by area.
    """

    chance: F32
    public: F32
    total: F32
    by_area: F32


@dataclass(frozen=True)
class _Maps:
    """What a draw says about sights.

    Args:
        area: f32[M, AREAS], sum of exp(utility) of each area's sights, home left out.
        norm: f32[M, AREAS], the same sum over all sights if the known home were in that area.
        boost: exp(pull of the known home) - 1.
    """

    area: F32
    norm: F32
    boost: float


class _Menu:
    """The exact sums over everything discrete, for given draws of tastes."""

    def __init__(self, model: ChoiceModel) -> None:
        self._model = model
        self._order = np.argsort(model.area, kind="stable")
        self._area = model.area[self._order]
        starts = np.searchsorted(self._area, np.arange(AREAS + 1))
        self._slices = [slice(int(a), int(b)) for a, b in pairwise(starts)]
        self._place = np.argsort(self._order)
        self._phi = model.dining_phi[self._order].astype(np.float32)
        self._app_phi = [phi.astype(np.float32) for phi in model.app_phi]
        self._sight_member = np.eye(AREAS, dtype=np.float32)[model.sight_area]

    def answer(self, evidence: Evidence, draws: Draws) -> Answer:
        """Weigh the draws by the evidence and average the choice probabilities of the present session."""
        taste = np.exp(self._phi @ draws.theta[:, DINING].T)
        maps = self._maps(draws)
        log_posterior = self._log_homes(evidence, draws, maps)
        for episode in evidence.past:
            meanings = self._meanings(episode, draws, taste, evidence.other_apps)
            log_posterior = log_posterior + self._log_chosen(episode, taste, meanings, maps, evidence.other_apps)
        meanings = self._meanings(evidence.present, draws, taste, evidence.other_apps)
        log_posterior = log_posterior + np.log(sum(m.chance for m in meanings))[:, None, None]
        weight = np.exp(log_posterior - log_posterior.max())
        weight /= weight.sum()
        per_draw = weight.reshape(len(weight), -1).sum(1)
        scores = self._predict(evidence, taste, meanings, weight, maps)
        return Answer(scores[self._place], float(1.0 / np.square(per_draw).sum()))

    def _maps(self, draws: Draws) -> _Maps:
        area = np.exp(draws.theta[:, 0] @ self._app_phi[0].T) @ self._sight_member
        boost = float(np.expm1(WEIGHTS.sight_home))
        return _Maps(area, area.sum(1, keepdims=True) + boost * area, boost)

    def _log_homes(self, evidence: Evidence, draws: Draws, maps: _Maps) -> F32:
        """f32[M, homes, homes the maps app may know or 1]: prior of homes, and all that other apps say."""
        rho = self._model.rho
        prior = (rho * np.eye(AREAS) + (1.0 - rho) / AREAS).astype(np.float32)
        log_weight = draws.log_weight[:, None, None]
        if not evidence.other_apps:
            with np.errstate(divide="ignore"):
                return log_weight + np.log(prior)
        known = np.zeros(AREAS, dtype=np.float32)
        np.add.at(known, self._model.sight_area[evidence.sights], WEIGHTS.sight_home)
        log_sights = known - len(evidence.sights) * np.log(maps.norm)
        top = log_sights.max(1, keepdims=True)
        homes = top + np.log(np.exp(log_sights - top) @ prior.T)
        return np.asarray(log_weight + homes[:, :, None] + self._log_items(evidence, draws)[:, None, None], np.float32)

    def _log_items(self, evidence: Evidence, draws: Draws) -> F32:
        """f32[M]: log-likelihood of sights (home apart) and of the content apps' items."""
        total = np.zeros(len(draws.theta), dtype=np.float32)
        for app, phi in enumerate(self._app_phi):
            items = evidence.sights if app == 0 else evidence.items(app)
            if not items:
                continue
            utility = draws.theta[:, app] @ phi.T
            total += utility[:, items].sum(1)
            if app > 0:
                total -= np.float32(len(items)) * np.log(np.exp(utility) @ np.ones(len(phi), dtype=np.float32))
        return total

    def _meanings(self, episode: Episode, draws: Draws, taste: F32, other_apps: bool) -> list[_Meaning]:
        content, model = episode.content, self._model
        near = model.sight_pull(content.intent.near) * (self._area == model.sight_area[episode.sight])
        meanings = []
        for intent in content.intents():
            utility = model.public_utility(intent)[self._order] + (near if other_apps else 0.0)
            public = np.exp(utility).astype(np.float32)
            by_area = np.stack([public[s] @ taste[s] for s in self._slices], axis=1)
            said = np.float32(content_probability(content, intent))
            chance = said * self._chance(intent.cuisine, intent.band, draws)
            meanings.append(_Meaning(chance, public, by_area.sum(1), by_area))
        return meanings

    def _chance(self, cuisine: int, band: int, draws: Draws) -> F32:
        """P(intent's taste-driven fields | tastes), f32[M]; the other fields are the same for every draw."""
        theta, chance = draws.theta[:, DINING], np.ones(len(draws.theta), dtype=np.float32)
        if cuisine >= 0:
            chance *= cuisine_probabilities(theta)[:, cuisine]
        if band >= 0:
            chance *= band_probabilities(theta, self._model.band_level)[:, band]
        return chance

    def _log_chosen(self, episode: Episode, taste: F32, meanings: list[_Meaning], maps: _Maps, other_apps: bool) -> F32:
        """Log P(words, choice | draw, home, home known to maps), f64[M, homes, 1 or homes]."""
        near, place = episode.content.intent.near, int(self._place[episode.chosen])
        area = int(self._area[place])
        home = np.float32(np.expm1(self._model.home_pull(near)))
        at_home = np.where(np.arange(AREAS) == area, 1 + home, 1).astype(np.float32)
        chances = [m.chance * taste[place] * m.public[place] for m in meanings]
        pull = 0.0 if other_apps else self._model.sight_pull(near)
        if pull == 0.0:
            found = sum(
                c[:, None] / (m.total[:, None] + home * m.by_area) for c, m in zip(chances, meanings, strict=True)
            )
            return np.asarray(np.log(found * at_home)[:, :, None])
        sight = np.float32(np.expm1(pull))
        at_sight = np.where(np.arange(AREAS) == area, 1 + sight, 1).astype(np.float32)
        by_sight = sum(
            c[:, None, None] / _both_norms(m, home, sight) for c, m in zip(chances, meanings, strict=True)
        ) * (at_home[:, None] * at_sight)
        weighted = by_sight * maps.area[:, None, :]
        mixed = (weighted.sum(2, keepdims=True) + np.float32(maps.boost) * weighted) / maps.norm[:, None, :]
        return np.asarray(np.log(mixed))

    def _predict(self, evidence: Evidence, taste: F32, meanings: list[_Meaning], weight: F32, maps: _Maps) -> F64:
        """Expected choice probabilities f64[N], restaurants in area order."""
        near = evidence.present.content.intent.near
        home = np.float32(np.expm1(self._model.home_pull(near)))
        pull = 0.0 if evidence.other_apps else self._model.sight_pull(near)
        sight = np.float32(np.expm1(pull))
        told = sum(m.chance for m in meanings)
        scores = np.zeros(len(self._area))
        for meaning in meanings:
            share = meaning.chance / told
            if pull == 0.0:
                q = weight.sum(2) * share[:, None] / (meaning.total[:, None] + home * meaning.by_area)
                factor = q.sum(1, keepdims=True) + home * q
            else:
                factor = self._unknown_sight(weight * share[:, None, None], meaning, home, sight, maps)
            for area, s in enumerate(self._slices):
                scores[s] += meaning.public[s] * (taste[s] @ factor[:, area])
        return scores

    @staticmethod
    def _unknown_sight(weight: F32, meaning: _Meaning, home: np.float32, sight: np.float32, maps: _Maps) -> F32:
        """Sum over homes and today's sight of weight / normaliser, times the pull of each area, f32[M, AREAS]."""
        over_norm = weight / maps.norm[:, None, :]
        at = maps.area[:, None, :] * (over_norm.sum(2, keepdims=True) + np.float32(maps.boost) * over_norm)
        q = at / _both_norms(meaning, home, sight)
        both = np.einsum("mhh->mh", q)
        factor = q.sum((1, 2))[:, None] + home * q.sum(2) + sight * q.sum(1) + home * sight * both
        return np.asarray(factor, dtype=np.float32)


def _both_norms(meaning: _Meaning, home: np.float32, sight: np.float32) -> F32:
    """f32[M, homes, sight areas]: sum of exp(utility) when home and today's sight pull."""
    areas = meaning.by_area
    norm = meaning.total[:, None, None] + home * areas[:, :, None] + sight * areas[:, None, :]
    diagonal = np.arange(AREAS)
    norm[:, diagonal, diagonal] += home * sight * areas
    return np.asarray(norm)
