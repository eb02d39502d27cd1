"""A simulated shard equals its phones, one by one; shards together equal the whole population."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedlearn.clip import clip_l2, joint_bound
from fedlearn.engine import cohort
from fedlearn.engine.base import LocalUpdates
from fedlearn.engine.cohort import SimulatedCohort
from fedlearn.engine.participation import takes_part
from fedlearn.engine.registry import make_engine
from fedlearn.engine.schedule import LocalTraining, schedule
from fedlearn.errors import Reason
from fedlearn.fold import Fold, FoldTerms
from fedlearn.models import ClientExamples, MatchModel
from fedlearn.privacy.grid import grid_step, to_grid
from fedlearn.privacy.sampling import RoundKey, included
from fedlearn.rng import simulation_rng
from fedlearn.task import CohortReply, RoundTask, shard
from fedlearn.terms import CohortSchedule, TrainingTerms
from fedlearn.types import Level
from fedlearn.wire import decode_reply, encode_reply, task_digest

WIDTH = 4
PHONES = [f"phone-{number}" for number in range(53)]
CLIP = 0.05
KEY = bytes(range(32))


@dataclass
class Town:
    """Phones with 0 to 4 examples each, a function of the phone's id alone; records who was asked to train."""

    ids: Sequence[str]
    spoilt: frozenset[str] = frozenset()
    broken: frozenset[str] = frozenset()
    asked: list[str] = field(default_factory=list)

    def examples(self, positions: Sequence[int], task: RoundTask) -> list[ClientExamples]:
        self.asked += [self.ids[position] for position in positions]
        return [self._phone(self.ids[position], task) for position in positions]

    def _phone(self, name: str, task: RoundTask) -> ClientExamples:
        if name in self.broken:
            raise ValueError("a damaged row")
        rng = simulation_rng(task.seed, task.step, name, "town")
        count = int(name.removeprefix("phone-")) % 5
        features = rng.standard_normal((count, 3, WIDTH)).astype(np.float32)
        if name in self.spoilt:
            features[:] = np.inf
        return ClientExamples(
            {"features": features, "label": np.zeros(count, np.int64), "logq": np.zeros((count, 3), np.float32)}
        )


def make_task(*, grid: bool = True, q: float = 0.5, key: bytes = KEY, step: int = 2) -> RoundTask:
    return RoundTask(
        run_id="run",
        step=step,
        attempt=0,
        seed=11,
        parameters={"weights": np.linspace(-0.2, 0.3, WIDTH).astype(np.float32)},
        training=TrainingTerms(epochs=2, batch_size=2, learning_rate=0.1, shuffle=True, candidates=3),
        l2_clip_norm=CLIP,
        grid_step=grid_step(CLIP) if grid else None,
        sampling_probability=q,
        round_key=key,
    )


def run(task: RoundTask, *, shards: int = 1, engine: str = "loop", spoilt: frozenset[str] = frozenset()):
    """Return the replies of every shard and the ids that trained."""
    replies, asked = [], []
    for partition in range(shards):
        town = Town([PHONES[i] for i in shard(len(PHONES), partition, shards)], spoilt)
        replies.append(SimulatedCohort(town, MatchModel(WIDTH), engine)(task))
        asked += town.asked
    return replies, asked


def fold_of(replies: list[CohortReply], task: RoundTask) -> Fold:
    fold = Fold(FoldTerms(task_digest(task), task.dimension, CLIP, task.grid_step, Level.COHORT))
    for reply in replies:
        fold.offer(lambda reply=reply: decode_reply(encode_reply(reply)).contribution, reserved=len(PHONES))
    assert not fold.rejected
    return fold


