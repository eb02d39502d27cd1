"""Several runs under one cap: quotas, renewals, gates, what a closed run gives back, and older copies."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from fedlearn.errors import (
    BudgetExceeded,
    ChargeMismatch,
    InvalidSpend,
    LedgerDamaged,
    LedgerError,
    LedgerRestored,
    OutOfRange,
    PrivacyError,
)
from fedlearn.ledger import GateKind, Kind, Ledger, Planned, Rule, RunAccount, RunClosed, new_scope
from fedlearn.ledger.anchor import AnchorFile, Mark
from fedlearn.ledger.budget import budget_lines
from fedlearn.ledger.checkpoint import LedgerCheckpoint
from fedlearn.ledger.entries import Granted, Recovered, grant_message, recovery_message
from fedlearn.ledger.runs import cut
from fedlearn.ledger.scope import default_gate
from fedlearn.ledger.signing import SigningKey, operator_key
from fedlearn.privacy.accountants import epsilon
from fedlearn.privacy.events import (
    MatrixGaussian,
    MetricRelease,
    NeighboringRelation,
    PoissonGaussian,
    RepeatAndSelect,
)
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz
from fedlearn.privacy.filter import RdpFilter, ZcdpFilter
from fedlearn.types import Charge

DIGEST = hashlib.sha256(b"x").hexdigest()
DELTA = 1e-6
SAMPLED = PoissonGaussian(2.0, 0.01)
METRIC = MetricRelease(20.0)
AUTHORITY = SigningKey.fresh()
_names = count()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "state"))


def shared(
    path: Path, gate: GateKind = GateKind.RDP, *, cap: float = 2.0, authority: SigningKey | None = AUTHORITY
) -> Ledger:
    relation = NeighboringRelation.ZERO_OUT if gate is GateKind.ZCDP else NeighboringRelation.ADD_OR_REMOVE
    scope = new_scope(
        "phones",
        cap,
        DELTA,
        operator_key().public,
        kind=Kind.ENROLLED,
        neighboring_relation=relation,
        gate=gate,
        authority_key=None if authority is None else authority.public,
    )
    return Ledger.create(path, scope)


def opened(ledger: Ledger, *plan: Planned, quota: tuple[str, str] = ("ranking", "2026")) -> RunAccount:
    return ledger.open_run(f"run-{next(_names)}", *quota, plan, DIGEST)


def charged(account: RunAccount, step: int, part: int = 0, *, commit: bool = True) -> Charge:
    charge = account.charge(account.reserve(step, account.next_attempt(step, part), part), DIGEST, DIGEST)
    if commit:
        account.commit(charge, DIGEST)
    return charge


def matrix(steps: int = 12, b: int = 4, k: int = 3, z: float = 8.0) -> MatrixGaussian:
    return MatrixGaussian(Toeplitz((1.0, 0.5, 0.25)), steps, b, k, z)


# --- gates ----------------------------------------------------------------------------------------------------------


def test_default_gate() -> None:
    assert default_gate(NeighboringRelation.ZERO_OUT) is GateKind.ZCDP
    assert default_gate(NeighboringRelation.ADD_OR_REMOVE) is GateKind.RDP
    assert default_gate(NeighboringRelation.REPLACE_ONE) is GateKind.RDP


def test_the_order_follows_from_the_cap_alone(tmp_path: Path) -> None:
    with shared(tmp_path / "a") as first, shared(tmp_path / "b") as second:
        assert first.scope.order == second.scope.order == RdpFilter.order_for(2.0, DELTA)
        assert first.scope.ledger_id != second.scope.ledger_id


@pytest.mark.parametrize("gate", [GateKind.RDP, GateKind.ZCDP])
def test_runs_fit_while_their_costs_add_up_to_the_capacity(tmp_path: Path, gate: GateKind) -> None:
    """The admitted number of runs is the one that division by hand gives."""
    with shared(tmp_path / "ledger", gate, authority=None) as ledger:
        order = ledger.scope.order
        chosen = ZcdpFilter(2.0, DELTA) if order is None else RdpFilter(order, 2.0, DELTA)
        run = Planned(METRIC, 5)
        fits = int(chosen.capacity / chosen.cost(METRIC, 5))
        assert fits >= 2
        for _ in range(fits):
            opened(ledger, run)
        with pytest.raises(BudgetExceeded, match=r"the ledger's cap.*at most \d releases"):
            opened(ledger, run)
        assert ledger.book.held_cost() <= chosen.capacity
        assert epsilon([(METRIC, 5 * fits)], DELTA, neighboring_relation=ledger.scope.neighboring_relation) <= 2.0


def test_the_largest_number_that_fits_does(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        opened(ledger, Planned(SAMPLED, 100))
        with pytest.raises(BudgetExceeded) as refused:
            opened(ledger, Planned(SAMPLED, 10**7))
        most = int(str(refused.value).partition("at most ")[2].split()[0])
        assert most > 0
        with pytest.raises(BudgetExceeded):
            opened(ledger, Planned(SAMPLED, most + 1))
        opened(ledger, Planned(SAMPLED, most))


def test_the_largest_number_of_steps_of_a_matrix_mechanism(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", GateKind.ZCDP, authority=None) as ledger:
        event = MatrixGaussian(INDEPENDENT, 4000, 1, 4000, 8.0)
        with pytest.raises(BudgetExceeded) as refused:
            opened(ledger, Planned(event, 1))
        most = int(str(refused.value).partition("at most ")[2].split()[0])
        assert most == int(ZcdpFilter(2.0, DELTA).capacity * 2 * 8.0**2)  # rho = steps / (2 z^2)
        opened(ledger, Planned(cut(event, most), 1))


def test_an_event_of_another_relation_is_refused(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", GateKind.ZCDP, authority=None) as ledger:
        with pytest.raises(InvalidSpend, match="never converted"):
            opened(ledger, Planned(SAMPLED, 1))
        assert len(ledger.entries()) == 1


# --- parts ----------------------------------------------------------------------------------------------------------


def test_a_part_of_independent_releases_counts_them_in_any_order(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        account = opened(ledger, Planned(SAMPLED, 2), Planned(METRIC, 1))
        charged(account, 7)
        charged(account, 7, part=1)
        assert (account.remaining(), account.remaining(1)) == (1, 0)
        with pytest.raises(BudgetExceeded):
            account.reserve(8, 0, part=1)
        assert account.spent_events() == ((SAMPLED, 1), (METRIC, 1))


def test_a_matrix_mechanism_is_spent_up_to_its_last_charged_step(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", GateKind.ZCDP, authority=None) as ledger:
        event = matrix()
        account = opened(ledger, Planned(event, 1))
        assert account.spent_events() == ()
        charged(account, 0)
        assert account.spent_events() == ((MatrixGaussian(Toeplitz((1.0,)), 1, 4, 1, 8.0), 1),)
        for step in range(1, 5):
            charged(account, step)
        assert account.spent_events() == ((cut(event, 5), 1),)
        assert account.remaining() == 7
        assert (cut(event, 5).steps, cut(event, 5).max_participations) == (5, 2)
        with pytest.raises(BudgetExceeded, match="analysed for 12 steps"):
            account.reserve(12, 0)


def test_a_lost_draw_of_a_matrix_step_is_drawn_again_without_further_spend(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", GateKind.ZCDP, authority=None) as ledger:
        account = opened(ledger, Planned(matrix(), 1))
        charged(account, 0, commit=False)
        spent = account.spent_events()
        charged(account, 0)
        assert account.spent_events() == spent
        assert len(account.charged_digests()) == 2
        with pytest.raises(ChargeMismatch, match="released once"):
            account.reserve(0, 2)


def test_cut_keeps_what_has_no_tail() -> None:
    event = MatrixGaussian(Blt((0.9,), (0.5,)), 10, 3, 4, 2.0)
    assert cut(event, 10) == event
    assert cut(event, 4) == replace(event, steps=4, max_participations=2)


def test_repeat_and_select_is_spent_as_a_whole(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", GateKind.PLAN, cap=50.0, authority=None) as ledger:
        event = RepeatAndSelect(PoissonGaussian(5.0, 0.01), 10, 2.0, 1.0)
        account = opened(ledger, Planned(event, 2))
        charge = charged(account, 0)
        assert charge.noise_multiplier == 5.0
        assert account.spent_events() == ((event, 2),)


# --- closing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("why", "kept"), [(Rule.COMPLETED, 1), (Rule.DATA_INDEPENDENT, 1), (Rule.JUDGEMENT, 50)])
def test_what_a_closed_run_gives_back(tmp_path: Path, why: Rule, kept: int) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        account = opened(ledger, Planned(SAMPLED, 50))
        charged(account, 0)
        account.close(why, "the last day of the season")
        assert ledger.book.held() == ledger.book.spent() == (Planned(SAMPLED, kept),)
        assert isinstance(ledger.entries()[-1], RunClosed)


def test_what_is_given_back_can_be_spent_again(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        with pytest.raises(BudgetExceeded) as refused:
            opened(ledger, Planned(SAMPLED, 10**7))
        most = int(str(refused.value).partition("at most ")[2].split()[0])
        first = opened(ledger, Planned(SAMPLED, most))
        with pytest.raises(BudgetExceeded):
            opened(ledger, Planned(SAMPLED, 2))
        first.close(Rule.DATA_INDEPENDENT, "never begun")
        opened(ledger, Planned(SAMPLED, most))


# --- quotas and renewals --------------------------------------------------------------------------------------------


def test_a_run_needs_a_quota_and_stays_within_it(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger") as ledger:
        with pytest.raises(BudgetExceeded, match="has no quota"):
            opened(ledger, Planned(METRIC, 1))
        ledger.grant("ranking", "2026", 1.0, AUTHORITY)
        with pytest.raises(BudgetExceeded, match=r"the quota of .*at most \d+ releases") as refused:
            opened(ledger, Planned(METRIC, 10**6))
        most = int(str(refused.value).partition("at most ")[2].split()[0])
        opened(ledger, Planned(METRIC, most))
        with pytest.raises(BudgetExceeded, match="has no quota"):
            opened(ledger, Planned(METRIC, 1), quota=("ranking", "2027"))
        ledger.grant("ranking", "2027", 1.0, AUTHORITY)
        opened(ledger, Planned(METRIC, 1), quota=("ranking", "2027"))


def test_a_renewal_replaces_the_quota_and_never_goes_below_what_is_held(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger") as ledger:
        ledger.grant("ranking", "2026", 1.0, AUTHORITY)
        with pytest.raises(BudgetExceeded) as refused:
            opened(ledger, Planned(METRIC, 10**6))
        most = int(str(refused.value).partition("at most ")[2].split()[0])
        opened(ledger, Planned(METRIC, most))
        with pytest.raises(BudgetExceeded, match="hold already"):
            ledger.grant("ranking", "2026", 0.9, AUTHORITY)
        ledger.grant("ranking", "2026", 1.8, AUTHORITY)
        opened(ledger, Planned(METRIC, 1))
        lines = {line.quota: line for line in budget_lines(ledger.book)}
        assert lines["ranking", "2026"].granted == 1.8
        assert lines[None].granted == 2.0
        assert lines[None].runs == lines["ranking", "2026"].open_runs == 2


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 2.1])
def test_a_quota_out_of_range(tmp_path: Path, value: float) -> None:
    with shared(tmp_path / "ledger") as ledger:
        with pytest.raises((ChargeMismatch, ValueError)):
            ledger.grant("ranking", "2026", value, AUTHORITY)
        assert len(ledger.entries()) == 1


def test_a_quota_that_the_order_cannot_show(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger") as ledger, pytest.raises(InvalidSpend, match="grant more"):
        ledger.grant("ranking", "2026", 0.01, AUTHORITY)


def test_a_grant_is_the_authoritys(tmp_path: Path) -> None:
    """Neither the operator, nor another key, nor a signature over other words."""
    with shared(tmp_path / "ledger") as ledger:
        with pytest.raises(OutOfRange, match="use that one's key file"):
            ledger.grant("ranking", "2026", 1.0, SigningKey.fresh())
        ledger_id = ledger.scope.ledger_id
        good = AUTHORITY.sign(grant_message(ledger_id, 1, "ranking", "2026", 1.0))
        for signature, at in (
            (operator_key().sign(grant_message(ledger_id, 1, "ranking", "2026", 1.0)), 1.0),
            (good, 1.5),
            (AUTHORITY.sign(grant_message(ledger_id, 2, "ranking", "2026", 1.0)), 1.0),
            (AUTHORITY.sign(grant_message("0" * 32, 1, "ranking", "2026", 1.0)), 1.0),
            ("", 1.0),
            ("zz" * 64, 1.0),
            (good.upper(), 1.0),
        ):
            with pytest.raises(ChargeMismatch, match="not signed by the ledger's authority"):
                ledger.append(
                    lambda sequence, time, s=signature, e=at: Granted(sequence, time, "ranking", "2026", e, s)
                )
        ledger.append(lambda sequence, time: Granted(sequence, time, "ranking", "2026", 1.0, good))


def test_a_ledger_without_authority_knows_no_grants(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        for call in (lambda: ledger.grant("a", "b", 1.0, AUTHORITY), lambda: ledger.recover(AUTHORITY, "x")):
            with pytest.raises(OutOfRange, match="no authority"):
                call()


def test_lifetime_spend_is_shown_beside_the_filter(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger") as ledger:
        ledger.grant("ranking", "2026", 1.5, AUTHORITY)
        account = opened(ledger, Planned(SAMPLED, 100))
        charged(account, 0)
        (line, _) = budget_lines(ledger.book)
        assert line.spent.epsilon == epsilon([(SAMPLED, 1)], DELTA)
        assert line.held.epsilon == epsilon([(SAMPLED, 100)], DELTA)
        assert line.spent.filter_epsilon is not None
        assert line.spent.filter_epsilon >= line.spent.epsilon
        assert line.held.cost is not None
        assert line.capacity is not None
        assert 0 < line.held.cost <= line.capacity


# --- older copies ---------------------------------------------------------------------------------------------------


def set_back(path: Path, steps: int = 3) -> tuple[Path, list[int]]:
    """A ledger whose run made ``steps`` charges after the copy beside it was taken."""
    copy = path.with_name("copy")
    with shared(path) as ledger:
        ledger.grant("ranking", "2026", 1.5, AUTHORITY)
        first = ledger.open_run("first", "ranking", "2026", (Planned(SAMPLED, 50),), DIGEST)
        charged(first, 0)
        ledger._store._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, copy)
        second = ledger.open_run("second", "ranking", "2026", (Planned(METRIC, 7),), DIGEST)
        for step in range(steps):
            charged(second, step)
    shutil.copy(copy, path)
    return path, list(range(steps))


def test_an_older_copy_refuses_every_spend(tmp_path: Path) -> None:
    path, _ = set_back(tmp_path / "ledger")
    with Ledger.open(path) as ledger:
        assert ledger.restored
        account = ledger.run("first")
        for call in (
            lambda: account.reserve(1, 0),
            lambda: opened(ledger, Planned(METRIC, 1)),
            lambda: account.close(Rule.COMPLETED, "x"),
            ledger.require_anchor,
        ):
            with pytest.raises(LedgerRestored, match="older copy"):
                call()
        assert account.spent_events() == ((SAMPLED, 1),)  # it can be read


def test_a_recovery_charges_what_was_planned_also_of_a_run_the_copy_never_knew(tmp_path: Path) -> None:
    path, _ = set_back(tmp_path / "ledger")
    with Ledger.open(path) as ledger:
        with pytest.raises(OutOfRange):
            ledger.recover(SigningKey.fresh(), "x")
        ledger.recover(AUTHORITY, "the disk was replaced")
        assert isinstance(ledger.entries()[-1], Recovered)
        assert ledger.book.spent() == ledger.book.held() == (Planned(SAMPLED, 50), Planned(METRIC, 7))
        assert ledger.run("first").closed
        assert ledger.run("second").closed
        charged(opened(ledger, Planned(METRIC, 1)), 0)
        with pytest.raises(LedgerError, match="nothing to recover"):
            ledger.recover(AUTHORITY, "again")
    with Ledger.open(path) as ledger:
        assert not ledger.restored


def test_a_recovery_needs_the_authoritys_signature(tmp_path: Path) -> None:
    path, _ = set_back(tmp_path / "ledger")
    with Ledger.open(path) as ledger:
        message = recovery_message(ledger.scope.ledger_id, len(ledger.entries()), "x")
        for signature in (operator_key().sign(message), "", AUTHORITY.sign(message + b" ")):
            with pytest.raises(ChargeMismatch, match="not signed"):
                ledger.append(lambda sequence, time, s=signature: Recovered(sequence, time, "x", s), spends=False)


def test_a_copy_that_lost_a_commit_of_a_matrix_step_is_refused(tmp_path: Path) -> None:
    """Otherwise the step could be released a second time, at no cost."""
    path = tmp_path / "ledger"
    with shared(path, GateKind.ZCDP, authority=None) as ledger:
        account = opened(ledger, Planned(matrix(), 1))
        charge = charged(account, 0, commit=False)
        ledger._store._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy = Path(shutil.copy(path, tmp_path / "copy"))
        account.commit(charge, DIGEST)
    with Ledger.open(copy) as ledger:
        assert ledger.restored


def test_a_copy_from_before_a_run_gave_back_its_rest_is_refused(tmp_path: Path) -> None:
    """Otherwise the run could go on in it, and a later copy, in which it is closed, would not know."""
    path = tmp_path / "ledger"
    with shared(path, authority=None) as ledger:
        account = opened(ledger, Planned(SAMPLED, 50))
        ledger._store._cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        copy = Path(shutil.copy(path, tmp_path / "copy"))
        account.close(Rule.COMPLETED, "never begun")
    with Ledger.open(copy) as ledger:
        assert ledger.restored


def test_two_copies_that_went_their_own_ways(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with shared(path, authority=None) as ledger:
        account = ledger.open_run("run", "a", "b", (Planned(SAMPLED, 50),), DIGEST)
        charged(account, 0)
    copy = Path(shutil.copy(path, tmp_path / "copy"))
    with Ledger.open(path) as one, Ledger.open(copy) as other:  # both whole so far
        charged(one.run("run"), 1)
        with pytest.raises(LedgerRestored):
            charged(other.run("run"), 1)


def test_a_ledger_of_another_machine_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        charged(opened(ledger, Planned(SAMPLED, 50)), 0)
    monkeypatch.setenv("FEDLEARN_STATE", str(tmp_path / "elsewhere"))
    with Ledger.open(tmp_path / "ledger") as ledger:
        assert len(ledger.entries()) == 5
        with pytest.raises(LedgerError, match="not on this machine"):
            opened(ledger, Planned(SAMPLED, 1))
    operator_key()  # a key of its own does not help
    with Ledger.open(tmp_path / "ledger") as ledger, pytest.raises(LedgerError, match="not on this machine"):
        opened(ledger, Planned(SAMPLED, 1))


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_a_checkpoint_finds_what_was_cut_off(tmp_path: Path) -> None:
    path, _ = set_back(tmp_path / "ledger", steps=0)
    with Ledger.open(path) as ledger:
        early = ledger.checkpoint()
        charged(ledger.run("first"), 1)
        late = LedgerCheckpoint.from_json(ledger.checkpoint().to_json())
        ledger.require(early)
        ledger.require(late)
    shutil.copy(tmp_path / "copy", path)
    with Ledger.open(path) as ledger:
        ledger.require(early)
        with pytest.raises(LedgerRestored):
            ledger.require(late)
        for forged in (
            replace(late, length=early.length),
            replace(late, hash=early.hash),
            replace(early, time=0.0),
            replace(early, signature=late.signature),
        ):
            with pytest.raises(LedgerDamaged, match="signature"):
                ledger.require(forged)
        with pytest.raises(LedgerDamaged, match="is of ledger"):
            ledger.require(replace(early, ledger_id="0" * 32))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format":"fedlearn-ledger-checkpoint","version":1}', "[" * 99999])
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(LedgerDamaged, match="export it again"):
        LedgerCheckpoint.from_json(text)


# --- anchors --------------------------------------------------------------------------------------------------------


def test_a_torn_write_of_the_mark_leaves_the_one_before(tmp_path: Path) -> None:
    anchor = AnchorFile("a" * 32, tmp_path)
    assert anchor.mark() is None
    for length in range(1, 6):
        anchor.raise_to(Mark(length, f"{length:064x}"), lambda mark: True)
        assert anchor.mark() == Mark(length, f"{length:064x}")
    anchor.raise_to(Mark(2, "2" * 64), lambda mark: True)
    assert anchor.mark() == Mark(5, f"{5:064x}")
    path = tmp_path / "anchors" / ("a" * 32)
    whole = path.read_bytes()
    seen = set()
    for place in [at for at, byte in enumerate(whole) if byte]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = anchor.mark()
        assert found is not None
        seen.add(found.length)
    assert seen == {4, 5}
    path.write_bytes(b"\x01" * len(whole))
    with pytest.raises(PrivacyError, match="damaged"):
        anchor.mark()


def test_a_mark_that_the_ledger_lacks_is_never_replaced(tmp_path: Path) -> None:
    anchor = AnchorFile("a" * 32, tmp_path)
    anchor.raise_to(Mark(3, "3" * 64), lambda mark: True)
    with pytest.raises(LedgerRestored):
        anchor.raise_to(Mark(9, "9" * 64), lambda mark: False)
    assert anchor.mark() == Mark(3, "3" * 64)
    anchor.reset(Mark(2, "2" * 64))
    assert anchor.mark() == Mark(2, "2" * 64)


def test_noted_runs(tmp_path: Path) -> None:
    with shared(tmp_path / "ledger", authority=None) as ledger:
        for name in ("one", "two"):
            ledger.open_run(name, "a", "b", (Planned(SAMPLED, 3), Planned(METRIC, 1)), DIGEST)
        runs = [state.opened for state in ledger.book.runs.values()]
    anchor = AnchorFile("b" * 32, tmp_path)
    for run in [*runs, *runs]:
        anchor.keep(run)
    path = tmp_path / "anchors" / ("b" * 32 + ".runs")
    whole = path.read_bytes()
    again = AnchorFile("b" * 32, tmp_path)
    assert again.runs() == tuple(runs)
    path.write_bytes(whole[:-5])  # a power cut in the second: it was never charged
    assert again.runs() == (runs[0],)
    again.keep(runs[1])
    assert path.read_bytes() == whole
    path.write_bytes(whole.replace(b'"count":3', b'"count":1'))
    with pytest.raises(PrivacyError, match="cannot be used"):
        again.runs()
