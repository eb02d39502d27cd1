"""A round over bad nodes, the order of its durable operations, and a crash at each of them."""

from __future__ import annotations

import importlib.util
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from fedlearn.errors import LedgerError, LedgerLocked, OutOfRange, Reason, ResumeRefused, RoundFailed
from fedlearn.fold import Fold, FoldTerms
from fedlearn.ledger import LEDGER_FILE, Charged, Committed, Ledger, Reserved, RunAccount, Voided
from fedlearn.ledger.anchor import AnchorFile
from fedlearn.privacy import mechanisms
from fedlearn.privacy.secrets import SecretStore
from fedlearn.privacy.tally import Tally
from fedlearn.task import CohortReply, RoundTask
from fedlearn.types import Level
from fedlearn.wire import encode_reply
from fedlearn_server import checkpoint
from fedlearn_server.checkpoint import CHECKPOINT_FILE, MODEL_FILE, load_checkpoint, load_model
from fedlearn_server.collect import Asking
from fedlearn_server.grids.in_process import InProcessGrid
from fedlearn_server.round import Gathered, RoundOutcome
from fedlearn_server.spend import NoSpend
from fedlearn_server.training import run_training

_spec = importlib.util.spec_from_file_location("round_town", Path(__file__).with_name("round_town.py"))
town = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town  # its dataclasses look themselves up there
_spec.loader.exec_module(town)

ROUNDS = 3


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    return made


# --- nodes that misbehave -------------------------------------------------------------------------------------------


def edited(**changes: object) -> Callable[[RoundTask], CohortReply]:
    """A node whose contribution differs from a good one in these fields."""

    def behave(task: RoundTask) -> CohortReply:
        reply = town.good(task)
        return replace(reply, contribution=replace(reply.contribution, **changes))

    return behave


def scaled(factor: float) -> Callable[[RoundTask], CohortReply]:
    def behave(task: RoundTask) -> CohortReply:
        reply = town.good(task)
        values = reply.contribution.values
        return replace(reply, contribution=replace(reply.contribution, values=(values * factor).astype(values.dtype)))

    return behave


def longer(task: RoundTask) -> CohortReply:
    reply = town.good(task)
    values = np.append(reply.contribution.values, reply.contribution.values[:1])
    return replace(reply, contribution=replace(reply.contribution, values=values))


def huge(task: RoundTask) -> CohortReply:
    reply = town.good(task)
    return replace(reply, contribution=replace(reply.contribution, values=np.zeros(100_000, "<i8")))


def barely_over(task: RoundTask) -> CohortReply:
    reply = town.good(task)
    units = int(town.PHONES * town.CLIP / task.grid_step) + 1
    return replace(reply, contribution=replace(reply.contribution, values=np.array([units, 0, 0], "<i8")))


def truncated(task: RoundTask) -> bytes:
    return encode_reply(town.good(task))[:-3]


BAD = [
    (Reason.MALFORMED, lambda task: b"\x00garbage"),
    (Reason.MALFORMED, lambda task: b""),
    (Reason.MALFORMED, truncated),
    (Reason.FAILED, town.failing),
    (Reason.WRONG_TASK, edited(task_digest=bytes(32))),
    (Reason.DUPLICATE, edited(nonce=bytes(16))),
    (Reason.OVER_COUNT, edited(count=6)),  # 20 phones over 4 nodes: nobody may speak for six
    (Reason.OVER_NORM, scaled(100)),
    (Reason.OVER_NORM, barely_over),
    (Reason.OVER_NORM, edited(l2_bound=1e9)),
    (Reason.WRONG_SHAPE, longer),
    (Reason.WRONG_DTYPE, edited(codec="f64", scale=1.0, values=np.zeros(3))),
    (Reason.OVERSIZE, huge),
]


