"""The oracle: equal to brute force, calibrated, and blind to what a device does not see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from fedlearn.errors import OutOfRange
from fedlearn.lab.city import Answer, City, CityConfig, CityOracle
from fedlearn.lab.city.generator import Episode
from fedlearn.lab.city.people import (
    DINING,
    HINT_BANDS,
    HINT_PROB,
    VAGUE_PROB,
    Want,
    band_probabilities,
    cuisine_probabilities,
    draw_tastes,
    softmax,
)
from fedlearn.lab.city.places import F64
from fedlearn.lab.city.proposal import Evidence
from fedlearn.signals import Direction, Session

PHONES = 150


@pytest.fixture(scope="module")
def city() -> City:
    return City(CityConfig())


@pytest.fixture(scope="module")
def oracle(city: City) -> CityOracle:
    return CityOracle(city)


@pytest.fixture(scope="module")
def answers(oracle: CityOracle) -> list[Answer]:
    return [oracle.answer(i, -1) for i in range(PHONES)]


def _top_ten(scores: F64) -> float:
    """Expected HR@10 of a ranking by calibrated probabilities: far less noisy than counting hits."""
    return float(np.sort(scores)[-10:].sum())


def _hit(scores: F64, chosen: int) -> bool:
    return int((scores >= scores[chosen]).sum()) - 1 < 10


def _hit_rate(rankings: Sequence[F64], city: City) -> float:
    chosen = [city.life(i).episodes[-1].chosen for i in range(len(rankings))]
    return float(np.mean([_hit(scores, item) for scores, item in zip(rankings, chosen, strict=True)]))


def _popularity(city: City) -> F64:
    counts = np.zeros(city.config.restaurants)
    for position in range(city.config.devices):
        for episode in city.life(position).episodes[:-1]:
            counts[episode.chosen] += 1
    return counts


def test_oracle_lies_in_its_band_and_keeps_its_promises(city: City, answers: list[Answer]) -> None:
    expected = float(np.mean([_top_ten(a.scores) for a in answers]))
    assert 0.60 <= expected <= 0.85
    # Promised and counted hit rates agree: binomial standard error at 150 phones is .039.
    assert _hit_rate([a.scores for a in answers], city) == pytest.approx(expected, abs=0.12)
    assert all(a.scores.sum() == pytest.approx(1.0, abs=1e-5) for a in answers)


def test_effective_sample_is_large(answers: list[Answer]) -> None:
    effective = [a.effective_draws for a in answers]
    assert min(effective) > 200
    assert float(np.median(effective)) > 800
    assert max(effective) <= 2000


def test_popularity_is_weak(city: City) -> None:
    popularity = _popularity(city)
    hits = [_hit(popularity, city.life(i).episodes[-1].chosen) for i in range(city.config.devices)]
    assert np.mean(hits) <= 0.20


def test_other_apps_are_worth_five_points(oracle: CityOracle, answers: list[Answer]) -> None:
    some = range(60)
    without = np.mean([_top_ten(oracle.scores(i, -1, use_other_apps=False)) for i in some])
    assert np.mean([_top_ten(answers[i].scores) for i in some]) >= without + 0.05


def test_worth_of_other_apps_grows_with_rho() -> None:
    gains = []
    for rho in (0.0, 0.5, 1.0):
        oracle = CityOracle(City(CityConfig(rho=rho)), draws=600)
        with_apps, without = (
            np.mean([_top_ten(oracle.scores(i, -1, use_other_apps=known)) for i in range(40)])
            for known in (True, False)
        )
        gains.append(with_apps - without)
    assert gains[0] == pytest.approx(0.0, abs=0.01)
    assert gains[0] + 0.03 < gains[1] < gains[2] - 0.03


def test_signals_of_another_phone_are_worth_nothing(city: City, oracle: CityOracle) -> None:
    shuffled = []
    for i in range(PHONES):
        episodes = city.life(i + PHONES).episodes
        shuffled.append(oracle.rank(Evidence(episodes[:-1], episodes[-1], other_apps=True)).scores)
    assert _hit_rate(shuffled, city) <= 0.10


def test_the_answer_never_reads_what_it_ranks(city: City, oracle: CityOracle) -> None:
    episodes = city.life(3).episodes
    changed = replace(episodes[-1], chosen=(episodes[-1].chosen + 1) % len(city.catalogue))
    one, other = (oracle.rank(Evidence(episodes[:-1], last, other_apps=True)) for last in (episodes[-1], changed))
    np.testing.assert_array_equal(one.scores, other.scores)


def test_unknown_apps_are_never_read(city: City, oracle: CityOracle) -> None:
    episodes = city.life(5).episodes
    changed = tuple(replace(e, sight=(e.sight + 37) % 100, picks=((1, 4), (2, 9))) for e in episodes)
    one, other = (oracle.rank(Evidence(e[:-1], e[-1], other_apps=False)) for e in (episodes, changed))
    np.testing.assert_array_equal(one.scores, other.scores)


def test_truth_beats_the_oracle(city: City, oracle: CityOracle, answers: list[Answer]) -> None:
    truth = np.mean([_top_ten(softmax(oracle.truth_scores(i, -1))) for i in range(PHONES)])
    assert truth > np.mean([_top_ten(a.scores) for a in answers]) + 0.02


def test_too_few_draws_are_refused(city: City) -> None:
    with pytest.raises(OutOfRange, match="draws=99"):
        CityOracle(city, draws=99)


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_oracle_works_at_the_ends_of_rho(rho: float) -> None:
    oracle = CityOracle(City(CityConfig(devices=1, rho=rho, sessions_min=1, sessions_max=1)), draws=200)
    for known in (True, False):
        answer = oracle.answer(0, 0, use_other_apps=known)
        assert np.isfinite(answer.scores).all()
        assert answer.scores.min() >= 0.0
        assert answer.effective_draws >= 1.0


def _meanings(city: City, episode: Episode, theta: F64) -> tuple[list[F64], list[float]]:
    """Public utilities and P(intent, words | tastes) by the definition, one entry per intent."""
    content, utilities, chances = episode.content, [], []
    for intent in content.intents():
        chance = 1.0
        if intent.want is not Want.OPEN:
            chance *= float(cuisine_probabilities(theta)[intent.cuisine])
        if intent.want is Want.CUISINE:
            chance *= VAGUE_PROB if content.group >= 0 else 1 - VAGUE_PROB
        if intent.band >= 0:
            chance *= float(band_probabilities(theta, city.model.band_level)[intent.band])
            if intent.band in {b for bands in HINT_BANDS.values() for b in bands}:
                chance *= HINT_PROB if content.hint else 1 - HINT_PROB
        utilities.append(city.model.public_utility(intent))
        chances.append(chance)
    return utilities, chances


def _brute_force(city: City, episodes: tuple[Episode, ...], other_apps: bool, draws: int) -> F64:
    """Likelihood-weighted prior draws of everything hidden, unknown sights included: slow, and plainly the model."""
    rng, model = np.random.default_rng(0), city.model
    total, weights = np.zeros(len(city.catalogue)), 0.0
    for _ in range(draws):
        tastes, weight = draw_tastes(rng, model.rho), 1.0
        sights = softmax(model.sight_utility(tastes))
        for number, episode in enumerate(episodes):
            sight = episode.sight if other_apps else int(rng.choice(len(sights), p=sights / sights.sum()))
            if other_apps:
                weight *= sights[sight]
                for app, item in episode.picks:
                    weight *= softmax(model.app_phi[app] @ tastes.theta[app])[item]
            utilities, chances = _meanings(city, episode, tastes.theta[DINING])
            near = episode.content.intent.near
            hidden = model.dining_phi @ tastes.theta[DINING] + model.home_pull(near) * (model.area == tastes.home)
            hidden = hidden + model.sight_pull(near) * (model.area == model.sight_area[sight])
            joint = sum(c * softmax(u + hidden) for c, u in zip(chances, utilities, strict=True))
            if number < len(episodes) - 1:
                weight *= joint[episode.chosen]
        total += weight * joint
        weights += weight * sum(chances)
    return total / weights


@pytest.mark.parametrize("other_apps", [True, False])
def test_posterior_equals_brute_force(other_apps: bool) -> None:
    city = City(CityConfig(devices=400, restaurants=500, sessions_min=2, sessions_max=2, rho=0.7))
    oracle = CityOracle(city, draws=4000)
    lives = [city.life(i) for i in range(400)]
    vague = [
        life.episodes
        for life in lives
        if life.episodes[-1].content.group >= 0 and life.episodes[-1].content.intent.near
    ]
    plain = [life.episodes for life in lives if all(e.content.intent.near for e in life.episodes)]
    for episodes in (vague[0], plain[0]):
        exact = oracle.rank(Evidence(episodes[:-1], episodes[-1], other_apps)).scores
        brute = _brute_force(city, episodes, other_apps, draws=6000)
        wrong = oracle.rank(Evidence(lives[9].episodes[:-1], lives[9].episodes[-1], other_apps)).scores
        distance = 0.5 * np.abs(exact - brute).sum()
        # 6,000 likelihood-weighted draws leave a total variation of a few percent; another phone's is far away.
        assert distance < 0.07
        assert 0.5 * np.abs(wrong - brute).sum() > 4 * distance


def _grams(text: str) -> set[str]:
    return {text[i : i + n].casefold() for n in (1, 2, 3) for i in range(len(text) - n + 1)}


def test_last_message_alone_is_not_enough(city: City) -> None:
    """BM25 over character 1..3-grams (Robertson & Zaragoza 2009; term counts of 1, k1 1.2, b .75)."""
    texts = [_grams(" ".join(v for values in i.attributes.values() for v in values)) for i in city.catalogue.items]
    vocabulary = {gram: k for k, gram in enumerate(sorted(set().union(*texts)))}
    length = np.array([len(text) for text in texts], dtype=float)
    held = np.zeros((len(vocabulary), len(texts)))
    for column, text in enumerate(texts):
        held[[vocabulary[gram] for gram in text], column] = 1.0
    count = held.sum(1, keepdims=True)
    weights = held * np.log(1 + (len(texts) - count + 0.5) / (count + 0.5)) * 2.2
    weights /= 1 + 1.2 * (0.25 + 0.75 * length / length.mean())

    def bm25(session: Session) -> F64:
        last = [m.text for m in session.messages if m.direction is Direction.OUTGOING][-1]
        return np.asarray(weights[[vocabulary[g] for g in _grams(last) if g in vocabulary]].sum(0))

    hits = [_hit(bm25(s), s.chosen) for device in city.devices(0, 400) for s in device.sessions[-1:]]
    assert 0.15 <= np.mean(hits) <= 0.45
