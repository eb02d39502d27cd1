"""The guarantee: its record, and the words for it, written once so that no two outputs say it differently."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SIMULATION_STAMP = "simulation, not a deployment"
NOT_TO_PUBLISH = "compares methods; not a guarantee to publish"
NO_GUARANTEE = "NO PRIVACY GUARANTEE"
FEW_DEVICES = 1_000
"""Below this population a guarantee is about methods, not about people."""


class PrivacyMode(StrEnum):
    """The mechanism between the sum and the model."""

    NONE = "none"
    GAUSSIAN = "gaussian"
    BLT = "blt"
    BANDED = "banded"
    TREE = "tree"


class Population(StrEnum):
    """Whose devices took part: files held by the engineer, or phones."""

    SIMULATED = "simulated"
    ENROLLED = "enrolled"


@dataclass(frozen=True, slots=True)
class Measured:
    """A figure taken from private devices.

    Args:
        value: the figure.
        protected: false: without noise.
    """

    value: float
    protected: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How devices came into a round, as executed.

    Args:
        method: e.g. ``Poisson, secret draws per device and round``.
        planned_rate: probability of inclusion that the accounting uses, 0 < q <= 1; null without accounting.
        realised_frequency: share of (device, round) pairs that took part; null if not measured.
    """

    method: str
    planned_rate: float | None
    realised_frequency: Measured | None


@dataclass(frozen=True, slots=True)
class BoundedParticipation:
    """How often a device may take part, where that and not sampling is what the guarantee rests on.

    Args:
        min_separation: steps from one participation of a device to its next, at least.
        max_participations: of one device in the whole run.
        sensitivity: L2 sensitivity of the mechanism for updates of norm 1 under these bounds.
    """

    min_separation: int
    max_participations: int
    sensitivity: float


@dataclass(frozen=True, slots=True)
class SpentEvent:
    """What was spent, as the ledger stores it.

    Args:
        event: canonical JSON of the event.
        count: how often.
    """

    event: str
    count: int


@dataclass(frozen=True, slots=True)
class ExampleLevel:
    """The example-level layer on the phone, apart from the device-level guarantee.

    Args:
        epsilon: of one example against whoever sees its phone's updates, at ``delta``.
        delta: of that figure.
        words: what it covers and what it does not.
    """

    epsilon: float
    delta: float
    words: str


@dataclass(frozen=True, slots=True)
class Charges:
    """What the ledger holds for this run.

    Args:
        total: charges written.
        committed: charges whose model was published.
        wasted: charges that paid for nothing (a crash after the charge); they count in epsilon.
    """

    total: int
    committed: int
    wasted: int


@dataclass(frozen=True, slots=True)
class AllPublished:
    """What holds if every private model of this study is published, not one.

    Args:
        models: models trained on these devices in this study (seeds x folds x variants).
        epsilon: their composed epsilon at the summary's delta; null where there is no guarantee.
    """

    models: int
    epsilon: float | None


@dataclass(frozen=True, slots=True)
class Assurances:
    """The guarantee by who vouches for it.

    Args:
        proven: recomputed from the record by anyone who holds it.
        enforced: enforced by the device, or by the code that stands in for it.
        word: the operator's word; nothing here checks it.
    """

    proven: tuple[str, ...]
    enforced: tuple[str, ...]
    word: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PrivacyRecord:
    """The privacy of the headline model, and of the study it belongs to.

    Args:
        mode: ``none``, or the mechanism.
        population: ``simulated`` or ``enrolled``.
        devices: devices in the population (public).
        epsilon: of one model, at ``delta``; null for ``none``.
        delta: null for ``none``.
        unit: whose data one unit is, e.g. ``device``.
        neighboring_relation: e.g. ``add-or-remove``; null for ``none``.
        mechanism: e.g. ``Gaussian, Poisson-subsampled``; null for ``none``.
        noise_multiplier: std of the noise over the sensitivity; null for ``none``.
        l2_clip_norm: L2 bound of one device's update, in model units; null where nothing is clipped.
        sampling: how devices came into a round.
        accountant: e.g. ``dp-accounting 0.6.0, PLD, h=1e-4``; null for ``none``.
        conversion: how epsilon follows from it, e.g. ``exact hockey-stick of the PLD``; null for ``none``.
        trusted: parties that see more than the released model, one a line.
        unprotected: quantities in this run directory that no epsilon covers, one a line.
        stamp: ``simulation, not a deployment``, or null for an enrolled population.
        caveat: ``compares methods; not a guarantee to publish``, or null.
        guarantee: the guarantee as one sentence.
        assurances: the guarantee by who vouches for it.
        if_all_published: what holds if all models of this study are published; null where one model was trained.
        charges: what the ledger holds; null without a ledger.
        participation: the bounds the guarantee rests on; null for Poisson sampling.
        spend: everything the ledgers of the study's private models hold; empty without a ledger.
        cross_check: a second accountant that can check the first, or ``no cross-check``; null for ``none``.
        example_level: the example-level layer; null without one.
    """

    mode: PrivacyMode
    population: Population
    devices: int
    epsilon: float | None
    delta: float | None
    unit: str
    neighboring_relation: str | None
    mechanism: str | None
    noise_multiplier: float | None
    l2_clip_norm: float | None
    sampling: Sampling
    accountant: str | None
    conversion: str | None
    trusted: tuple[str, ...]
    unprotected: tuple[str, ...]
    stamp: str | None
    caveat: str | None
    guarantee: str
    assurances: Assurances
    if_all_published: AllPublished | None
    charges: Charges | None
    participation: BoundedParticipation | None = None
    spend: tuple[SpentEvent, ...] = ()
    cross_check: str | None = None
    example_level: ExampleLevel | None = None


