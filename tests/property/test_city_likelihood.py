"""Likelihoods of the simulated city sum to one and agree with what the generator draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedlearn.lab.city import City, CityConfig
from fedlearn.lab.city.people import (
    LATENTS,
    Content,
    Hint,
    Intent,
    Want,
    band_probabilities,
    content_probability,
    cuisine_probabilities,
    draw_content,
    draw_intent,
)
from fedlearn.lab.city.tables import GROUPS

CITY = City(CityConfig(devices=1000))
PRICE_BANDS = range(-1, 5)


def _contents(intent: Intent) -> list[Content]:
    """Every content that any words about these wishes can have."""
    cuisines = [(intent.cuisine, -1), *((-1, group) for group in range(len(GROUPS)))]
    bands = [(intent.band, Hint.EXACT), (-1, Hint.CHEAP), (-1, Hint.FANCY)]
    return [
        Content(replace(intent, cuisine=c, band=b), group, hint) for (c, group), (b, hint) in product(cuisines, bands)
    ]


@pytest.mark.parametrize("want", list(Want))
@pytest.mark.parametrize("band", PRICE_BANDS)
def test_words_of_every_intent_sum_to_one(want: Want, band: int) -> None:
    for cuisine in [-1] if want is Want.OPEN else range(12):
        intent = Intent(want, cuisine, dish=8 * cuisine if want is Want.DISH else -1, band=band)
        assert sum(content_probability(c, intent) for c in _contents(intent)) == pytest.approx(1.0)


@settings(derandomize=True, deadline=None, max_examples=25)
@given(st.integers(0, 2**32))
def test_drawn_words_can_mean_their_intent(seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(LATENTS)
    intent = draw_intent(rng, CITY.model, theta)
    content = draw_content(rng, intent)
    assert intent in content.intents()
    assert content_probability(content, intent) > 0.0
    assert cuisine_probabilities(theta).sum() == pytest.approx(1.0)
    assert band_probabilities(theta, CITY.model.band_level).sum() == pytest.approx(1.0)


def test_draws_follow_the_likelihoods() -> None:
    rng, draws = np.random.default_rng(3), 6000
    theta = rng.standard_normal(LATENTS)
    intents = [draw_intent(rng, CITY.model, theta) for _ in range(draws)]
    # Standard error of a share of 6,000 is at most .0065; tolerance four of them.
    cuisines = [i.cuisine for i in intents if i.cuisine >= 0]
    found = np.bincount(cuisines, minlength=12) / len(cuisines)
    np.testing.assert_allclose(found, cuisine_probabilities(theta), atol=0.026)
    bands = [i.band for i in intents if i.band >= 0]
    found = np.bincount(bands, minlength=5) / len(bands)
    np.testing.assert_allclose(found, band_probabilities(theta, CITY.model.band_level), atol=0.04)
    intent = Intent(Want.CUISINE, cuisine=2, band=3)
    words = Counter(draw_content(rng, intent) for _ in range(draws))
    assert len(words) == 4
    for content, count in words.items():
        assert count / draws == pytest.approx(content_probability(content, intent), abs=0.026)


def test_choices_follow_the_utilities() -> None:
    """Mean surprise of the drawn choices equals the entropy the utilities promise (z-score below 4)."""
    gaps = []
    for position in range(150):
        life = CITY.life(position)
        for intent, episode in zip(life.intents, life.episodes, strict=True):
            utility = CITY.model.utility(life.tastes, intent, episode.sight)
            logp = utility - np.log(np.exp(utility - utility.max()).sum()) - utility.max()
            gaps.append(logp[episode.chosen] - (np.exp(logp) * logp).sum())
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / np.sqrt(len(gaps))


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 999), st.integers(0, 999))
def test_a_phone_does_not_depend_on_its_neighbours(one: int, other: int) -> None:
    before = CITY.device(one)
    CITY.device(other)
    assert CITY.device(one) == before
