"""A ledger on a disk that forgets what was not synced, beside what was really released."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fedlearn.errors import BudgetExceeded, ChargeMismatch, InvalidSpend, LedgerRestored
from fedlearn.ledger.account import RunAccount
from fedlearn.ledger.anchor import Mark, restored
from fedlearn.ledger.entries import GENESIS, Charged, Opened, Planned, Recovered, Row, Rule, RunOpened, to_row
from fedlearn.ledger.gates import cost, filter_of
from fedlearn.ledger.ledger import Ledger
from fedlearn.ledger.scope import GateKind, Scope, new_scope
from fedlearn.ledger.signing import SigningKey
from fedlearn.ledger.store import after
from fedlearn.privacy.events import MatrixGaussian, MetricRelease, NeighboringRelation, PoissonGaussian
from fedlearn.privacy.factorization import INDEPENDENT

OPERATOR, AUTHORITY = SigningKey.fresh(), SigningKey.fresh()
DIGEST = hashlib.sha256(b"x").hexdigest()
QUOTAS = (("ranking", "2026"), ("ranking", "2027"), ("typing", "2026"))
Z = 24.0
CAP = 1.6
DELTA = 1e-6
MOMENTS = ("before", "written", "after")


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Disk:
    """What survives a process: synced rows, the mark, the noted runs. ``step`` is called at each durable operation."""

    rows: list[Row] = field(default_factory=list)
    mark: Mark | None = None
    runs: list[RunOpened] = field(default_factory=list)
    crash_in: int | None = None
    keep_unsynced: bool = False

    def step(self) -> None:
        """Crash if it is time."""
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash_in = None
                raise Crash

    @contextlib.contextmanager
    def durable(self, write: Callable[[], None]) -> Iterator[None]:
        """Write with a chance to crash before it, between write and sync, and after the sync."""
        self.step()
        try:
            self.step()
        except Crash:
            if self.keep_unsynced:  # the power held just long enough
                write()
            raise
        write()
        self.step()
        yield


class DiskStore:
    """A ``RowStore`` on a ``Disk``."""

    name = "disk"

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def rows(self, start: int = 0) -> list[Row]:
        return self.disk.rows[start:]

    def begin(self, known: int, head: str) -> list[Row]:
        return after(self.name, self.disk.rows[known - 1 :], head)

    def append(self, row: Row) -> None:
        with self.disk.durable(lambda: self.disk.rows.append(row)):
            pass

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


class DiskAnchor:
    """An ``Anchor`` on a ``Disk``."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def mark(self) -> Mark | None:
        return self.disk.mark

    def raise_to(self, mark: Mark, contains: Callable[[Mark], bool]) -> None:
        if self.disk.mark is not None and not contains(self.disk.mark):
            raise restored("disk", self.disk.mark)
        if self.disk.mark is None or mark.length > self.disk.mark.length:
            self.reset(mark)

    def reset(self, mark: Mark) -> None:
        with self.disk.durable(lambda: setattr(self.disk, "mark", mark)):
            pass

    def keep(self, run: RunOpened) -> None:
        if run not in self.disk.runs:
            with self.disk.durable(lambda: self.disk.runs.append(run)):
                pass

    def runs(self) -> tuple[RunOpened, ...]:
        return tuple(self.disk.runs)


def scope_of(gate: GateKind) -> Scope:
    """Return the scope of a machine: a filter has an authority, the plan of one run has none."""
    relation = NeighboringRelation.ZERO_OUT if gate is GateKind.ZCDP else NeighboringRelation.ADD_OR_REMOVE
    authority = None if gate is GateKind.PLAN else AUTHORITY.public
    return new_scope(
        "phones",
        CAP,
        DELTA,
        OPERATOR.public,
        neighboring_relation=relation,
        gate=gate,
        authority_key=authority,
    )


SCOPES = {gate: scope_of(gate) for gate in GateKind}