@pytest.mark.parametrize(("reason", "bad"), BAD, ids=[f"{reason}-{i}" for i, (reason, _) in enumerate(BAD)])
def test_the_round_completes_with_the_rest(directory: Path, reason: Reason, bad) -> None:
    first = edited(nonce=bytes(16)) if reason is Reason.DUPLICATE else town.good
    outcomes = town.train(town.make_job(directory), town.Nodes([first, bad, town.good, town.good]))
    assert len(outcomes) == ROUNDS
    for outcome in outcomes:
        assert outcome.unprotected.rejected == {reason: 1}
        assert outcome.unprotected.cohort == 3 * town.PHONES
        assert outcome.unprotected.loss == 2.0
        assert bool(outcome.unprotected.failures) is (reason is Reason.FAILED)
    assert load_model(directory)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite(directory: Path, bad: float) -> None:
    job = town.make_job(directory, private=False)
    outcomes = town.train(job, town.Nodes([town.good, edited(values=np.array([bad, 0.0, 0.0])), town.good]))
    assert [outcome.unprotected.rejected for outcome in outcomes] == [{Reason.NOT_FINITE: 1}] * ROUNDS
    assert np.isfinite(load_model(directory)["weights"]).all()


def test_a_bad_node_changes_nothing_but_its_own_share(directory: Path, tmp_path: Path) -> None:
    """Without privacy the model is the one of the good nodes alone; the negative control lets the bad one in."""
    models = []
    for number, nodes in enumerate(([town.good], [town.good, scaled(100)], [town.good, scaled(1.5)])):
        folder = tmp_path / str(number)
        folder.mkdir()
        town.train(town.make_job(folder, private=False), town.Nodes(nodes))
        models.append(load_model(folder)["weights"])
    assert models[0].tobytes() == models[1].tobytes()
    assert not np.allclose(models[0], models[2])


def test_many_bad_nodes_at_once(directory: Path) -> None:
    nodes = town.Nodes([edited(nonce=bytes(16)), *(bad for _, bad in BAD), town.good])
    shards = len(nodes.behaviours)
    outcomes = town.train(replace(town.make_job(directory), shards=shards, population=5 * shards), nodes)
    assert outcomes[0].unprotected.rejected == Counter(reason for reason, _ in BAD)
    assert outcomes[0].unprotected.cohort == 2 * town.PHONES


def test_any_number_of_nodes_answers_for_the_parts_and_each_part_counts_once(directory: Path, tmp_path: Path) -> None:
    """More nodes than parts, fewer, and a number that changes from round to round: the same phones, the same model."""
    models = []
    for name, sizes in (("few", [1]), ("many", [9]), ("changing", [1, 4, 2])):
        folder = tmp_path / name
        folder.mkdir()
        nodes = town.Nodes([town.good] * 4)
        grid, outcomes = InProcessGrid(nodes, max(sizes)), []
        looks = iter(sizes * ROUNDS)
        grid.get_node_ids = lambda looks=looks: range(1, 1 + next(looks))
        run_training(town.make_job(folder, private=False), grid, outcomes.append)
        assert [outcome.unprotected.cohort for outcome in outcomes] == [4 * town.PHONES] * ROUNDS
        assert len(nodes.tasks) == 4 * ROUNDS
        models.append(load_model(folder)["weights"].tobytes())
    assert len(set(models)) == 1


def test_the_first_node_is_waited_for(directory: Path) -> None:
    """Some runtimes start the server first."""
    grid, outcomes = town.Nodes([town.good] * 4).grid(), []
    known = list(grid.get_node_ids())
    looks = iter([[], [], known, known[:1], known])
    grid.get_node_ids = lambda: next(looks)
    run_training(town.make_job(directory), grid, outcomes.append)
    assert [outcome.unprotected.cohort for outcome in outcomes] == [4 * town.PHONES] * ROUNDS


def test_nodes_that_never_come(directory: Path) -> None:
    job = replace(town.make_job(directory), asking=Asking(0.05))
    with pytest.raises(RoundFailed, match="no node is there"):
        run_training(job, town.Nodes([]).grid(), lambda outcome: None)
    assert not entries(directory, Charged)
    assert len(entries(directory, Voided)) == 1


