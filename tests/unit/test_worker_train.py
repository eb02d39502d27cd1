"""A local round in the worker: equal to the simulator, within the clip, and silent about everything else."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedlearn.clip import clip_rows
from fedlearn.device.plan import ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.device.task_codec import task_bytes
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.errors import BundleRefused, Refusal, TaskRefused
from fedlearn.fold import Fold, FoldTerms
from fedlearn.models import ClientExamples, flatten
from fedlearn.privacy.grid import to_grid
from fedlearn.proto import worker_pb2 as pb
from fedlearn.rng import simulation_rng
from fedlearn.terms import ExamplePrivacy
from fedlearn.types import Level
from fedlearn.wire import decode_contribution
from fedlearn_client.fakes import FakeClock
from fedlearn_client.worker import train as training
from fedlearn_client.worker.train import train
from fedlearn_client.zeros import zero_contribution

_spec = importlib.util.spec_from_file_location("worker_examples", Path(__file__).with_name("worker_examples.py"))
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

Columns = dict[str, NDArray[np.generic]]
ZEROS = np.zeros(made.WIDTH, np.float32)


def by_hand(plan: DevicePlan, columns: Columns, weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """The oracle: the conditional logit's gradient in f64, example by example, no padding, no graph."""
    task = made.task_for(plan)
    terms = plan.training
    order = schedule(
        len(columns["label"]),
        LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle),
        simulation_rng(task.shuffle_seed, task.step, "", "shuffle"),
    )
    delta = np.zeros(weights.size)
    for rows in order:
        gradient = np.zeros_like(delta)
        rows = rows[rows >= 0]  # noqa: PLW2901
        for row in rows:
            features = columns["features"][row].astype(np.float64)
            logits = features @ (weights + delta) - columns["logq"][row]
            share = np.exp(logits - logits.max())
            share /= share.sum()
            share[columns["label"][row]] -= 1.0
            gradient += share @ features / len(rows)
        delta -= terms.learning_rate * gradient
    return delta


def decoded(reply: pb.TrainReply) -> NDArray[np.float64]:
    sent = decode_contribution(reply.contribution)
    return np.asarray(sent.values.astype(np.float64) * sent.scale)


@pytest.mark.parametrize("count", [1, 3, 4, 9, 30])
@pytest.mark.parametrize("shuffle", [True, False])
def test_equals_the_gradient_by_hand(count: int, shuffle: bool) -> None:
    plan = made.match_plan(clip=100.0, epochs=3)
    plan = replace(plan, training=replace(plan.training, shuffle=shuffle))
    columns = made.columns_for(plan, count)
    weights = np.random.default_rng(1).standard_normal(made.WIDTH).astype(np.float32)
    reply = train(made.train_request(plan, made.match_step(), columns, weights))
    assert reply.examples == count
    assert reply.private_parameters == b""
    np.testing.assert_allclose(decoded(reply), by_hand(plan, columns, weights), atol=2e-6)


def test_equal_examples_give_equal_bits_wherever_they_lie_in_memory() -> None:
    """What leaves the phone is a function of the examples alone; onnxruntime's sums depend on addresses."""
    plan = made.match_plan(clip=100.0, epochs=3)
    columns = made.columns_for(plan, 9)
    rng, litter, found = np.random.default_rng(0), [], set()
    for _ in range(20):
        litter.append([bytearray(int(size)) for size in rng.integers(1, 5000, 20)])
        reply = train(made.train_request(plan, made.match_step(), columns, ZEROS + 0.25))
        found.add(decode_contribution(reply.contribution).values.tobytes())
    assert len(found) == 1


