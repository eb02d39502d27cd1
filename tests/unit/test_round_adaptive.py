"""A training whose clip moves, and one whose cohorts follow a schedule: what the nodes are asked, and what is kept."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.clip import joint_bound
from fedlearn.errors import OutOfRange, Reason
from fedlearn.privacy.adaptive_clip import AdaptiveClipSettings
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.task import CohortReply, RoundTask
from fedlearn.terms import CohortSchedule
from fedlearn_server.checkpoint import CHECKPOINT_FILE, load_checkpoint, load_model
from fedlearn_server.job import TrainingJob
from fedlearn_server.round import RoundOutcome

_spec = importlib.util.spec_from_file_location("round_town", Path(__file__).with_name("round_town.py"))
town = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town
_spec.loader.exec_module(town)

ADAPTIVE = AdaptiveClipSettings(town.CLIP, target_quantile=0.5, learning_rate=0.4)
ROUNDS = 4


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


def make_job(directory: Path, *, private: bool) -> TrainingJob:
    directory.mkdir(exist_ok=True)
    return replace(town.make_job(directory, private=private, rounds=ROUNDS), adaptive_clip=ADAPTIVE)


def telling(fits: int, overlong: float = 1.0) -> Callable[[RoundTask], CohortReply]:
    """A node ``fits`` of whose phones are within the clip; its coordinate is ``overlong`` times what they may say."""

    def behave(task: RoundTask) -> CohortReply:
        assert task.count_scale is not None
        told = overlong * task.count_scale * (fits - town.PHONES / 2)
        update = np.array([0.5, -0.25, 0.125]) * task.l2_clip_norm
        vector = np.append(update, told)
        reply = town.good(task)
        values = vector.astype("<f8") if task.grid_step is None else to_grid(vector, task.grid_step).astype("<i8")
        bound = town.PHONES * task.l2_bound
        return replace(reply, contribution=replace(reply.contribution, values=values, l2_bound=bound))

    return behave


def test_the_clip_follows_what_was_told(tmp_path: Path) -> None:
    """Without privacy, by hand: 4 nodes of 4 phones, 3 of 4 within the clip, over a constant cohort of 10."""
    nodes = town.Nodes([telling(3)] * 4)
    outcomes = town.train(make_job(tmp_path / "run", private=False), nodes)
    share = 0.5 + 4 * (3 - 2) / 10
    clips = town.CLIP * np.exp(-0.4 * (share - 0.5)) ** np.arange(ROUNDS + 1)
    np.testing.assert_allclose([outcome.l2_clip_norm for outcome in outcomes], clips[:-1], rtol=1e-12)
    for outcome, task in zip(outcomes, nodes.tasks[::4], strict=True):
        assert task.l2_clip_norm == outcome.l2_clip_norm
        assert outcome.update_norm == pytest.approx(0.4 * np.sqrt(0.25 + 0.0625 + 0.015625) * task.l2_clip_norm)
    assert load_checkpoint(tmp_path / "run").clip == pytest.approx(clips[-1], rel=1e-12)
    assert load_model(tmp_path / "run")["weights"].shape == (town.WIDTH,)


def test_with_privacy_bound_grid_and_noise_follow_the_clip(tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", private=True)
    nodes = town.Nodes([telling(4)] * 4)
    outcomes = town.train(job, nodes)
    assert len(outcomes) == ROUNDS
    assert all(not outcome.unprotected.rejected for outcome in outcomes)
    ratio = ADAPTIVE.ratio(job.plan.noise_multiplier)
    for outcome, task in zip(outcomes, nodes.tasks[::4], strict=True):
        assert task.l2_clip_norm == outcome.l2_clip_norm
        assert task.count_scale == task.l2_clip_norm * ratio
        assert task.l2_bound == joint_bound(task.l2_clip_norm, task.count_scale)
        assert task.grid_step == grid_step(task.l2_bound)
        sums = 4 * np.array([0.5, -0.25, 0.125]) * task.l2_clip_norm
        noise = job.plan.noise_multiplier * task.l2_bound * np.sqrt(town.WIDTH)
        assert outcome.unprotected.signal_to_noise == pytest.approx(np.linalg.norm(sums) / noise, rel=1e-6)
    assert len({outcome.l2_clip_norm for outcome in outcomes}) == ROUNDS


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_resumed_run_goes_on_with_the_clip_it_had(tmp_path: Path, private: bool, cut: int) -> None:
    job = make_job(tmp_path / "run", private=private)

    def stop(outcome: RoundOutcome) -> None:
        if outcome.step == cut:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        town.train(job, town.Nodes([telling(3)] * 4), stop)
    kept = load_checkpoint(tmp_path / "run").clip
    assert kept not in (None, town.CLIP)
    resumed = town.Nodes([telling(3)] * 4)
    town.train(job, resumed)
    assert (resumed.tasks[0].step, resumed.tasks[0].l2_clip_norm) == (cut, kept)
    if private:
        return
    town.train(make_job(tmp_path / "whole", private=False), town.Nodes([telling(3)] * 4))
    assert (tmp_path / "run" / CHECKPOINT_FILE).read_bytes() == (tmp_path / "whole" / CHECKPOINT_FILE).read_bytes()


@pytest.mark.parametrize("private", [True, False])
def test_a_node_cannot_say_more_than_its_phones(tmp_path: Path, private: bool) -> None:
    """A count coordinate beyond what so many phones can add up to is over the joint bound."""
    nodes = town.Nodes([telling(4), telling(4), telling(4), telling(4, overlong=50.0)])
    for outcome in town.train(make_job(tmp_path / "run", private=private), nodes):
        assert outcome.unprotected.rejected == {Reason.OVER_NORM: 1}


def test_a_node_that_tells_nothing_is_left_out(tmp_path: Path) -> None:
    nodes = town.Nodes([telling(4), telling(4), telling(4), town.good])
    for outcome in town.train(make_job(tmp_path / "run", private=True), nodes):
        assert outcome.unprotected.rejected == {Reason.WRONG_SHAPE: 1}


def test_a_fixed_clip_asks_for_nothing_more(tmp_path: Path) -> None:
    nodes = town.Nodes([town.good] * 4)
    directory = tmp_path / "run"
    directory.mkdir()
    outcomes = town.train(town.make_job(directory), nodes)
    assert {task.count_scale for task in nodes.tasks} == {None}
    assert {outcome.l2_clip_norm for outcome in outcomes} == {town.CLIP}
    assert load_checkpoint(directory).clip is None


def test_a_job_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    job = make_job(tmp_path, private=True)
    with pytest.raises(OutOfRange, match=r"adaptive_clip\.initial=0\.5.*privacy\.clip=1\.0"):
        replace(job, adaptive_clip=replace(ADAPTIVE, initial=0.5))
    with pytest.raises(OutOfRange, match=r"adaptive_clip\.count_noise=1\.0: must be above half"):
        replace(job, adaptive_clip=replace(ADAPTIVE, count_noise=1.0))
    with pytest.raises(OutOfRange, match="make the plan again"):
        replace(job, adaptive_clip=None, participation=CohortSchedule(2, 1.0))


def test_a_schedule_reaches_the_nodes_and_sets_the_denominator(tmp_path: Path) -> None:
    schedule = CohortSchedule(min_separation=2, availability=0.8)
    nodes = town.Nodes([town.good] * 4)
    job = replace(town.make_job(tmp_path, private=False), participation=schedule)
    assert job.denominator == town.POPULATION * 0.8 / 2
    town.train(job, nodes)
    assert {task.participation for task in nodes.tasks} == {schedule}