def test_below_the_minimum_a_step_is_tried_again_with_the_same_cohort_and_nothing_released(directory: Path) -> None:
    """An attempt that is given up is voided in the ledger: no draw occurred. The next one repeats the cohort's draw."""
    calls = []

    def fails_once(task: RoundTask) -> CohortReply:
        calls.append(task)
        if len(calls) == 2:
            raise ZeroDivisionError
        return town.good(task)

    job = replace(town.make_job(directory), asking=Asking(5.0, minimum=1.0, attempts=2))
    outcomes = town.train(job, town.Nodes([town.good, fails_once]))
    assert [outcome.step for outcome in outcomes] == [0, 1, 2]
    assert [task.step for task in calls] == [0, 1, 1, 2]
    assert (calls[1].round_key, calls[1].attempt) == (calls[2].round_key, calls[2].attempt)
    assert len(entries(directory, Charged)) == ROUNDS
    (voided,) = entries(directory, Voided)
    assert voided.sequence > entries(directory, Committed)[0].sequence


def test_the_run_stops_after_its_attempts_and_charges_nothing_for_them(directory: Path) -> None:
    job = replace(town.make_job(directory), asking=Asking(5.0, minimum=0.75, attempts=3))
    with pytest.raises(RoundFailed, match=r"1 part\(s\) of the population accepted, at least 2 needed"):
        town.train(job, town.Nodes([town.good, town.failing]))
    assert not entries(directory, Charged)
    assert len(entries(directory, Voided)) == 3


def test_enough_answers_close_a_round_early(directory: Path) -> None:
    """Over-selection: who is not among the first is counted as late, and never waited for."""
    nodes = town.Nodes([town.good, town.good, town.good, town.failing])
    job = replace(town.make_job(directory), asking=Asking(5.0, enough=0.5))
    outcomes = town.train(job, nodes)
    assert [outcome.unprotected.cohort for outcome in outcomes] == [2 * town.PHONES] * ROUNDS
    assert [outcome.unprotected.rejected for outcome in outcomes] == [{Reason.LATE: 2}] * ROUNDS


def test_rejections_inside_a_node_are_counted(directory: Path) -> None:
    def behave(task: RoundTask) -> CohortReply:
        return replace(town.good(task), rejected={Reason.NOT_FINITE: 2})

    outcomes = town.train(town.make_job(directory), town.Nodes([behave, behave, town.failing]))
    assert outcomes[0].unprotected.rejected == {Reason.NOT_FINITE: 4, Reason.FAILED: 1}


def test_a_figure_that_cannot_be_is_malformed(directory: Path) -> None:
    def behave(task: RoundTask) -> CohortReply:
        return replace(town.good(task), clipped=town.PHONES + 1)

    outcomes = town.train(town.make_job(directory), town.Nodes([behave, town.good]))
    assert outcomes[0].unprotected.rejected == {Reason.MALFORMED: 1}
    assert outcomes[0].unprotected.clipped_fraction == 1 / town.PHONES


@pytest.mark.parametrize("loss_sum", [1.7e308, -1.7e308, 1e40])
def test_a_loss_that_no_phone_can_have_is_malformed(directory: Path, loss_sum: float) -> None:
    """Two such figures would add up to infinity in the run's record."""

    def behave(task: RoundTask) -> CohortReply:
        return replace(town.good(task), loss_sum=loss_sum)

    outcomes = town.train(town.make_job(directory), town.Nodes([behave, behave, town.good]))
    assert outcomes[0].unprotected.rejected == {Reason.MALFORMED: 2}
    assert outcomes[0].unprotected.loss == 2.0


def test_without_a_trained_phone_there_is_no_loss(directory: Path) -> None:
    def behave(task: RoundTask) -> CohortReply:
        return replace(town.good(task), loss_sum=1e-9, trained=0, clipped=0)

    outcomes = town.train(town.make_job(directory), town.Nodes([behave, town.good]))
    assert outcomes[0].unprotected.rejected == {Reason.MALFORMED: 1}