def test_a_missing_step_would_show() -> None:
    """The negative control of the comparison above: one epoch less is far outside its tolerance."""
    plan = made.match_plan(clip=100.0, epochs=3)
    columns = made.columns_for(plan, 9)
    reply = train(made.train_request(plan, made.match_step(), columns, ZEROS))
    fewer = replace(plan, training=replace(plan.training, epochs=2))
    assert np.abs(decoded(reply) - by_hand(fewer, columns, ZEROS)).max() > 1e-3


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 9),
    clip=st.sampled_from([1e-3, 0.3, 1.0, 50.0]),
    learning_rate=st.floats(1e-3, 1e3),
)
@settings(max_examples=25, deadline=None)
def test_never_over_the_clip_and_accepted_by_a_fold(seed: int, count: int, clip: float, learning_rate: float) -> None:
    plan = made.match_plan(clip=clip, learning_rate=learning_rate)
    reply = train(made.train_request(plan, made.match_step(), made.columns_for(plan, count, seed), ZEROS))
    task = made.task_for(plan)
    sent = decode_contribution(reply.contribution)
    grid = task.mechanism.grid_step
    assert sum(int(v) ** 2 for v in sent.values) * grid**2 <= clip**2 * (1 + 2**-50)
    fold = Fold(FoldTerms(task.digest, made.WIDTH, clip, grid, Level.PHONE))
    fold.offer(lambda: sent)
    assert fold.accepted == 1
    assert reply.examples == count


def test_a_phone_without_examples_looks_the_same() -> None:
    plan = made.match_plan()
    empty = train(made.train_request(plan, made.match_step(), made.columns_for(plan, 0), ZEROS))
    full = train(made.train_request(plan, made.match_step(), made.columns_for(plan, 9), ZEROS))
    assert not decoded(empty).any()
    assert decoded(full).any()
    first, second = decode_contribution(empty.contribution), decode_contribution(full.contribution)
    assert len(empty.contribution) == len(full.contribution)
    assert (first.codec, first.scale, first.count, first.l2_bound, first.task_digest) == (
        second.codec,
        second.scale,
        second.count,
        second.l2_bound,
        second.task_digest,
    )


def test_private_parameters_stay_apart() -> None:
    plan = made.match_plan(private=True, clip=100.0)
    columns = made.columns_for(plan, 9)
    own = np.random.default_rng(2).standard_normal(made.WIDTH).astype("<f4")
    request = made.train_request(plan, made.match_step(private=True), columns, ZEROS)
    request.private_parameters = own.tobytes()
    reply = train(request)
    change = np.frombuffer(reply.private_parameters, "<f4") - own
    # the hand-written graph moves both alike, so the shared delta must be the private one, and of its width only
    np.testing.assert_allclose(decoded(reply), change, atol=1e-6)
    assert decoded(reply).shape == (made.WIDTH,)
    # the clip is over shared parameters alone: a small one leaves the private delta as it was
    small = made.match_plan(private=True, clip=1e-3)
    again = made.train_request(small, made.match_step(private=True), columns, ZEROS)
    again.private_parameters = own.tobytes()
    clipped = train(again)
    assert clipped.private_parameters == reply.private_parameters
    assert np.linalg.norm(decoded(clipped)) <= 1e-3


def test_a_training_that_goes_astray_sends_zeros() -> None:
    """Silence would tell a gateway that chose the weights what the examples say."""
    plan = made.match_plan()
    columns = made.columns_for(plan, 9)
    good = train(made.train_request(plan, made.match_step(), columns, ZEROS))
    columns["features"] = np.full_like(columns["features"], 3e38)
    astray = train(made.train_request(plan, made.match_step(), columns, ZEROS))
    assert not decoded(astray).any()
    assert decoded(good).any()
    assert len(astray.contribution) == len(good.contribution)
    assert astray.examples == good.examples == 9


def test_a_training_that_goes_astray_keeps_the_private_parameters() -> None:
    plan = made.match_plan(private=True)
    columns = made.columns_for(plan, 9)
    columns["features"] = np.full_like(columns["features"], 3e38)
    request = made.train_request(plan, made.match_step(private=True), columns, ZEROS)
    request.private_parameters = np.full(made.WIDTH, 0.25, "<f4").tobytes()
    reply = train(request)
    assert reply.private_parameters == request.private_parameters
    assert not decoded(reply).any()