def caveat_for(devices: int, delta: float | None) -> str | None:
    """Return the caveat of a guarantee, or None where it stands without one.

    A population below 1,000 devices, or a delta above 1/(10 x devices), compares methods: delta is then no longer small
    against the chance to be the one device that is revealed.

    Args:
        devices: devices in the population.
        delta: the guarantee's delta, or None without a guarantee.
    """
    return NOT_TO_PUBLISH if devices < FEW_DEVICES or (delta is not None and delta > 1 / (10 * devices)) else None


_LARGEST_EXPONENT: Final = 690.0
"""Well below log(1.8e308), so that the factor and its rounding stay finite."""

_NEIGHBORS: Final = {
    "add-or-remove": "whether one {unit} takes part in the whole training or not",
    "zero-out": "whether one {unit} sends its updates or zeros in their place, in every step it takes part in,",
    "replace-one": "whether one {unit} or another in its place takes part in the whole training",
}


def guarantee_sentence(
    epsilon: float | None, delta: float | None, unit: str = "device", neighboring_relation: str | None = "add-or-remove"
) -> str:
    """Say the guarantee of one released model in one sentence; without an epsilon, say that there is none."""
    if epsilon is None or delta is None:
        return (
            f"{NO_GUARANTEE}: this model was trained with privacy=none; no noise stands between it and any one "
            f"{unit}'s data, and nothing bounds what it reveals."
        )
    return (
        f"Epsilon {figure(epsilon)} at delta {figure(delta)} per {unit} ({neighboring_relation}): "
        f"{_NEIGHBORS.get(neighboring_relation or '', _NEIGHBORS['add-or-remove']).format(unit=unit)} "
        "changes the probability of any outcome of the released model by at "
        f"most a factor of {_factor(epsilon)}, plus {figure(delta)}."
    )


def _factor(epsilon: float) -> str:
    """Print exp(epsilon), rounded up; as a power where no float holds it."""
    return figure(math.exp(epsilon)) if epsilon <= _LARGEST_EXPONENT else f"e^{figure(epsilon)}"


def figure(value: float) -> str:
    """Print an epsilon or a delta with three digits, rounded up, never down: ``2.99``, ``25.8``, ``1e-4``."""
    if value <= 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = math.floor(math.log10(value))
    # The slack keeps a float's last bit from turning 3 into 3.01.
    mantissa = math.ceil(value * 10.0 ** (2 - exponent) - 1e-6) / 100
    if mantissa >= 10:
        mantissa, exponent = mantissa / 10, exponent + 1
    if -2 <= exponent <= 2:
        return f"{mantissa * 10.0**exponent:.{2 - exponent}f}"
    return f"{mantissa:g}e{exponent}"


def default_trusted(mode: PrivacyMode, *, relayed: bool = False) -> tuple[str, ...]:
    """Name who sees more than the released model when nodes clip and add and one server adds the noise.

    Args:
        mode: the mechanism.
        relayed: a SuperLink carries tasks and sums between nodes and server.
    """
    private = mode is not PrivacyMode.NONE
    node = "The node that hosts a cohort sees single updates, clips them and adds them up."
    server = "The server sees the sum of a round" + (" before its noise." if private else ".")
    if not relayed:
        return (node, server)
    holds = (
        " It holds the key that draws a round's cohort, where one is drawn: from all phones, those of other nodes too."
    )
    keys = " before their noise, and that key," if private else ""
    carrier = (
        "SuperLink, the proxy in front of it, and whoever reads their memory, their disks or a copy of SuperLink's "
        f"database, sees the sums of parts{keys} also after the run: what was delivered stays in the database's files "
        "until they are overwritten."
    )
    return (node + (holds if private else ""), server, carrier)


