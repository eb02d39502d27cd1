"""From the measured cost of a node-round to populations that fit on no machine: arithmetic, and its assumptions."""

from __future__ import annotations

from dataclasses import dataclass

from fedlearn.errors import OutOfRange

DAY_S = 86_400.0
BUSY = 0.5
"""How much of a core's time is planned for: the rest absorbs what comes in bursts."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a forecast takes for given; every one of them is a choice or a measurement, not a fact.

    Args:
        phones: of the population, >= 1.
        phones_a_node: that one gateway speaks for, >= 1.
        rounds_a_day: of all trainings together, > 0.
        cohort: phones that take part in a round, >= 1.
        model_bytes: f32 weights that a phone fetches; what it sends is as large.
        answer_bytes: what a node sends, with privacy on: 8 bytes a weight.
        node_round_s: SuperLink's CPU-seconds a node-round, measured, > 0.
        idle_s: SuperLink's CPU-seconds a second that a node without work costs, measured, >= 0.

    Raises:
        OutOfRange: a value outside its range.
    """

    phones: int
    phones_a_node: int
    rounds_a_day: float
    cohort: int
    model_bytes: int
    answer_bytes: int
    node_round_s: float
    idle_s: float

    def __post_init__(self) -> None:
        if min(self.phones, self.phones_a_node, self.cohort, self.rounds_a_day, self.node_round_s) <= 0:
            raise OutOfRange("forecast: phones, phones_a_node, cohort, rounds_a_day and node_round_s must be > 0.")
        if min(self.model_bytes, self.answer_bytes, self.idle_s) < 0 or self.cohort > self.phones:
            raise OutOfRange("forecast: bytes and idle_s must be >= 0, and the cohort at most the population.")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What follows.

    Args:
        nodes: gateways.
        round_s: least seconds a round, SuperLink being one core.
        rounds_a_day: the most that one SuperLink can do.
        cores: of SuperLink that the rounds and the idle nodes need, on average over the day, at half load; above 1 one
            SuperLink does not do.
        superlink_bytes: bytes a day through SuperLink, both ways.
        phone_rounds_a_day: rounds that one phone is part of, on average.
        phone_bytes: bytes a day of one phone, both ways.
        gateway_bytes: bytes a day between one gateway and its phones.
    """

    nodes: int
    round_s: float
    rounds_a_day: float
    cores: float
    superlink_bytes: float
    phone_rounds_a_day: float
    phone_bytes: float
    gateway_bytes: float


def forecast(given: Assumptions) -> Forecast:
    """Return what follows from the assumptions."""
    nodes = -(-given.phones // given.phones_a_node)
    round_s = nodes * given.node_round_s
    working = given.rounds_a_day * round_s / DAY_S + nodes * given.idle_s
    free = max(0.0, 1.0 - nodes * given.idle_s)
    part = given.rounds_a_day * given.cohort / given.phones
    phone_bytes = part * 2 * given.model_bytes
    return Forecast(
        nodes=nodes,
        round_s=round_s,
        rounds_a_day=free * DAY_S / round_s,
        cores=working / BUSY,
        superlink_bytes=given.rounds_a_day * nodes * (given.model_bytes + given.answer_bytes),
        phone_rounds_a_day=part,
        phone_bytes=phone_bytes,
        gateway_bytes=phone_bytes * min(given.phones, given.phones_a_node),
    )