def test_private_parameters_that_overflow_are_kept_and_nothing_is_sent() -> None:
    plan = made.match_plan()
    plan = replace(plan, parameters=(ParameterSpec("own", (1,), Scope.PRIVATE), ParameterSpec("w", (1,), Scope.SHARED)))
    largest = np.float32(np.finfo(np.float32).max)
    own, step = {"own": np.array([largest])}, np.array([largest])
    update, following = training._outcome(plan, own, {"own": step, "w": np.ones(1, np.float32)})
    assert update.tolist() == [0.0]
    assert following.tolist() == [largest]
    update, following = training._outcome(plan, own, {"own": -step, "w": step})
    assert (update.tolist(), following.tolist()) == ([largest], [0.0])  # huge, but finite: clipped as ever


def test_the_daemon_makes_the_very_zeros_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made.match_plan()
    monkeypatch.setattr("fedlearn_client.contribution.os_bytes", bytes)
    clock = FakeClock()
    monkeypatch.setattr(clock, "random_bytes", bytes)
    empty = train(made.train_request(plan, made.match_step(), made.columns_for(plan, 0), ZEROS))
    assert zero_contribution(made.task_for(plan), plan, clock) == empty.contribution


def changed(**fields: bytes) -> pb.TrainRequest:
    plan = made.match_plan()
    request = made.train_request(plan, made.match_step(), made.columns_for(plan, 5), ZEROS)
    for name, value in fields.items():
        setattr(request, name, value)
    assert isinstance(request, pb.TrainRequest)
    return request


def task_of(plan: DevicePlan) -> bytes:
    data = task_bytes(made.task_for(plan))
    assert isinstance(data, bytes)
    return data


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (changed(weights=bytes(4)), "weights: 4 bytes"),
        (changed(weights=np.full(made.WIDTH, np.nan, "<f4").tobytes()), "NaN"),
        (changed(private_parameters=bytes(4)), "private_parameters"),
        (changed(step=b"not a graph"), "cannot load"),
        (changed(step=made.match_step(width=3)), "the plan needs"),
        (changed(step=made.match_step(batch=5)), "the plan needs"),
        (changed(step=made.match_infer()), "differs from the plan"),
        (changed(step=made.match_step(private=True)), "d.bias"),
        (changed(plan=b"{}"), "schema"),
        (changed(step=made.match_step(noise=True)), r"n\.weights"),
    ],
)
def test_what_does_not_fit_the_plan_is_refused(request_: pb.TrainRequest, words: str) -> None:
    with pytest.raises(BundleRefused, match=words):
        train(request_)


@pytest.mark.parametrize("what", ["name", "dtype", "shape", "data", "twice", "length"])
def test_columns_that_do_not_fit_are_refused(what: str) -> None:
    request = changed()
    column = request.columns[0]
    match what:
        case "name":
            column.name = "another"
        case "dtype":
            column.dtype = "<f8"
        case "shape":
            column.shape[1] += 1
        case "data":
            column.data += b"x"
        case "twice":
            request.columns.append(column)
        case "length":
            column.shape[0] -= 1
            column.data = column.data[: -column.shape[1] * (4 * column.shape[2])]
    with pytest.raises(BundleRefused, match="columns"):
        train(request)


def test_a_task_of_another_plan_or_clip_is_refused() -> None:
    other = made.match_plan(learning_rate=0.25)
    with pytest.raises(TaskRefused) as refused:
        train(changed(task=task_of(other)))
    assert refused.value.reason is Refusal.PLAN
    plan = made.match_plan()
    looser = replace(made.task_for(plan), mechanism=made.mechanism(clip=2.0))
    with pytest.raises(TaskRefused, match="clip norm"):
        train(changed(task=task_bytes(looser)))


def test_each_step_asks_whether_to_go_on() -> None:
    asked: list[int] = []
    train(changed(), lambda: asked.append(1))
    assert len(asked) == 2 * 2, "two epochs of five examples in batches of four"


def exported(plan: DevicePlan, model: object) -> bytes:
    step = pytest.importorskip("fedlearn.export.step")
    data = step.step_onnx(model, plan.columns, plan.training.batch_size)
    assert isinstance(data, bytes)
    return data