def default_unprotected() -> tuple[str, ...]:
    """Name the quantities a simulated run writes down without noise."""
    return (
        "Per round: loss, cohort size, clipped fraction, signal-to-noise, rejections, evaluation, seconds.",
        "Every metric, interval and lift of the result table: computed on the devices' own choices.",
        "The realised inclusion frequency, the wall times, and the times in the ledger.",
        "The controls: models trained on the same devices without noise, in memory and below controls/.",
        "Whatever a tracker was sent: the same figures per round.",
        "A person with two devices, the sharers of one, and the people written about: the unit is one device.",
    )


def default_assurances(
    mode: PrivacyMode,
    population: Population,
    charges: Charges | None,
    l2_clip_norm: float | None,
    participation: BoundedParticipation | None = None,
    *,
    adaptive: bool = False,
    relayed: bool = False,
    enough: float = 1.0,
) -> Assurances:
    """Sort the guarantee by who vouches for it, for runtimes with central noise.

    Args:
        mode: the mechanism; ``none`` proves and enforces nothing about privacy.
        population: whether a phone or the simulator did the phone's part.
        charges: what the ledger holds; None claims nothing about it.
        l2_clip_norm: L2 bound of one device's update, or None where nothing is clipped.
        participation: the bounds the guarantee rests on, or None where it rests on Poisson sampling.
        adaptive: ``l2_clip_norm`` is the first round's only; later ones follow from what was released.
        relayed: a SuperLink carries tasks and sums between nodes and server.
        enough: share of the parts whose answers closed a round, in (0, 1]; below 1, time decides which are in a sum.
    """
    digests = "Whoever holds config, data, catalogue and code can check them against the digests below."
    who = "The simulator, standing in for the phone," if population is Population.SIMULATED else "The phone"
    text = f"{who} drops every word that matches nothing in the public catalogue; raw text is in no message."
    then = " in the first round and later to the bound that follows from earlier releases" if adaptive else ""
    clip = (
        ()
        if l2_clip_norm is None
        else (f"{who} clips its whole update to L2 norm {l2_clip_norm:g}{then}, at weight one.",)
    )
    kept = "Updates and sums were not kept, and each device in the data is one unit."
    carried = (
        (
            "Nobody else ran a node, SuperLink or the proxy in front of it, or read their memory, their disks or a "
            "copy of SuperLink's database: parts' sums lie there without noise, and the keys that draw cohorts, also "
            "after the run, until the database's files are overwritten.",
        )
        if relayed
        else ()
    )
    if mode is PrivacyMode.NONE or charges is None:
        return Assurances((digests,), (*clip, text), (*carried, kept))
    early = (
        (
            f"runtime.enough={enough:g}: a round closed once that share of the parts had answered, so time decided "
            "which parts are in its sum, and a part takes the longer the more devices are drawn and the more they "
            "hold. That no device thereby kept a part in or out is not checked; with runtime.enough=1 only a deadline "
            "that passes could do so.",
        )
        if enough < 1.0
        else ()
    )
    rests = "the sampling rate"
    shown = "and were shown to nobody."
    if relayed:
        shown = (
            "and those of noise were shown to nobody. SuperLink, the proxy and every node hold the key that draws a "
            "round's cohort; none of them used it to learn who takes part."
        )
    drawn = (
        f"Each inclusion was its own secret draw; the keys of sampling and noise came from the operating system {shown}"
    )
    if participation is not None:
        b, k = participation.min_separation, participation.max_participations
        rests = f"the mechanism's coefficients, the participation bounds (one in {b} steps, {k} at most)"
        drawn = "The noise came from the operating system, and its state was shown to nobody."
        clip = (*clip, f"{who} takes part once in {b} steps and {k} times in all, at most; nothing rests on sampling.")
    return Assurances(
        proven=(
            f"Epsilon follows from {rests}, the noise multiplier and the {charges.total:,} charges of the "
            "ledger; anyone who holds it can recompute it with `fedlearn ledger verify`, which shares no code with us. "
            f"Charges that paid for nothing: {charges.wasted:,}, counted in epsilon.",
            digests,
        ),
        enforced=(*clip, text),
        word=(
            "The ledger is complete: its entries are chained and signed by the operator's key, but only a checkpoint "
            "kept elsewhere shows that no later entry is missing.",
            "The node clipped as it says, and the server added the noise it was charged for, after the charge.",
            "No node's failure depended on a device's data, nor how long its answer took: a part that fails, or comes "
            "when the round is closed, is missing from the sum with all its devices. The split into folds is taken as "
            "public.",
            *early,
            "What choosing the settings on these devices spent, if they were: it is not counted here.",
            drawn,
            *carried,
            kept,
        ),
    )
