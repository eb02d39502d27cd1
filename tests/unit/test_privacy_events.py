from __future__ import annotations

import json
import math

import pytest

from fedlearn.errors import InvalidSpend
from fedlearn.privacy.events import PoissonGaussian, event_from_json, event_to_json


def test_canonical_json_is_frozen() -> None:
    text = event_to_json(PoissonGaussian(1.1, 0.02))
    assert text == '{"kind":"poisson_gaussian","noise_multiplier":1.1,"sampling_probability":0.02}'
    assert event_from_json(text) == PoissonGaussian(1.1, 0.02)


def test_an_integer_parameter_is_the_same_event() -> None:
    assert event_to_json(PoissonGaussian(1, 1)) == event_to_json(PoissonGaussian(1.0, 1.0))


@pytest.mark.parametrize("z", [0.0, -1.0, math.nan, math.inf, -math.inf, "1", True, None])
def test_noise_out_of_range(z: object) -> None:
    with pytest.raises(InvalidSpend, match="noise_multiplier"):
        PoissonGaussian(z, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("q", [0.0, -0.1, 1.0000001, math.nan, math.inf, "1", False])
def test_sampling_probability_out_of_range(q: object) -> None:
    with pytest.raises(InvalidSpend, match="sampling_probability"):
        PoissonGaussian(1.0, q)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "laplace", "noise_multiplier": 1.0, "sampling_probability": 0.1},
        {"kind": "fedlearn.privacy.events.PoissonGaussian", "noise_multiplier": 1.0, "sampling_probability": 0.1},
        {"kind": "poisson_gaussian", "noise_multiplier": 1.0},
        {"kind": "poisson_gaussian", "noise_multiplier": 1.0, "sampling_probability": 0.1, "count": 0},
        {"kind": "poisson_gaussian", "noise_multiplier": -1.0, "sampling_probability": 0.1},
        {"kind": "poisson_gaussian", "noise_multiplier": "1.0", "sampling_probability": 0.1},
        {"kind": ["poisson_gaussian"]},
        ["poisson_gaussian"],
        None,
    ],
)
def test_only_the_allow_list_is_read(body: object) -> None:
    with pytest.raises(InvalidSpend):
        event_from_json(json.dumps(body))


@pytest.mark.parametrize(
    "text", ["", "{", '{"kind":"poisson_gaussian","noise_multiplier":NaN,"sampling_probability":1}']
)
def test_broken_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidSpend):
        event_from_json(text)