def two_tower() -> tuple[DevicePlan, object, Columns]:
    from fedlearn.models.two_tower import TwoTowerModel

    model = TwoTowerModel(terms=50, items=40, width=8, hidden=16)
    k, t, count = 6, 5, 40
    plan = replace(
        made.match_plan(clip=0.5),
        model="two_tower",
        examples="two_tower",
        example_options=(("rows", 50), ("terms", t)),
        features=(),
        parameters=tuple(ParameterSpec(n, a.shape, Scope.SHARED) for n, a in sorted(model.initial(0).items())),
        columns=(
            ColumnSpec("items", "<i8", (k,)),
            ColumnSpec("label", "<i8", ()),
            ColumnSpec("logq", "<f4", (k,)),
            ColumnSpec("term_weight", "<f4", (t,)),
            ColumnSpec("terms", "<i8", (t,)),
        ),
        training=TrainingSpec(10, 4, k, 0.1, True, 1000, None),
    )
    rng = np.random.default_rng(5)
    columns: Columns = {
        "items": rng.integers(0, 40, (count, k)),
        "label": rng.integers(0, k, count),
        "logq": rng.standard_normal((count, k)).astype(np.float32),
        "term_weight": (rng.random((count, t)) > 0.3).astype(np.float32),
        "terms": rng.integers(0, 50, (count, t)),
    }
    return plan, model, columns


def match() -> tuple[DevicePlan, object, Columns]:
    from fedlearn.models import MatchModel

    plan = made.match_plan(clip=0.5)
    plan = replace(plan, training=replace(plan.training, epochs=10, learning_rate=0.1))
    return plan, MatchModel(made.WIDTH), made.columns_for(plan, 40)


@pytest.mark.parametrize("case", [match, two_tower])
def test_equals_the_simulator_after_100_steps(case: object) -> None:
    """The same examples through a graph here and the oracle engine there; clipped and on the grid.

    The match graph is the hand-written one; tests/long has the exported ones of all models at full size.
    """
    from fedlearn.engine.loop import LoopEngine

    plan, model, columns = case()  # type: ignore[operator]
    terms, task = plan.training, made.task_for(plan)
    initial = model.initial(3)
    order = schedule(
        40,
        LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle),
        simulation_rng(task.shuffle_seed, task.step, "", "shuffle"),
    )
    assert len(order) == 100
    updates = LoopEngine(model, terms.learning_rate).updates(initial, [ClientExamples(columns)], [order])
    clipped = clip_rows(updates.deltas, task.mechanism.l2_clip_norm)
    assert clipped.clipped[0], "a case that is not clipped would not compare the clip"
    simulated = to_grid(clipped.values[0], task.mechanism.grid_step) * task.mechanism.grid_step
    step = made.match_step() if plan.model == "match" else exported(plan, model)
    reply = train(made.train_request(plan, step, columns, flatten(initial)))
    assert np.abs(decoded(reply) - simulated).max() <= 1e-5


def test_private_steps_get_fresh_noise_and_another_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = made.match_plan(clip=100.0, epochs=3, privacy=ExamplePrivacy(1.0, 0.5))
    columns = made.columns_for(plan, 9)
    drawn = np.random.default_rng(8).standard_normal((9, made.WIDTH)).astype(np.float32)
    monkeypatch.setattr(training, "_normal", lambda width, steps: iter(drawn))
    # whose gradient vanishes: what is left is the noise of each of the nine steps, once
    columns["features"] = np.zeros_like(columns["features"])
    found = decoded(train(made.train_request(plan, made.match_step(noise=True), columns, ZEROS)))
    np.testing.assert_allclose(found, -drawn.sum(axis=0), atol=1e-5)
    with pytest.raises(BundleRefused, match=r"n\.weights"):
        train(made.train_request(plan, made.match_step(), columns, ZEROS))


def test_private_noise_is_standard_normal_and_has_no_seed() -> None:
    first, second = (np.stack(list(training._normal(300, 500))) for _ in range(2))
    assert first.shape == (500, 300)
    assert first.dtype == np.float32
    assert not np.array_equal(first, second)
    # 150,000 values: std of the mean 0.0026, of the variance 0.0037; five of them
    assert abs(first.mean()) < 0.013
    assert abs(first.var() - 1.0) < 0.019
    assert abs(np.mean(first[:, 0] * first[:, 1])) < 5 / np.sqrt(500)
    assert list(training._normal(0, 9)) == []