@pytest.mark.parametrize("private", [True, False])
def test_of_an_attempt_that_is_given_up_nothing_is_said_of_phones_with_privacy_on(
    directory: Path, private: bool
) -> None:
    """Its words reach logs, failure.json and the run's status, and no noise covers what they say."""

    def behave(task: RoundTask) -> CohortReply:
        return replace(town.good(task), rejected={Reason.NOT_FINITE: 1, Reason.FAILED: 2})

    job = replace(town.make_job(directory, private=private), asking=Asking(5.0, minimum=1.0))
    with pytest.raises(RoundFailed, match=r"2 part\(s\) of the population accepted, at least 3 needed") as failed:
        town.train(job, town.Nodes([behave, behave, town.failing]))
    said = str(failed.value)
    assert "part 2: ZeroDivisionError" in said
    assert ("(failed: 1)" in said) is private
    assert ("not_finite: 2" in said) is ("failed: 5" in said) is not private


def entries(directory: Path, kind: type) -> list:
    return [entry for entry in Ledger.read(directory / LEDGER_FILE) if isinstance(entry, kind)]


def test_no_usable_node(directory: Path) -> None:
    """The round fails by name, nothing is charged, and the next attempt draws the same cohort."""
    job = town.make_job(directory)
    bad = town.Nodes([town.failing, lambda task: b"garbage"])
    for attempt in (1, 2):
        with pytest.raises(RoundFailed, match=r"step 0.*ZeroDivisionError") as failed:
            town.train(job, bad)
        assert failed.value.code == "FL703"
        assert "malformed: 1" in str(failed.value)
        assert "failed: 1" in str(failed.value)
        assert len(entries(directory, Voided)) == attempt
        assert entries(directory, Charged) == []
    fine = town.Nodes([town.good, town.good])
    assert len(town.train(job, fine)) == ROUNDS
    keys = {(task.step, task.attempt): task.round_key for task in [*bad.tasks, *fine.tasks]}
    assert all(keys[task.step, task.attempt] == task.round_key for task in [*bad.tasks, *fine.tasks])
    assert sorted(keys) == [(step, 0) for step in range(ROUNDS)]
    assert len(set(keys.values())) == ROUNDS
    assert len(entries(directory, Charged)) == len(entries(directory, Committed)) == ROUNDS
    assert len(entries(directory, Reserved)) == ROUNDS + 2


def test_a_lost_key_is_not_replaced_under_an_announced_cohort(directory: Path) -> None:
    job = town.make_job(directory)
    with pytest.raises(RoundFailed):
        town.train(job, town.Nodes([town.failing]))
    SecretStore().destroy(job.run_id)
    with pytest.raises(ResumeRefused, match="sampling key"):
        town.train(job, town.Nodes([town.good]))


def test_the_key_is_destroyed_at_the_end(directory: Path) -> None:
    job = town.make_job(directory)
    town.train(job, town.Nodes([town.good]))
    with pytest.raises(ResumeRefused):
        SecretStore().load(job.run_id)


# --- the order of durable operations --------------------------------------------------------------------------------

POINTS = ("record", "reserve", "push", "anchor", "charge", "draw", "observe", "publish", "commit", "destroy", "model")


class Crash(BaseException):
    """The process ends here; nothing may catch it."""


@dataclass
class Tracer:
    """Records each durable operation of a training, and ends the process before or after a chosen one."""

    trace: list[str] = field(default_factory=list)
    published: list[tuple[int, int, str]] = field(default_factory=list)
    """(step, charge id, digest) of every checkpoint that was ever on disk."""
    draws: int = 0
    crash_at: tuple[str, int, str] | None = None
    _seen: Counter = field(default_factory=Counter)

    def arm(self, point: str, occurrence: int, moment: str) -> None:
        """Crash ``before`` or ``after`` the given occurrence (from 0) of a point in the next process."""
        self.crash_at = (point, occurrence, moment)
        self._seen.clear()

    @contextmanager
    def at(self, point: str) -> Iterator[None]:
        occurrence = self._seen[point]
        self._seen[point] += 1
        if self.crash_at == (point, occurrence, "before"):
            raise Crash
        yield
        self.trace.append(point)
        if self.crash_at == (point, occurrence, "after"):
            raise Crash