def one_by_one(task: RoundTask) -> tuple[np.ndarray, int, int]:
    """The oracle: every included phone by itself. Returns the sum in encoded units, phones, clipped phones."""
    terms = task.training
    training = LocalTraining(terms.epochs, terms.batch_size, terms.learning_rate, terms.shuffle)
    engine = make_engine("loop", MatchModel(WIDTH), learning_rate=terms.learning_rate)
    total = np.zeros(WIDTH, np.int64 if task.grid_step else np.float64)
    phones = clipped = 0
    for name, chosen in zip(PHONES, included(RoundKey(KEY), PHONES, task.sampling_probability), strict=True):
        if not chosen:
            continue
        (client,) = Town([name]).examples([0], task)
        order = schedule(client.count, training, simulation_rng(task.seed, task.step, name, "shuffle"))
        delta = engine.updates(task.parameters, [client], [order]).deltas[0]
        clipped += bool(np.linalg.norm(delta.astype(np.float64)) > CLIP)
        values = clip_l2(delta, CLIP).values
        total += to_grid(values, task.grid_step) if task.grid_step else values
        phones += 1
    return total, phones, clipped


@pytest.mark.parametrize("q", [0.5, 1.0])
def test_equals_the_phones_one_by_one_to_the_bit(q: float) -> None:
    task = make_task(q=q)
    (reply,), _ = run(task)
    total, phones, clipped = one_by_one(task)
    np.testing.assert_array_equal(reply.contribution.values, total)
    assert (reply.contribution.count, reply.clipped) == (phones, clipped)
    assert 0 < clipped < phones


def test_plain_sums_agree_to_rounding() -> None:
    task = make_task(grid=False)
    (reply,), _ = run(task)
    assert reply.contribution.codec == "f64"
    np.testing.assert_allclose(reply.contribution.values, one_by_one(task)[0], rtol=0, atol=1e-14)


def test_vmap_agrees_with_the_loop() -> None:
    task = make_task(grid=False)
    (loop,), _ = run(task)
    (vmap,), _ = run(task, engine="vmap")
    np.testing.assert_allclose(vmap.contribution.values, loop.contribution.values, rtol=0, atol=1e-6)
    assert (vmap.contribution.count, vmap.trained, vmap.clipped) == (
        loop.contribution.count,
        loop.trained,
        loop.clipped,
    )


@pytest.mark.parametrize("shards", [2, 7, 53, 60])
def test_shards_include_the_same_phones_and_give_the_same_sum(shards: int) -> None:
    task = make_task()
    whole, alone = run(task)
    parts, spread = run(task, shards=shards)
    expected = [name for name, chosen in zip(PHONES, included(RoundKey(KEY), PHONES, 0.5), strict=True) if chosen]
    assert alone == expected
    assert sorted(spread) == sorted(expected)
    one, many = fold_of(whole, task), fold_of(parts, task)
    assert many.accepted == shards
    np.testing.assert_array_equal(one.bounded_sum(2, CLIP).values, many.bounded_sum(2, CLIP).values)
    assert one.count == many.count == len(expected)
    assert sum(reply.trained for reply in parts) == whole[0].trained
    assert all(reply.contribution.count <= len(shard(len(PHONES), 0, shards)) for reply in parts)


def test_another_key_draws_another_cohort() -> None:
    _, first = run(make_task())
    _, again = run(make_task())
    _, other = run(make_task(key=bytes(32)))
    assert first == again
    assert first != other


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(q=1.0)
    (whole,), _ = run(task)
    monkeypatch.setattr(cohort, "PHONES_AT_ONCE", 5)
    (chunked,), asked = run(task)
    np.testing.assert_array_equal(whole.contribution.values, chunked.contribution.values)
    assert chunked.contribution.count == whole.contribution.count
    assert asked == PHONES


