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
    APPS,
    DINING,
    HINT_BANDS,
    HINT_PROB,
    LATENTS,
    VAGUE_PROB,
    WEIGHTS,
    Want,
    band_probabilities,
    cuisine_probabilities,
    softmax,
)
from fedlearn.lab.city.places import AREAS, F64
from fedlearn.lab.city.proposal import Evidence
from fedlearn.signals import Direction, Session

PHONES = 100


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
    # Promised and counted hit rates agree: binomial standard error at 100 phones is .048.
    assert _hit_rate([a.scores for a in answers], city) == pytest.approx(expected, abs=0.15)
    assert all(a.scores.sum() == pytest.approx(1.0, abs=1e-5) for a in answers)


def test_effective_sample_is_large(answers: list[Answer]) -> None:
    effective = [a.effective_draws for a in answers]
    assert min(effective) > 200
    assert float(np.median(effective)) > 800
    assert max(effective) <= 2000


def test_effective_sample_survives_a_far_mode() -> None:
    """Phone 125 of this city needs six Newton steps; a proposal that stops after four keeps 3 draws of 2,000."""
    assert CityOracle(City(CityConfig(rho=1.0))).answer(125, -1).effective_draws > 500


def test_popularity_is_weak(city: City) -> None:
    popularity = _popularity(city)
    hits = [_hit(popularity, city.life(i).episodes[-1].chosen) for i in range(400)]
    assert np.mean(hits) <= 0.20


def test_other_apps_are_worth_five_points(oracle: CityOracle, answers: list[Answer]) -> None:
    some = range(50)
    without = np.mean([_top_ten(oracle.scores(i, -1, use_other_apps=False)) for i in some])
    assert np.mean([_top_ten(answers[i].scores) for i in some]) >= without + 0.05


def test_worth_of_other_apps_grows_with_rho() -> None:
    gains = []
    for rho in (0.0, 0.5, 1.0):
        oracle = CityOracle(City(CityConfig(rho=rho)), draws=500)
        with_apps, without = (
            np.mean([_top_ten(oracle.scores(i, -1, use_other_apps=known)) for i in range(30)])
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


def _meanings(city: City, episode: Episode, theta: F64) -> list[tuple[F64, F64]]:
    """(public utility f64[N], P(intent, words | tastes) f64[M]) of each intent the words can mean."""
    content, found = episode.content, []
    for intent in content.intents():
        chance = np.ones(len(theta))
        if intent.want is not Want.OPEN:
            chance *= cuisine_probabilities(theta)[:, intent.cuisine]
        if intent.want is Want.CUISINE:
            chance *= VAGUE_PROB if content.group >= 0 else 1 - VAGUE_PROB
        if intent.band >= 0:
            chance *= band_probabilities(theta, city.model.band_level)[:, intent.band]
            if intent.band in {b for bands in HINT_BANDS.values() for b in bands}:
                chance *= HINT_PROB if content.hint else 1 - HINT_PROB
        found.append((city.model.public_utility(intent), chance))
    return found


def _prior_batch(city: City, episodes: tuple[Episode, ...], other_apps: bool, seed: int) -> tuple[F64, float]:
    """Likelihood-weighted sum of choice probabilities, and of weights, over prior draws of everything hidden."""
    rng, model, size = np.random.default_rng(seed), city.model, 2500
    rho = model.rho
    own = rng.standard_normal((size, APPS, LATENTS))
    theta = np.sqrt(rho) * rng.standard_normal((size, 1, LATENTS)) + np.sqrt(1 - rho) * own
    home, elsewhere = rng.integers(AREAS, size=(2, size))
    maps_home = np.where(rng.random(size) < rho, home, elsewhere)
    pull = WEIGHTS.sight_home * (model.sight_area == maps_home[:, None])
    sights = softmax(theta[:, 0] @ model.app_phi[0].T + pull)
    weight = np.ones(size)
    for number, episode in enumerate(episodes):
        sight = np.full(size, episode.sight)
        if other_apps:
            weight *= sights[:, episode.sight]
            for app, item in episode.picks:
                weight *= softmax(theta[:, app] @ model.app_phi[app].T)[:, item]
        else:
            sight = (rng.random((size, 1)) > np.cumsum(sights, axis=1)[:, :-1]).sum(1)
        near = episode.content.intent.near
        hidden = theta[:, DINING] @ model.dining_phi.T + model.home_pull(near) * (model.area == home[:, None])
        hidden += model.sight_pull(near) * (model.area == model.sight_area[sight][:, None])
        meanings = _meanings(city, episode, theta[:, DINING])
        joint = sum(chance[:, None] * softmax(hidden + utility) for utility, chance in meanings)
        if number < len(episodes) - 1:
            weight *= joint[:, episode.chosen]
    return weight @ joint, float(weight @ joint.sum(1))


@pytest.mark.parametrize("other_apps", [True, False])
def test_posterior_equals_brute_force(other_apps: bool) -> None:
    """Against n prior draws the oracle errs by sampling noise: by half the distance of two halves of those draws."""
    city = City(CityConfig(devices=400, restaurants=500, sessions_min=2, sessions_max=2, rho=0.7))
    oracle = CityOracle(city, draws=4000)
    lives = [city.life(i).episodes for i in range(400)]
    near = [e for e in lives if all(one.content.intent.near for one in e)]
    vague = [e for e in lives if e[-1].content.group >= 0 and e[-1].content.intent.near]
    neither = [e for e in lives if not any(one.content.intent.near for one in e)]
    noise = error = blind = 0.0
    for episodes in (near[0], vague[0], neither[0]):
        batches = [_prior_batch(city, episodes, other_apps, seed) for seed in range(8)]
        noise += np.abs(_mean(batches[:4]) - _mean(batches[4:])).sum()
        exact, forgetful = (
            oracle.rank(Evidence(past, episodes[-1], other_apps)).scores for past in (episodes[:-1], ())
        )
        error += np.abs(exact - _mean(batches)).sum()
        blind += np.abs(forgetful - _mean(batches)).sum()
    assert noise < 0.9
    assert error < 0.8 * noise
    assert blind > 1.5 * error  # negative control: an oracle that leaves the past out


def _mean(batches: list[tuple[F64, float]]) -> F64:
    return np.asarray(sum(b[0] for b in batches) / sum(b[1] for b in batches))


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