@pytest.fixture
def tracer(monkeypatch: pytest.MonkeyPatch) -> Tracer:
    found = Tracer()

    def traced(owner: object, name: str, point: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: object, **named: object) -> object:
            with found.at(point):
                return real(*arguments, **named)

        monkeypatch.setattr(owner, name, call)

    traced(RunAccount, "reserve", "reserve")
    traced(RunAccount, "charge", "charge")
    traced(RunAccount, "commit", "commit")
    traced(InProcessGrid, "push_messages", "push")
    traced(SecretStore, "destroy", "destroy")
    traced(Tally, "record", "record")
    traced(AnchorFile, "raise_to", "anchor")
    real_normal, real_write = mechanisms.rounded_normal, checkpoint.write_durably

    def normal(*arguments: object) -> np.ndarray:
        with found.at("draw"):
            found.draws += 1
            return real_normal(*arguments)

    def write(path: Path, data: bytes) -> None:
        with found.at("publish" if path.name == CHECKPOINT_FILE else "model"):
            real_write(path, data)
            if path.name == CHECKPOINT_FILE:
                state = load_checkpoint(path.parent)
                found.published.append((state.step, state.charge_id, checkpoint.published_digest(path.parent)))

    monkeypatch.setattr(mechanisms, "rounded_normal", normal)
    monkeypatch.setattr(checkpoint, "write_durably", write)
    return found


def process(job, tracer: Tracer, nodes) -> bool:
    """Run as one process would; return whether it got to its end."""

    def observe(outcome: RoundOutcome) -> None:
        with tracer.at("observe"):
            pass

    try:
        town.train(job, nodes, observe)
    except Crash:
        return False
    return True


def tally(directory: Path) -> list[str]:
    """Return what is recorded outside the run directory."""
    with SecretStore().hold("run") as held:
        return list(held.digests)


def check_from_outside(directory: Path, tracer: Tracer) -> None:
    """The ledger shows at least what was released, and nothing was released twice."""
    if not (directory / LEDGER_FILE).exists():
        assert not tracer.published
        assert not tracer.draws
        return
    charges = {entry.sequence: entry for entry in entries(directory, Charged)}
    commits = entries(directory, Committed)
    assert tracer.draws <= len(tally(directory)) <= len(charges) <= ROUNDS
    assert tally(directory) == [entry.sum_digest for entry in charges.values()][: len(tally(directory))]
    ids = [charge for _, charge, _ in tracer.published]
    assert len(ids) == len(set(ids)), "two releases under one charge"
    steps = [step for step, _, _ in tracer.published]
    assert steps == sorted(set(steps)), "a step was released twice"
    assert set(ids) <= set(charges), "a release without its charge"
    for step, charge, digest in tracer.published:
        assert charges[charge].step == step - 1
        for commit in commits:
            assert commit.charge != charge or commit.published_digest == digest
    assert len({commit.charge for commit in commits}) == len(commits)
    assert {commit.charge for commit in commits} <= set(ids)


def test_order_in_a_round(directory: Path, tracer: Tracer) -> None:
    nodes = town.Nodes([town.good, town.good])
    assert process(town.make_job(directory), tracer, nodes)
    one_round = ["reserve", "push", "push", "anchor", "charge", "record", "draw", "observe", "publish", "commit"]
    assert tracer.trace == ["record", *one_round * ROUNDS, "anchor", "destroy", "model"]
    check_from_outside(directory, tracer)
    assert [step for step, _, _ in tracer.published] == [1, 2, 3]


def test_an_outcome_is_shown_once_its_step_is_published(directory: Path, tracer: Tracer) -> None:
    """Figures of a draw that a crash lost are not shown: the step is drawn again, for a matrix mechanism at no cost."""
    seen, shown = [], []

    def observe(outcome: RoundOutcome):
        seen.append(outcome.step)
        return lambda: shown.append((outcome.step, load_checkpoint(directory).step))

    tracer.arm("publish", 1, "before")
    with pytest.raises(Crash):
        town.train(town.make_job(directory), town.Nodes([town.good]), observe)
    assert (seen, shown) == ([0, 1], [(0, 1)])


