"""Private steps: vmap equals the loop, Opacus agrees before noise, and one example moves a step by its clip at most."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from scipy.stats import chi2, norm
from torch import nn

from fedlearn.engine import LocalTraining
from fedlearn.engine.cohort import SimulatedCohort
from fedlearn.engine.example_privacy import PrivateSgd, clipped_sum, example_gradients, private_local_step
from fedlearn.engine.registry import make_engine
from fedlearn.engine.vmap import VmapEngine
from fedlearn.errors import InvalidSpend, OutOfRange
from fedlearn.models import MatchModel
from fedlearn.models.base import parameter_count
from fedlearn.privacy.example_level import EXAMPLE_LEVEL, example_epsilon, example_mu
from fedlearn.rng import simulation_rng
from fedlearn.terms import ExamplePrivacy, TrainingTerms


def _load(name: str):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


equality = _load("test_engine_equality")
cohorts = _load("test_cohort")

PRIVATE = PrivateSgd(noise_multiplier=0.7, l2_clip_norm=0.3, batch_size=5)
SILENT = replace(PRIVATE, noise_multiplier=0.0)


def noise_for(orders, parameters):
    """Each phone's noise, drawn once."""
    width = parameter_count(parameters)
    rng = simulation_rng(9, 0, "", "test")
    drawn = [rng.standard_normal((len(order), width), dtype=np.float32) for order in orders]
    return drawn.__getitem__


def both(setting, private, dtype="float64", noise=None):
    """Return the updates of the loop and of the vmap engine."""
    model, parameters, clients, orders = setting
    noise = noise or noise_for(orders, parameters)
    return [
        make_engine(name, model, learning_rate=0.3, dtype=dtype, private=private).updates(
            parameters, clients, orders, noise
        )
        for name in ("loop", "vmap")
    ]


# --- the engines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", equality.TOLERANCE)
@pytest.mark.parametrize("sizes", equality.SIZES.values(), ids=equality.SIZES)
@pytest.mark.parametrize("model_name", equality.MODELS)
def test_vmap_equals_loop(model_name: str, sizes: list[int], dtype: str) -> None:
    setting = equality.setting(model_name, sizes, LocalTraining(epochs=2, batch_size=5, learning_rate=0.3))
    loop, vmap = both(setting, PRIVATE, dtype)
    assert vmap.deltas.dtype == np.dtype(dtype)
    assert np.all(equality.distances(loop.deltas, vmap.deltas) <= equality.TOLERANCE[dtype])
    np.testing.assert_allclose(vmap.losses, loop.losses, rtol=2e-6 if dtype == "float32" else 1e-12)
    empty = np.array(sizes) == 0
    assert not vmap.deltas[empty].any()
    assert np.all(np.abs(vmap.deltas[~empty]).min(axis=1, initial=1.0) > 0), "noise is on every weight"


@pytest.mark.parametrize("model_name", ["match", "two_tower"])
@pytest.mark.parametrize("chunk_bytes", [1, 100_000])
def test_chunks_do_not_change_results(model_name: str, chunk_bytes: int) -> None:
    training = LocalTraining(epochs=1, batch_size=5, learning_rate=0.3)
    model, parameters, clients, orders = equality.setting(model_name, equality.SIZES["ragged"], training)
    noise = noise_for(orders, parameters)
    whole, parts = (
        VmapEngine(model, 0.3, chunk_bytes=size, private=PRIVATE).updates(parameters, clients, orders, noise)
        for size in (2**25, chunk_bytes)
    )
    assert np.all(equality.distances(whole.deltas, parts.deltas) <= equality.TOLERANCE["float32"])


def test_without_noise_or_clipping_it_is_plain_sgd() -> None:
    """Where batches are full: the divisor is the batch size, whatever a batch holds."""
    setting = equality.setting("match", [10, 5, 20], LocalTraining(epochs=2, batch_size=5, learning_rate=0.3))
    model, parameters, clients, orders = setting
    plain = make_engine("loop", model, learning_rate=0.3, dtype="float64").updates(parameters, clients, orders)
    for private in both(setting, replace(SILENT, l2_clip_norm=1e6)):
        assert np.all(equality.distances(plain.deltas, private.deltas) <= 1e-12)


def test_a_short_batch_has_the_same_divisor() -> None:
    setting = equality.setting("match", [2], LocalTraining(epochs=1, batch_size=5, learning_rate=0.3))
    model, parameters, clients, orders = setting
    plain = make_engine("loop", model, learning_rate=0.3, dtype="float64").updates(parameters, clients, orders)
    for private in both(setting, replace(SILENT, l2_clip_norm=1e6)):
        np.testing.assert_allclose(private.deltas, plain.deltas * 2 / 5, rtol=1e-12)


# --- one step -------------------------------------------------------------------------------------------------------