def plan_of(gate: GateKind, size: int) -> tuple[Planned, ...]:
    """Return a plan of two parts; every release in it costs rho = 1 / (2 Z^2), by hand."""
    if gate is GateKind.ZCDP:
        matrix = MatrixGaussian(INDEPENDENT, size, 1, size, Z)
        return Planned(matrix, 1), Planned(MetricRelease(Z), 1 + size // 2)
    plain = PoissonGaussian(Z, 1.0)  # without sampling, so that the cost is known in closed form
    return Planned(plain, size), Planned(MetricRelease(Z), 1 + size // 2)


@dataclass
class Truth:
    """What a run really drew noise for."""

    quota: tuple[str, str]
    matrix: bool
    drawn: Counter[tuple[int, int]] = field(default_factory=Counter)
    published: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Charge -> (part, step)."""

    @property
    def releases(self) -> int:
        """Draws that count; a matrix step that was drawn again before it was published counts once."""
        steps = {step for part, step in self.drawn if part == 0 and self.matrix}
        length = max(steps) + 1 if steps else 0
        return length + sum(n for (part, _), n in self.drawn.items() if part != 0 or not self.matrix)


class LedgerMachine(RuleBasedStateMachine):
    """Calls in any order over several runs, with crashes inside them and older copies put in the ledger's place."""

    gate = GateKind.ZCDP

    def __init__(self) -> None:
        super().__init__()
        self.scope = SCOPES[self.gate]
        first = to_row(Opened(0, 0.0, self.scope), GENESIS, OPERATOR.sign)
        self.disk = Disk([first])
        self.truth: dict[str, Truth] = {}
        self.copies: list[list[Row]] = []
        self.granted: dict[tuple[str, str], float] = {}
        self.spent = 0.0
        self.reopen()

    # --- a process ----------------------------------------------------------------------------------------------

    def reopen(self) -> None:
        """Begin a new process: it reads the disk and commits what was published, as the server does."""
        self.disk.crash_in = None
        self.ledger = Ledger(
            DiskStore(self.disk), lambda _: DiskAnchor(self.disk), lambda _: OPERATOR, lambda: float(len(self.truth))
        )
        self.settle()

    def settle(self) -> None:
        for name, truth in self.truth.items():
            state = self.ledger.book.runs.get(name)
            if state is None or state.closed is not None:
                continue
            for charge in RunAccount(self.ledger, state).uncommitted():
                if charge.sequence in truth.published and not self.ledger.restored:
                    with contextlib.suppress(ChargeMismatch):
                        self.ledger.run(name).commit(charge, DIGEST)

    @contextlib.contextmanager
    def process(self) -> Iterator[None]:
        """Run a call that may be refused, or in which the process may end."""
        try:
            yield
        except (ChargeMismatch, BudgetExceeded, InvalidSpend, LedgerRestored):
            pass
        except Crash:
            self.reopen()
        self.disk.crash_in = None

    def account(self, data: st.DataObject) -> RunAccount:
        return self.ledger.run(data.draw(st.sampled_from(sorted(self.ledger.book.runs)), label="run"))

    # --- what may happen ----------------------------------------------------------------------------------------

    @initialize(sizes=st.lists(st.integers(1, 12), max_size=3))
    def begin(self, sizes: list[int]) -> None:
        if self.scope.authority_key is not None:
            for quota in QUOTAS[:2]:
                self.ledger.grant(*quota, 1.2, AUTHORITY)
        for number, size in enumerate(sizes):
            self.open_run(QUOTAS[number % 2], size)

    @rule(moment=st.integers(0, 8), keep=st.booleans())
    def a_crash_is_near(self, moment: int, keep: bool) -> None:
        self.disk.crash_in, self.disk.keep_unsynced = moment, keep

    @rule(quota=st.sampled_from(QUOTAS), epsilon=st.sampled_from([0.3, 0.8, 1.2, 1.6]))
    def grant(self, quota: tuple[str, str], epsilon: float) -> None:
        if self.scope.authority_key is None:
            return
        with self.process():
            self.ledger.grant(*quota, epsilon, AUTHORITY)

    @rule(quota=st.sampled_from(QUOTAS), size=st.integers(1, 12))
    def open_run(self, quota: tuple[str, str], size: int) -> None:
        name = f"run-{len(self.truth)}"
        self.truth[name] = Truth(quota, matrix=self.gate is GateKind.ZCDP)
        with self.process():
            self.ledger.open_run(name, *quota, plan_of(self.gate, size), DIGEST)

    @precondition(lambda self: self.ledger.book.runs)
    @rule(
        data=st.data(),
        part=st.integers(0, 1),
        ends=st.lists(st.sampled_from(["lost", "published", "committed", "committed"]), min_size=1, max_size=5),
    )
    def rounds(self, data: st.DataObject, part: int, ends: list[str]) -> None:
        """Do rounds of a run as the server does them, each at the first step that is not committed."""
        name = self.account(data).run
        with self.process():
            for end in ends:
                self.round(name, part, end)

    def round(self, name: str, part: int, end: str) -> None:
        account, truth = self.ledger.run(name), self.truth[name]
        held = account.open_reservation()
        step = len(self.ledger.book.runs[name].parts[part].committed)
        if held is not None:
            part, step = held.part, held.step
        reservation = account.reserve(step, account.next_attempt(step, part), part)
        charge = account.charge(reservation, DIGEST, DIGEST)
        truth.drawn[part, step] += 1
        if end == "lost":
            return
        assert (part, step) not in truth.published.values(), "a step was published twice"
        truth.published[charge.id] = part, step
        if end == "committed":
            account.commit(charge, DIGEST)
        else:
            self.reopen()  # the process ended between publication and commit

    @precondition(lambda self: self.ledger.book.runs)
    @rule(data=st.data(), step=st.integers(-1, 13), attempt=st.integers(0, 2), part=st.integers(-1, 2))
    def reserve(self, data: st.DataObject, step: int, attempt: int, part: int) -> None:
        account = self.account(data)
        with self.process():
            account.reserve(step, attempt, part)

    @precondition(lambda self: self.ledger.book.runs)
    @rule(data=st.data())
    def void(self, data: st.DataObject) -> None:
        account = self.account(data)
        held = account.open_reservation()
        with self.process():
            if held is not None:
                account.void(held, "no noise was drawn")

    @precondition(lambda self: self.ledger.book.runs)
    @rule(data=st.data(), why=st.sampled_from(list(Rule)))
    def close(self, data: st.DataObject, why: Rule) -> None:
        account = self.account(data)
        with self.process():
            account.close(why, "over")

    @rule()
    def crash(self) -> None:
        self.reopen()

    @rule()
    def copy(self) -> None:
        self.copies.append(list(self.disk.rows))

    @precondition(lambda self: self.copies)
    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        self.disk.rows = list(self.copies[data.draw(st.integers(0, len(self.copies) - 1), label="copy")])
        # a plan that was closed by judgement without a charge is forgotten: nothing was released under it
        self.spent = float(sum(truth.releases for truth in self.truth.values()))
        self.reopen()

    @rule()
    def recover(self) -> None:
        if not self.ledger.restored or self.scope.authority_key is None:
            return
        with self.process():
            self.ledger.recover(AUTHORITY, "the disk was replaced")
            assert not self.ledger.restored

    # --- what must hold -----------------------------------------------------------------------------------------

    @invariant()
    def no_more_was_released_than_the_cap_allows(self) -> None:
        everything = sum(truth.releases for truth in self.truth.values())
        assert everything <= most_releases(self.gate, CAP)
        for quota in QUOTAS:
            grant = self.ledger.book.grants.get(quota)
            if grant is not None and not self.ledger.restored:
                under = sum(truth.releases for truth in self.truth.values() if truth.quota == quota)
                assert under <= most_releases(self.gate, grant.epsilon)

    @invariant()
    def what_was_released_is_spent(self) -> None:
        """Unless the ledger says of itself that it lacks entries."""
        if self.ledger.restored:
            return
        for name, truth in self.truth.items():
            if truth.releases:
                assert releases_of(self.ledger.book.runs[name].spent) >= truth.releases

    @invariant()
    def spend_never_decreases(self) -> None:
        if self.ledger.restored:
            return
        now = float(releases_of(self.ledger.book.spent()))
        assert now >= self.spent
        self.spent = now
        if self.gate is not GateKind.PLAN:
            assert self.ledger.book.held_cost() <= filter_of(self.scope, CAP).capacity
            spent = cost(self.scope, self.ledger.book.spent())
            assert spent <= self.ledger.book.held_cost() * (1 + 1e-12)  # added up in another order

    @invariant()
    def a_charge_pays_once(self) -> None:
        charges = {entry.sequence for entry in self.ledger.entries() if isinstance(entry, Charged)}
        if not any(isinstance(entry, Recovered) for entry in self.ledger.entries()) and not self.ledger.restored:
            assert {charge for truth in self.truth.values() for charge in truth.published} <= charges


def releases_of(parts: tuple[Planned, ...]) -> int:
    """Return how many releases the parts stand for; all have the same noise."""
    return sum(part.count * getattr(part.event, "steps", 1) for part in parts)


def most_releases(gate: GateKind, epsilon: float) -> int:
    """Return how many releases at rho = 1 / (2 Z^2) an epsilon pays for, from the filter's capacity by hand."""
    if gate is GateKind.PLAN:
        return releases_of(plan_of(gate, 12))
    chosen = filter_of(SCOPES[gate], epsilon)
    per_order = 1.0 if gate is GateKind.ZCDP else SCOPES[gate].order
    return int(chosen.capacity / per_order * 2 * Z * Z)


def machine(gate: GateKind) -> type[LedgerMachine]:
    """Return the machine of one gate."""
    return type(f"LedgerMachine_{gate}", (LedgerMachine,), {"gate": gate})