def test_without_privacy_nothing_is_paid(directory: Path, tracer: Tracer) -> None:
    assert process(town.make_job(directory, private=False), tracer, town.Nodes([town.good]))
    assert tracer.trace == [*["push", "observe", "publish"] * ROUNDS, "model"]
    assert not (directory / LEDGER_FILE).exists()
    spend = NoSpend(7, 10.0)
    assert spend.reserve(0) != spend.reserve(1)
    assert spend.reserve(1) == spend.reserve(1)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("occurrence", [0, 2])
def test_a_crash_anywhere(directory: Path, tracer: Tracer, point: str, occurrence: int, moment: str) -> None:
    if point in {"destroy", "model"} and occurrence:
        occurrence = 0
    if point == "record":
        occurrence += 1  # the first one is no charge's, but the check at open
    job = town.make_job(directory)
    tracer.arm(point, occurrence, moment)
    before, after = town.Nodes([town.good]), town.Nodes([town.good])
    assert not process(job, tracer, before)
    check_from_outside(directory, tracer)
    tracer.crash_at = None
    if not (directory / MODEL_FILE).exists():
        assert process(job, tracer, after)
    check_from_outside(directory, tracer)
    lost = len(entries(directory, Charged)) - len(entries(directory, Committed))
    lost_at = {("charge", "after")}  # a staged step is published when the training goes on
    wasted = point in {"anchor", "record", "draw", "observe"} or (point, moment) in lost_at
    assert lost == wasted
    assert len(tracer.published) == ROUNDS - lost
    assert load_model(directory)
    drawn = {}
    for task in [*before.tasks, *after.tasks]:
        assert drawn.setdefault((task.step, task.attempt), task.round_key) == task.round_key
    assert len(set(drawn.values())) == len(drawn), "a charged attempt needs a fresh cohort"