def test_empty_phones_count_but_do_not_train() -> None:
    (reply,), _ = run(make_task(q=1.0))
    empty = sum(int(name.removeprefix("phone-")) % 5 == 0 for name in PHONES)
    assert reply.contribution.count == len(PHONES)
    assert reply.trained == len(PHONES) - empty


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("grid", [True, False])
def test_an_update_that_is_not_finite_is_left_out_and_counted(engine: str, grid: bool) -> None:
    task = make_task(q=1.0, grid=grid)
    spoilt = frozenset({"phone-1", "phone-7", "phone-13", "phone-10"})  # phone-10 has no example: nothing to spoil
    (clean,), _ = run(task, engine=engine)
    (reply,), _ = run(task, engine=engine, spoilt=spoilt)
    assert reply.rejected == {Reason.NOT_FINITE: 3}
    assert reply.contribution.count == len(PHONES) - 3
    assert reply.trained == clean.trained - 3
    assert np.isfinite(reply.loss_sum)
    fold_of([reply], task)
    kept = sum(
        (
            SimulatedCohort(Town([name]), MatchModel(WIDTH), engine)(task).contribution.values
            for name in PHONES
            if name not in spoilt
        ),
        start=np.zeros(WIDTH, reply.contribution.values.dtype),
    )
    tolerance = 2e-6 / (task.grid_step or 1.0)
    np.testing.assert_allclose(reply.contribution.values, kept, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", [np.inf, np.nan, 1e39])
def test_a_loss_that_is_none_is_left_out_of_the_figure_and_its_update_stays_in(
    monkeypatch: pytest.MonkeyPatch, loss: float
) -> None:
    """The server refuses a reply with such a figure: one phone's data would decide whether its neighbours are in."""
    task = make_task(q=1.0)
    (clean,), _ = run(task, engine="loop")
    real = SimulatedCohort._together

    def together(self: SimulatedCohort, positions: list[int], task: RoundTask) -> LocalUpdates:
        updates = real(self, positions, task)
        losses = updates.losses.copy()
        losses[1] = loss  # phone-0 has no example
        return replace(updates, losses=losses)

    monkeypatch.setattr(SimulatedCohort, "_together", together)
    (reply,), _ = run(task, engine="loop")
    assert np.isfinite(reply.loss_sum)
    assert reply.loss_sum < clean.loss_sum
    np.testing.assert_array_equal(reply.contribution.values, clean.contribution.values)
    assert decode_reply(encode_reply(reply)).contribution.count == len(PHONES)


@pytest.mark.parametrize("grid", [True, False])
def test_nobody_included_is_an_answer(grid: bool) -> None:
    task = make_task(q=1e-12, grid=grid)
    replies, asked = run(task, shards=3)
    assert asked == []
    assert all(reply.contribution.count == 0 and not reply.contribution.values.any() for reply in replies)
    assert fold_of(replies, task).bounded_sum(2, CLIP).count == 0


def test_a_shard_without_phones_is_an_answer() -> None:
    reply = SimulatedCohort(Town([]), MatchModel(WIDTH), "vmap")(make_task())
    assert reply.contribution.count == 0


def test_every_reply_has_its_own_nonce() -> None:
    replies, _ = run(make_task(), shards=7)
    assert len({reply.contribution.nonce for reply in replies}) == 7


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_a_phone_that_fails_is_left_out_alone(grid: bool, engine: str) -> None:
    """Its neighbours' sum is bit for bit the one without it: otherwise one phone could move it by a whole shard."""
    task = make_task(grid=grid, q=1.0)
    partial = SimulatedCohort(Town(PHONES, broken=frozenset({PHONES[3]})), MatchModel(WIDTH), engine)(task)
    without = SimulatedCohort(Town([*PHONES[:3], *PHONES[4:]]), MatchModel(WIDTH), engine)(task)
    assert partial.rejected == {Reason.FAILED: 1}
    assert partial.contribution.count == len(PHONES) - 1 == without.contribution.count
    assert (partial.contribution.values == without.contribution.values).all()


def test_where_every_phone_fails_the_fault_is_not_theirs() -> None:
    hopeless = SimulatedCohort(Town(PHONES, broken=frozenset(PHONES)), MatchModel(WIDTH), "loop")
    with pytest.raises(ValueError, match="damaged"):
        hopeless(make_task(q=1.0, grid=False))


def test_with_privacy_on_phones_that_all_fail_are_an_empty_cohort() -> None:
    """Else the one phone of a small cohort would decide whether its shard answers."""
    reply = SimulatedCohort(Town(PHONES[:1], broken=frozenset(PHONES[:1])), MatchModel(WIDTH), "loop")(make_task(q=1.0))
    assert reply.rejected == {Reason.FAILED: 1}
    assert reply.contribution.count == 0
    assert not reply.contribution.values.any()


@pytest.mark.parametrize("grid", [True, False])
def test_a_phone_alone_in_its_chunk_fails_alone(monkeypatch: pytest.MonkeyPatch, grid: bool) -> None:
    monkeypatch.setattr(cohort, "PHONES_AT_ONCE", len(PHONES) - 1)
    task = make_task(grid=grid, q=1.0)
    partial = SimulatedCohort(Town(PHONES, broken=frozenset(PHONES[-1:])), MatchModel(WIDTH), "vmap")(task)
    without = SimulatedCohort(Town(PHONES[:-1]), MatchModel(WIDTH), "vmap")(task)
    assert partial.rejected == {Reason.FAILED: 1}
    assert partial.contribution.count == len(PHONES) - 1
    assert (partial.contribution.values == without.contribution.values).all()


def test_phones_that_fail_only_together_train_one_by_one() -> None:
    """A phone whose columns differ from its neighbours' must not take them out of the sum."""

    class Wide(Town):
        def _phone(self, name: str, task: RoundTask) -> ClientExamples:
            found = super()._phone(name, task)
            if name != PHONES[7]:
                return found
            columns = {"features": np.tile(found.columns["features"], (1, 2, 1)), "label": found.columns["label"]}
            return ClientExamples({**columns, "logq": np.tile(found.columns["logq"], (1, 2))})

    task = make_task(q=1.0)
    mixed = SimulatedCohort(Wide(PHONES), MatchModel(WIDTH), "vmap")(task).contribution
    alone = SimulatedCohort(Wide(PHONES[7:8]), MatchModel(WIDTH), "vmap")(task).contribution
    others = SimulatedCohort(Wide([*PHONES[:7], *PHONES[8:]]), MatchModel(WIDTH), "vmap")(task).contribution
    assert mixed.count == len(PHONES)
    rounding = np.abs(mixed.values - others.values - alone.values).max() * grid_step(CLIP)
    assert rounding < 1e-5 * CLIP


# --- the coordinate of adaptive clipping, and schedules ---------------------------------------------------------------


@pytest.mark.parametrize("grid", [True, False])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_the_last_coordinate_counts_the_phones_within_the_clip(grid: bool, engine: str) -> None:
    clip, scale = 0.25, 0.08
    task = replace(make_task(q=1.0, grid=grid), l2_clip_norm=clip, grid_step=grid_step(clip) if grid else None)
    (plain,), _ = run(task, engine=engine)
    adaptive = replace(task, count_scale=scale, grid_step=grid_step(joint_bound(clip, scale)) if grid else None)
    (reply,), _ = run(adaptive, engine=engine)
    unit = adaptive.grid_step or 1.0
    told = float(reply.contribution.values[-1]) * unit
    assert told == pytest.approx(scale * ((plain.trained - plain.clipped) - plain.clipped) / 2, rel=1e-6)
    assert 0 < plain.clipped < plain.trained < plain.contribution.count
    update = reply.contribution.values[:-1] * unit
    np.testing.assert_allclose(update, plain.contribution.values * (task.grid_step or 1.0), rtol=0, atol=1e-6)
    terms = FoldTerms(task_digest(adaptive), adaptive.dimension, adaptive.l2_bound, adaptive.grid_step, Level.COHORT)
    fold = Fold(terms)
    assert fold.offer(lambda: decode_reply(encode_reply(reply)).contribution, reserved=len(PHONES)) is not None


@pytest.mark.parametrize("shards", [1, 7])
def test_a_schedule_decides_instead_of_the_draw(shards: int) -> None:
    schedule_ = CohortSchedule(min_separation=3, availability=0.8)
    trained: dict[str, list[int]] = {}
    for step in range(9):
        task = replace(make_task(step=step, q=1e-12), participation=schedule_)
        replies, asked = run(task, shards=shards)
        expected = [PHONES[i] for i in np.flatnonzero(takes_part(schedule_, task.seed, step, PHONES))]
        assert sorted(asked) == sorted(expected)
        assert sum(reply.contribution.count for reply in replies) == len(expected)
        for name in asked:
            trained.setdefault(name, []).append(step)
    assert all((np.diff(steps) >= 3).all() and len(steps) <= 3 for steps in trained.values())
    assert len(trained) > len(PHONES) / 2