def one_batch(count: int = 6, clients: int = 2):
    """A chunk's step of the match model: parameters, batch and mask with a leading client axis."""
    model, parameters, phones, _ = equality.setting("match", [count] * clients, LocalTraining(1, count, 0.3))
    weights = {name: torch.from_numpy(value).double().expand(clients, -1) for name, value in parameters.items()}
    columns = {
        name: torch.stack([torch.from_numpy(phone.columns[name]) for phone in phones]) for name in phones[0].columns
    }
    batch = {name: value.double() if value.is_floating_point() else value for name, value in columns.items()}
    return model, weights, batch, torch.ones(clients, count, dtype=torch.bool)


def test_masked_examples_add_exactly_nothing() -> None:
    model, weights, batch, mask = one_batch()
    mask[0, 2] = mask[1, :] = False
    step = private_local_step(model, 0.3, PRIVATE)
    noise = {"weights": torch.full((2, 5), 0.25, dtype=torch.float64)}
    change = step(weights, batch, mask, noise)["weights"]
    spoilt = {name: value.clone() for name, value in batch.items()}
    spoilt["features"][0, 2] = spoilt["features"][1] = math.nan
    assert torch.equal(step(weights, spoilt, mask, noise)["weights"], change)
    assert not change[1].any(), "no example, no step, no noise"
    shorter = {name: value[:1, [0, 1, 3, 4, 5]] for name, value in batch.items()}
    alone = step(
        {"weights": weights["weights"][:1]},
        shorter,
        torch.ones(1, 5, dtype=torch.bool),
        {"weights": noise["weights"][:1]},
    )
    torch.testing.assert_close(change[:1], alone["weights"], rtol=1e-13, atol=0)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e200, math.nan, math.inf])
def test_one_example_moves_the_sum_by_the_clip_at_most(scale: float) -> None:
    """Zero-out: with the example and without it, whatever it holds; the rest of the sum stays finite."""
    model, weights, batch, mask = one_batch()
    batch["features"][0, 3] *= scale
    gradients = example_gradients(model)(weights, batch, mask)
    without = mask.clone()
    without[0, 3] = False
    total, rest = (clipped_sum(gradients, chosen, 0.3)["weights"] for chosen in (mask, without))
    assert total.isfinite().all()
    moved = float(torch.linalg.vector_norm(total[0] - rest[0]))
    assert moved <= 0.3 * (1 + 1e-12)
    if scale in (1.0, 1e6):
        assert moved > 0.299, "the bound is met, so a clip of any less would fail here"
    assert torch.equal(total[1], rest[1])


def test_noise_has_the_std_that_is_stated() -> None:
    """std of the change is learning_rate * z * clip / batch_size, and other than for 5 % less noise."""
    model, weights, batch, mask = one_batch(clients=1)
    step, silent = private_local_step(model, 0.3, PRIVATE), private_local_step(model, 0.3, SILENT)
    rng = simulation_rng(2, 0, "", "test")
    draws = 20_000
    noise = {"weights": torch.from_numpy(rng.standard_normal((draws, 5)))}
    wide = {name: value.expand(draws, *value.shape[1:]) for name, value in batch.items()}
    start = {"weights": weights["weights"].expand(draws, 5)}
    masks = mask.expand(draws, -1)
    spread = (step(start, wide, masks, noise)["weights"] - silent(start, wide, masks, noise)["weights"]).numpy()
    std = 0.3 * 0.7 * 0.3 / 5

    def chance(expected: float) -> float:
        squares = float((spread**2).sum()) / expected**2
        return 2 * min(chi2.sf(squares, spread.size), chi2.cdf(squares, spread.size))

    assert chance(std) > 1e-4
    assert chance(0.95 * std) < 1e-9


# --- Opacus ---------------------------------------------------------------------------------------------------------


