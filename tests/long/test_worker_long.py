"""The worker at full size: equal to the simulator for every shipped model, and inside its memory."""

from __future__ import annotations

import importlib.util
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedlearn.clip import clip_rows
from fedlearn.device.plan import ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.engine.example_privacy import PrivateSgd
from fedlearn.engine.loop import LoopEngine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.export.step import step_onnx
from fedlearn.models import ClientExamples, MatchModel, flatten
from fedlearn.models.two_tower import TwoTowerModel
from fedlearn.privacy.grid import to_grid
from fedlearn.rng import simulation_rng
from fedlearn.terms import ExamplePrivacy
from fedlearn.wire import decode_contribution
from fedlearn_client.worker import train as training
from fedlearn_client.workers import Workers

_spec = importlib.util.spec_from_file_location(
    "worker_examples", Path(__file__).parents[1] / "unit" / "worker_examples.py"
)
assert _spec
assert _spec.loader
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)

B, K, T = 16, 64, 24
PRIVACY = ExamplePrivacy(1.0, 0.5)
SMALL, LARGE = TwoTowerModel(), TwoTowerModel(terms=4096, items=500, width=32, hidden=64)
MOST_RSS = 90 * 2**20


def plan_of(model: Any, epochs: int, privacy: ExamplePrivacy | None = None) -> DevicePlan:
    initial = model.initial(3)
    columns = [ColumnSpec("label", "<i8", ()), ColumnSpec("logq", "<f4", (K,))]
    if model.name == "match":
        columns.append(ColumnSpec("features", "<f4", (K, model.width)))
    else:
        columns += [ColumnSpec("items", "<i8", (K,)), ColumnSpec("terms", "<i8", (T,))]
        columns.append(ColumnSpec("term_weight", "<f4", (T,)))
    return replace(
        made.match_plan(clip=0.5),
        model=model.name,
        examples=model.name,
        example_options=(("rows", model.terms), ("terms", T)) if model.name == "two_tower" else (),
        features=made.NAMES if model.name == "match" else (),
        parameters=tuple(ParameterSpec(name, a.shape, Scope.SHARED) for name, a in sorted(initial.items())),
        columns=tuple(sorted(columns, key=lambda column: column.name)),
        training=TrainingSpec(epochs, B, K, 0.1, True, 1000, privacy),
    )


def columns_of(plan: DevicePlan, model: Any, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(5)
    bound = {"label": K, "items": getattr(model, "items", 0), "terms": getattr(model, "terms", 0)}
    return {
        spec.name: rng.integers(0, bound[spec.name], (count, *spec.shape))
        if spec.dtype == "<i8"
        else rng.random((count, *spec.shape), np.float32)
        for spec in plan.columns
    }


@pytest.mark.long
@pytest.mark.parametrize("privacy", [None, PRIVACY])
@pytest.mark.parametrize("model", [MatchModel(made.WIDTH), SMALL])
def test_every_shipped_model_equals_the_simulator_after_100_steps(
    model: Any, privacy: ExamplePrivacy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(model, 5, privacy)
    columns, initial, task = columns_of(plan, model, 320), model.initial(3), made.task_for(plan)
    terms = plan.training
    order = schedule(
        320,
        LocalTraining(terms.epochs, B, terms.learning_rate, terms.shuffle),
        simulation_rng(task.shuffle_seed, task.step, "", "shuffle"),
    )
    assert len(order) == 100
    width = sum(array.size for array in initial.values())
    drawn = np.random.default_rng(8).standard_normal((100, width), np.float32)
    monkeypatch.setattr(training, "_normal", lambda width, steps: iter(drawn))
    private = None if privacy is None else PrivateSgd(privacy.noise_multiplier, privacy.l2_clip_norm, B)
    engine = LoopEngine(model, terms.learning_rate, private=private)
    noise = None if privacy is None else (lambda position: drawn)
    deltas = engine.updates(initial, [ClientExamples(columns)], [order], noise).deltas
    grid = task.mechanism.grid_step
    simulated = to_grid(clip_rows(deltas, task.mechanism.l2_clip_norm).values[0], grid) * grid
    step = step_onnx(model, plan.columns, B, privacy)
    sent = decode_contribution(training.train(made.train_request(plan, step, columns, flatten(initial))).contribution)
    worst = float(np.abs(sent.values * sent.scale - simulated).max())
    print(f"{model.name}, private steps: {privacy is not None}: max abs difference {worst:.2e}")
    assert worst <= 1e-5


class Clock:
    """The real one."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def random_bytes(self, count: int) -> bytes:
        return bytes(count)


@pytest.mark.long
def test_600_steps_of_150_000_parameters_stay_inside_the_memory() -> None:
    plan = plan_of(LARGE, 30)
    columns = columns_of(plan, LARGE, 320)
    initial = LARGE.initial(3)
    assert sum(array.size for array in initial.values()) > 150_000
    request = made.train_request(plan, step_onnx(LARGE, plan.columns, B), columns, flatten(initial))
    workers, peaks = Workers(Clock()), [0]

    def watch() -> None:
        while not done.is_set():
            for process in list(workers._training):
                status = Path(f"/proc/{process.pid}/status")
                try:
                    peak = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
                except OSError:
                    continue
                peaks.extend(1024 * int(line.split()[1]) for line in peak)
            time.sleep(0.005)

    done = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    started = time.monotonic()
    reply = workers.train(request, 120)
    wall = time.monotonic() - started
    done.set()
    thread.join()
    workers.close()
    print(f"local round with process start {wall:.2f} s, peak RSS {max(peaks) / 2**20:.1f} MiB")
    assert reply.examples == 320
    assert 0 < max(peaks) <= MOST_RSS
