"""Server optimizers: textbook steps, every name, bit-identical resume; and the average of iterates."""

from __future__ import annotations

import numpy as np
import pytest

from fedlearn.engine import IterateAverage, ServerOptimizer
from fedlearn.engine.optimizers import OPTIMIZERS
from fedlearn.errors import ConfigError, OutOfRange, ResumeRefused, UnknownSetting
from fedlearn.models import Parameters

START: Parameters = {"a": np.array([1.0, -2.0], np.float32), "b": np.array([[0.5]], np.float32)}
MEAN = np.array([0.25, -0.5, 1.0])
OPTIONS = {
    "sgd": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "adam": {"betas": [0.8, 0.95], "amsgrad": True},
    "rmsprop": {"momentum": 0.5, "centered": True},
}


def _vector(parameters: Parameters) -> np.ndarray:
    return np.concatenate([parameters[name].ravel() for name in sorted(parameters)])


def test_sgd_at_rate_one_adds_the_mean() -> None:
    after = ServerOptimizer("sgd", 1.0).step(START, MEAN)
    assert _vector(after).tolist() == [1.25, -2.5, 1.5]
    assert after["b"].shape == (1, 1)
    assert START["a"].tolist() == [1.0, -2.0]


def test_adam_first_step_is_the_learning_rate_along_the_mean() -> None:
    """Kingma & Ba 2015, algorithm 1: after bias correction the first step is rate * g / (|g| + eps)."""
    after = ServerOptimizer("Adam", 0.125).step(START, MEAN)
    np.testing.assert_allclose(_vector(after) - _vector(START), [0.125, -0.125, 0.125], rtol=1e-6)


def test_momentum_accumulates() -> None:
    """v <- 0.9 v + g with v_1 = g: after two equal means the weights moved by (1 + 1.9) means."""
    optimizer = ServerOptimizer("sgd", 1.0, {"momentum": 0.9})
    after = optimizer.step(optimizer.step(START, MEAN), MEAN)
    np.testing.assert_allclose(_vector(after) - _vector(START), 2.9 * MEAN, rtol=1e-6)


def test_weights_are_kept_in_f64() -> None:
    """Ten thousand steps of 1e-9 on a weight of 1 vanish in f32 but not here."""
    optimizer, parameters = ServerOptimizer("sgd", 1.0), {"w": np.ones(1, np.float32)}
    for _ in range(10_000):
        parameters = dict(optimizer.step(parameters, np.full(1, 1e-9)))
    np.testing.assert_allclose(parameters["w"], [1.00001], rtol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resume_is_bit_identical(name: str) -> None:
    rng = np.random.Generator(np.random.Philox(2))
    means = rng.standard_normal((8, 3))
    whole, first, second = (ServerOptimizer(name, 0.1, OPTIONS.get(name, {})) for _ in range(3))
    expected, parameters = START, START
    for position, mean in enumerate(means):
        expected = whole.step(expected, mean)
        if position == 4:
            state = {key: value.copy() for key, value in first.state_dict().items()}
            first.step(parameters, mean)  # what is run after a checkpoint does not reach into it
            second.load_state_dict(state)
            first = second
        parameters = first.step(parameters, mean)
    assert np.isfinite(_vector(expected)).all()
    assert _vector(parameters).tobytes() == _vector(expected).tobytes()
    for key, value in whole.state_dict().items():
        assert isinstance(value, np.ndarray)
        assert value.tobytes() == first.state_dict()[key].tobytes()


def test_state_before_the_first_step_is_empty() -> None:
    optimizer = ServerOptimizer("adam", 0.1)
    assert optimizer.state_dict() == {}
    optimizer.step(START, MEAN)
    optimizer.load_state_dict({})
    np.testing.assert_allclose(_vector(optimizer.step(START, MEAN)) - _vector(START), np.sign(MEAN) * 0.1, rtol=1e-6)


def test_foreign_parameters_are_refused() -> None:
    optimizer = ServerOptimizer("sgd", 1.0)
    optimizer.step(START, MEAN)
    with pytest.raises(ResumeRefused):
        optimizer.step(START, MEAN)


def test_bad_settings() -> None:
    with pytest.raises(UnknownSetting, match="sgd, adam, adamw"):
        ServerOptimizer("lbfgs", 1.0)
    with pytest.raises(UnknownSetting, match=r"options\.momentun: sgd takes dampening, momentum"):
        ServerOptimizer("sgd", 1.0, {"momentun": 0.9})
    with pytest.raises(UnknownSetting, match=r"options\.maximize"):
        ServerOptimizer("sgd", 1.0, {"maximize": True})
    with pytest.raises(OutOfRange, match="momentum"):
        ServerOptimizer("sgd", 1.0, {"momentum": -1.0})
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OutOfRange, match=r"server_opt\.learning_rate"):
            ServerOptimizer("sgd", rate)
    with pytest.raises(ConfigError, match="3 weights"):
        ServerOptimizer("sgd", 1.0).step(START, np.zeros(4))


def test_average_of_the_last_rounds() -> None:
    average = IterateAverage(0.5, rounds=4)
    iterates = [{"w": np.array([float(value)], np.float32)} for value in (100, 50, 2, 4)]
    assert average.value(iterates[0]) is iterates[0]
    for number, parameters in enumerate(iterates):
        average.add(number, parameters)
    assert average.value(iterates[0])["w"].tolist() == [3.0]


def test_average_takes_at_least_the_last_round() -> None:
    average = IterateAverage(0.001, rounds=4)
    iterates = [{"w": np.array([float(number)], np.float32)} for number in range(4)]
    for number, parameters in enumerate(iterates):
        average.add(number, parameters)
    assert average.value(iterates[0])["w"].tolist() == [3.0]


def test_average_resumes_bit_for_bit() -> None:
    rng = np.random.Generator(np.random.Philox(3))
    iterates = [{"w": rng.standard_normal(5).astype(np.float32)} for _ in range(9)]
    whole, first, second = (IterateAverage(1.0, 9) for _ in range(3))
    assert first.state_dict() == {}
    second.load_state_dict({})
    for number, parameters in enumerate(iterates):
        whole.add(number, parameters)
        if number == 5:
            second.load_state_dict(first.state_dict())
            first = second
        first.add(number, parameters)
    assert first.value(iterates[0])["w"].tobytes() == whole.value(iterates[0])["w"].tobytes()


def test_average_refuses_bad_settings() -> None:
    for fraction in (0.0, 1.5, float("nan")):
        with pytest.raises(OutOfRange, match=r"server_opt\.average"):
            IterateAverage(fraction, 10)
    with pytest.raises(OutOfRange, match=r"cohort\.rounds"):
        IterateAverage(0.5, 0)