class Tower:
    """A two-layer classifier as one of our models, over the weights of the torch module that Opacus sees."""

    name = "tower"
    row_columns: dict[str, tuple[str, ...]] = {}  # noqa: RUF012

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def loss(self, parameters, batch, mask):
        logits = torch.func.functional_call(self.module, dict(parameters), (batch["x"],))
        losses = nn.functional.cross_entropy(logits, batch["y"], reduction="none")
        weights = mask.to(losses.dtype)
        return (losses * weights).sum() / weights.sum().clamp(min=1.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip", [0.05, 1.0, 100.0])
def test_clipped_sum_equals_opacus(clip: float) -> None:
    """Opacus' DPOptimizer before noise, for two phones; it adds 1e-6 to each norm, hence the tolerance."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x, y = 3 * torch.randn(2, 8, 4, dtype=torch.float64), torch.randint(0, 3, (2, 8))
    parameters = {name: value.detach().expand(2, *value.shape) for name, value in module.named_parameters()}
    mask = torch.ones(2, 8, dtype=torch.bool)
    ours = clipped_sum(example_gradients(Tower(module))(parameters, {"x": x, "y": y}, mask), mask, clip)
    for phone in range(2):
        wrapped = GradSampleModule(module, loss_reduction="sum")
        optimizer = DPOptimizer(
            torch.optim.SGD(wrapped.parameters(), lr=1.0),
            noise_multiplier=0.0,
            max_grad_norm=clip,
            expected_batch_size=None,
            loss_reduction="sum",
        )
        optimizer.zero_grad()
        nn.functional.cross_entropy(wrapped(x[phone]), y[phone], reduction="sum").backward()
        optimizer.clip_and_accumulate()
        for (name, _), parameter in zip(module.named_parameters(), wrapped.parameters(), strict=True):
            scale = float(ours[name][phone].abs().max())
            torch.testing.assert_close(ours[name][phone], parameter.summed_grad, rtol=0, atol=1e-6 * max(1.0, scale))
        wrapped.remove_hooks()


# --- a simulated cohort ---------------------------------------------------------------------------------------------


def private_task(**changes):
    terms = TrainingTerms(2, 2, 0.1, True, 3, example_privacy=ExamplePrivacy(0.5, 0.4))
    return replace(cohorts.make_task(grid=False, q=1.0), training=terms, l2_clip_norm=1e6, **changes)


def test_a_cohorts_noise_belongs_to_the_phone_and_the_step() -> None:
    task = private_task()
    (whole,), _ = cohorts.run(task)
    parts, _ = cohorts.run(task, shards=7)
    total = sum(reply.contribution.values for reply in parts)
    np.testing.assert_allclose(total, whole.contribution.values, rtol=0, atol=1e-9)
    (vmap,), _ = cohorts.run(task, engine="vmap")
    np.testing.assert_allclose(vmap.contribution.values, whole.contribution.values, rtol=0, atol=1e-5)
    (plain,), _ = cohorts.run(cohorts.make_task(grid=False, q=1.0))
    assert np.linalg.norm(plain.contribution.values - whole.contribution.values) > 0.1


def test_noise_is_fresh_in_each_step_and_epoch() -> None:
    """One phone with one example and two epochs, its gradient clipped away: what is left is noise."""
    town = cohorts.Town(["phone-1"])
    seen = []
    for step in range(200):
        task = private_task(step=step)
        tiny = replace(task, training=replace(task.training, example_privacy=ExamplePrivacy(1e9, 1e-9)))
        seen.append(SimulatedCohort(town, MatchModel(cohorts.WIDTH), "vmap")(tiny).contribution.values)
    # two steps of std learning_rate * z * clip / batch_size each
    deviates = np.array(seen) / (0.1 * 1.0 / 2 * math.sqrt(2))
    assert 2 * min(chi2.sf((deviates**2).sum(), deviates.size), chi2.cdf((deviates**2).sum(), deviates.size)) > 1e-4
    lagged = (deviates[1:] * deviates[:-1]).sum() / math.sqrt(deviates[1:].size)
    assert 2 * norm.sf(abs(lagged)) > 1e-4


def test_noise_and_clip_come_together() -> None:
    model, parameters, clients, orders = equality.setting("match", [3], LocalTraining(1, 5, 0.3))
    for name in ("loop", "vmap"):
        with pytest.raises(OutOfRange, match=r"example_privacy.*no noise"):
            make_engine(name, model, learning_rate=0.3, private=PRIVATE).updates(parameters, clients, orders)
        with pytest.raises(OutOfRange, match=r"example_privacy.*no clip"):
            make_engine(name, model, learning_rate=0.3).updates(
                parameters, clients, orders, noise_for(orders, parameters)
            )


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_settings_out_of_range(bad: float) -> None:
    with pytest.raises(OutOfRange, match=r"client\.example_privacy\.noise_multiplier"):
        ExamplePrivacy(bad, 1.0)
    with pytest.raises(OutOfRange, match=r"client\.example_privacy\.clip"):
        ExamplePrivacy(1.0, bad)


# --- accounting -----------------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_as_many_gaussian_releases() -> None:
    """Balle and Wang 2018, theorem 8, evaluated here by hand at the returned epsilon: the delta is met, closely."""
    z, participations, epochs, delta = 4.0, 6, 2, 1e-5
    mu = math.sqrt(participations * epochs) / z
    assert mu <= example_mu(z, participations, epochs) <= mu * (1 + 1e-12)
    found = example_epsilon(z, participations, epochs, delta)

    def delta_at(epsilon: float) -> float:
        return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))

    assert delta_at(found) <= delta < delta_at(found * (1 - 1e-6))
    assert example_epsilon(z, 0, 1, delta) == 0.0
    assert "simulation of the guarantee" in EXAMPLE_LEVEL


@pytest.mark.parametrize("arguments", [(0.0, 1, 1), (math.nan, 1, 1), (1.0, -1, 1), (1.0, 1, 0), (1.0, True, 1)])
def test_accounting_refuses(arguments: tuple[float, int, int]) -> None:
    with pytest.raises(InvalidSpend):
        example_mu(*arguments)