def test_crash_upon_crash(directory: Path, tmp_path: Path, tracer: Tracer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forty trainings, each ended at random points until it gets through."""
    chance = random.Random(1)
    wasted = Counter()
    for number in range(40):
        folder = tmp_path / f"run-{number}"
        folder.mkdir()
        monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / f"state-{number}"))
        tracer.published, tracer.draws = [], 0
        for _ in range(30):
            tracer.arm(chance.choice(POINTS), chance.randrange(2), chance.choice(("before", "after")))
            done = process(town.make_job(folder), tracer, town.Nodes([town.good]))
            check_from_outside(folder, tracer)
            if done or (folder / MODEL_FILE).exists():
                break
        else:
            pytest.fail("thirty processes were not enough")
        lost = len(entries(folder, Charged)) - len(entries(folder, Committed))
        assert len(tracer.published) == ROUNDS - lost
        wasted[lost] += 1
    assert wasted[0] > 0
    assert sum(count for lost, count in wasted.items() if lost) > 0


def test_the_plan_caps_the_charges_even_where_the_budget_would_allow_more(directory: Path, tracer: Tracer) -> None:
    job = town.make_job(directory)
    job = replace(job, plan=replace(job.plan, epsilon=10 * job.plan.epsilon))
    tracer.arm("observe", 1, "before")
    assert not process(job, tracer, town.Nodes([town.good]))
    tracer.crash_at = None
    assert process(job, tracer, town.Nodes([town.good]))
    assert len(entries(directory, Charged)) == ROUNDS
    assert len(entries(directory, Committed)) == ROUNDS - 1


# --- what was published and what the ledger says must agree ----------------------------------------------------------


def interrupted(directory: Path, tracer: Tracer):
    """Return a training that was ended in its third round."""
    job = town.make_job(directory)
    tracer.arm("reserve", 2, "after")
    assert not process(job, tracer, town.Nodes([town.good]))
    tracer.crash_at = None
    return job


def test_a_removed_ledger_is_not_begun_anew(directory: Path, tracer: Tracer) -> None:
    job = interrupted(directory, tracer)
    (directory / LEDGER_FILE).unlink()
    with pytest.raises(LedgerError, match="gone"):
        town.train(job, town.Nodes([town.good]))
    assert not (directory / LEDGER_FILE).exists()


def test_a_checkpoint_that_the_ledger_does_not_know(directory: Path, tracer: Tracer) -> None:
    job = interrupted(directory, tracer)
    path = directory / CHECKPOINT_FILE
    content = path.read_bytes()
    state = load_checkpoint(directory)
    flipped = bytearray(content)
    flipped[-1] ^= 1  # a weight, not the header: the file still loads
    for forged in (bytes(flipped), None, replace(state, charge_id=99), replace(state, charge_id=None)):
        if forged is None:
            path.unlink()
        elif isinstance(forged, bytes):
            path.write_bytes(forged)
        else:
            forged.publish(directory)
        with pytest.raises(ResumeRefused, match="published last"):
            town.train(job, town.Nodes([town.good]))
    path.write_bytes(content)
    assert len(town.train(job, town.Nodes([town.good]))) == 1


# --- copies, backups, and what is left when a run ends ----------------------------------------------------------------


def stopped_in(directory: Path, tracer: Tracer, round_number: int, rounds: int = 6):
    """Return a training, and its nodes, that was ended when it asked for that round (from 0) of this process."""
    job, nodes = town.make_job(directory, rounds=rounds), town.Nodes([town.good])
    tracer.arm("reserve", round_number, "before")
    assert not process(job, tracer, nodes)
    tracer.crash_at = None
    return job, nodes


def test_a_run_directory_that_was_set_back_is_refused(directory: Path, tmp_path: Path, tracer: Tracer) -> None:
    job, _ = stopped_in(directory, tracer, 2)
    shutil.copytree(directory, tmp_path / "backup")
    stopped_in(directory, tracer, 2)
    shutil.copytree(directory, tmp_path / "newest")
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "backup", directory)
    draws, nodes = tracer.draws, town.Nodes([town.good])
    with pytest.raises(ResumeRefused, match=r"4 charges were made .*older copy.*start a new run"):
        town.train(job, nodes)
    assert (tracer.draws, nodes.tasks) == (draws, [])
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "newest", directory)
    assert len(town.train(job, town.Nodes([town.good]))) == 2
    assert tracer.draws == len(entries(directory, Charged)) == 6


def test_of_two_copies_one_goes_on(directory: Path, tmp_path: Path, tracer: Tracer) -> None:
    job, _ = stopped_in(directory, tracer, 1)
    shutil.copytree(directory, tmp_path / "copy")
    copy = replace(job, directory=tmp_path / "copy")
    town.train(copy, town.Nodes([town.good]))
    for late in (job, replace(job, directory=shutil.copytree(directory, tmp_path / "again"))):
        with pytest.raises(ResumeRefused, match="6 charges"):
            town.train(late, town.Nodes([town.good]))
    assert tracer.draws == 6


def test_copies_whose_last_charges_were_not_drawn_for(directory: Path, tmp_path: Path, tracer: Tracer) -> None:
    """Both hold as many charges as were recorded; the one that the recorded ones are not in is refused."""
    job, _ = stopped_in(directory, tracer, 1)
    copy = replace(job, directory=shutil.copytree(directory, tmp_path / "copy"))
    tracer.arm("anchor", 0, "before")
    assert not process(job, tracer, town.Nodes([town.good]))
    tracer.arm("record", 1, "after")
    assert not process(copy, tracer, town.Nodes([town.good]))
    tracer.crash_at = None
    assert len(entries(directory, Charged)) == len(entries(copy.directory, Charged)) == 2
    with pytest.raises(ResumeRefused, match="went its own way"):
        town.train(job, town.Nodes([town.good]))
    town.train(copy, town.Nodes([town.good]))


def test_two_copies_at_once(directory: Path, tmp_path: Path, tracer: Tracer) -> None:
    job, _ = stopped_in(directory, tracer, 1)
    copy = replace(job, directory=shutil.copytree(directory, tmp_path / "copy"))
    refused = []

    def observe(outcome: RoundOutcome) -> None:
        with pytest.raises(LedgerLocked, match="another process") as found:
            town.train(copy, town.Nodes([town.good]))
        refused.append(found.value.code)

    town.train(job, town.Nodes([town.good]), observe)
    assert refused == ["FL601"] * 5
    assert len(entries(copy.directory, Charged)) == 1


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_that_spent_is_not_begun_anew(directory: Path, tracer: Tracer, finished: bool) -> None:
    job, _ = stopped_in(directory, tracer, 3)
    if finished:
        town.train(job, town.Nodes([town.good]))
    spent = len(entries(directory, Charged))
    for path in directory.iterdir():
        path.unlink()
    with pytest.raises(ResumeRefused, match=f"{spent} charges were made.*ledger is gone"):
        town.train(job, town.Nodes([town.good]))
    assert not list(directory.iterdir())


def test_a_lost_key_is_not_replaced_once_anything_was_reserved(directory: Path, tracer: Tracer) -> None:
    """Also where the next attempt itself was not announced yet."""
    job, _ = stopped_in(directory, tracer, 2)
    SecretStore().destroy(job.run_id)
    with pytest.raises(ResumeRefused, match="sampling key"):
        town.train(job, town.Nodes([town.good]))


def test_without_a_step_left_no_key_is_needed(directory: Path, tracer: Tracer) -> None:
    """As after a kill inside the destruction of the key; likewise where every planned charge is spent."""
    job = town.make_job(directory)
    tracer.arm("observe", 1, "before")  # one charge is lost, so the last one is spent before the last step
    assert not process(job, tracer, town.Nodes([town.good]))
    tracer.arm("destroy", 0, "after")
    assert not process(job, tracer, town.Nodes([town.good]))
    tracer.crash_at = None
    assert not (directory / MODEL_FILE).exists()
    assert town.train(job, town.Nodes([town.good])) == []
    assert load_model(directory)
    assert not list((directory.parent / "state" / "sampling").rglob("*.key*"))


def test_a_population_whose_exact_sum_has_no_room(directory: Path) -> None:
    job = town.make_job(directory)
    with pytest.raises(OutOfRange, match="does not fit the grid"):
        replace(job, population=2**32)
    replace(job, population=2**31)
    replace(job, population=2**32, plan=None)


def test_another_model_in_the_checkpoint(directory: Path) -> None:
    job = town.make_job(directory, private=False)
    town.train(job, town.Nodes([town.good]))
    other = replace(job, initial={"weights": np.zeros(4, np.float32)})
    with pytest.raises(ResumeRefused, match="another model"):
        town.train(other, town.Nodes([town.good]))


def test_resumed_without_privacy_to_the_bit(directory: Path, tmp_path: Path, tracer: Tracer) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    town.train(town.make_job(whole, private=False, rounds=6), town.Nodes([town.good]))
    job = town.make_job(directory, private=False, rounds=6)
    for occurrence in (1, 2, 0, 1):
        tracer.arm("publish", occurrence, "before" if occurrence % 2 else "after")
        process(job, tracer, town.Nodes([town.good]))
    tracer.crash_at = None
    process(job, tracer, town.Nodes([town.good]))
    assert load_model(directory)["weights"].tobytes() == load_model(whole)["weights"].tobytes()


@pytest.mark.parametrize(("count", "released"), [(0, False), (4, False), (5, True)])
def test_no_sum_of_fewer_phones_than_each_was_promised(count: int, released: bool) -> None:
    """Whatever gateways answer; and how many came is not said."""
    terms = FoldTerms(bytes(32), 3, 1.0, 2.0**-20, Level.COHORT)
    gathered = Gathered(Fold(terms), minimum=1, round_size=5)
    gathered.fold.accepted, gathered.fold.count = 1, count
    if released:
        assert gathered.bounded_sum(0, 1.0, private=True).count == 5
        return
    with pytest.raises(RoundFailed, match="fewer phones than the 5") as refused:
        gathered.bounded_sum(0, 1.0, private=True)
    assert "4" not in str(refused.value)
