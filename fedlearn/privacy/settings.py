"""What the engineer chooses about privacy, and what is refused before anything is calibrated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from fedlearn.errors import OutOfRange, UnknownSetting
from fedlearn.privacy.grid import grid_step
from fedlearn.privacy.shipped import MECHANISMS

GAUSSIAN: Final = "gaussian"
LEAST_NOISE: Final = 0.05
"""Noise over the sensitivity below which no figure means anything."""

_ROOM_SLACK: Final = 1e-9
"""Relative: a cohort of population / b may come out of a division a last bit too large. Feasibility, not privacy."""


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What the engineer chooses. Give exactly one of ``epsilon`` and ``noise_multiplier``.

    Args:
        delta: in (0, 1 / population).
        l2_clip_norm: bound on one device's whole update, finite, > 0.
        epsilon: target over the whole run, finite, > 0; the noise is calibrated to it.
        noise_multiplier: std of the noise over the clip norm, finite, > 0; epsilon follows from it. For a matrix
            mechanism it is the std of the i.i.d. Z, before the mechanism's sensitivity.
        mechanism: one of ``MECHANISMS``.
        min_separation: b >= 1: a device that took part in step x takes part again in step x + b at the earliest. None:
            Poisson sampling, which only ``gaussian`` has.
        max_participations: k in [1, ceil(rounds / b)] of one device; None: ceil(rounds / b), which b alone implies.
        participations_enforced: k is counted per credential, on the phone and at the gateway. Without such a count only
            k = ceil(rounds / b) is believed.
    """

    delta: float
    l2_clip_norm: float
    epsilon: float | None = None
    noise_multiplier: float | None = None
    mechanism: str = GAUSSIAN
    min_separation: int | None = None
    max_participations: int | None = None
    participations_enforced: bool = False


def check_sizes(population: int, rounds: int, cohort: float) -> None:
    """Refuse sizes that no plan can have.

    Raises:
        OutOfRange: one is outside its range; the message names it.
    """
    require_whole("population", population)
    require_whole("rounds", rounds)
    if not 0 < cohort <= population:
        raise OutOfRange(
            f"cohort.size={cohort}: must be in (0, {population}], the population; the sampling probability "
            f"{cohort / population:g} must be in (0, 1]."
        )


def check_settings(settings: PrivacySettings, population: int) -> None:
    """Refuse settings that contradict each other or are outside their range.

    Raises:
        OutOfRange: the message names the field and the fix.
        UnknownSetting: no such mechanism.
    """
    if settings.mechanism not in MECHANISMS:
        raise UnknownSetting(f"privacy.mechanism={settings.mechanism!r}: unknown; use one of {', '.join(MECHANISMS)}.")
    _check_noise(settings)
    if not 0 < settings.delta < 1 / population:
        raise OutOfRange(
            f"privacy.delta={settings.delta}: must be > 0 and below 1/population = {1 / population:g} (as large a "
            f"delta allows publishing one device's data outright); use e.g. {0.1 / population:.1g}."
        )
    grid_step(settings.l2_clip_norm)  # refuses a clip norm that is not finite and > 0
    if settings.min_separation is None:
        _check_without_separation(settings)


def check_room(population: int, rounds: int, cohort: float, min_separation: int, max_participations: int) -> None:
    """Refuse a cohort that the population cannot fill: any b steps in a row need b cohorts without a common device.

    Raises:
        OutOfRange: there are too few devices; the message names the nearest plans that have enough.
    """
    together = min(min_separation, rounds)
    if cohort * together > population * (1 + _ROOM_SLACK):
        fixes = [f"a population of {math.ceil(cohort * together)}"]
        fixes.insert(0, f"min_separation={widest_separation(population, cohort)}")
        if population >= together:
            fixes.insert(0, f"cohort.size={population // together}")
        raise OutOfRange(
            f"cohort.size={cohort:g}: {together} steps in a row need {together} cohorts without a common device (a "
            f"separation of {min_separation}), {cohort * together:g} devices of {population}. Nearest plans: "
            f"{', '.join(fixes)}."
        )
    if cohort * rounds > population * max_participations * (1 + _ROOM_SLACK):
        raise OutOfRange(
            f"cohort.size={cohort:g}: {rounds} rounds need {cohort * rounds:g} participations, but {population} "
            f"devices with max_participations={max_participations} have {population * max_participations}. Nearest: "
            f"cohort.size={population * max_participations / rounds:g}, "
            f"max_participations={math.ceil(cohort * rounds / population)}, "
            f"a population of {math.ceil(cohort * rounds / max_participations)}."
        )


def widest_separation(population: int, cohort: float) -> int:
    """Return the largest b for which b cohorts without a common device find room; the cohort is at most all."""
    return math.floor(population / cohort * (1 + _ROOM_SLACK))


def require_whole(name: str, value: object) -> None:
    """Refuse what is no integer of at least 1.

    Raises:
        OutOfRange: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OutOfRange(f"{name}={value!r}: must be an integer >= 1.")


def _check_noise(settings: PrivacySettings) -> None:
    for name, value in (("epsilon", settings.epsilon), ("noise_multiplier", settings.noise_multiplier)):
        if value is not None and not (math.isfinite(value) and value > 0):
            example = "3.0" if name == "epsilon" else "1.0"
            why = "; without noise no finite epsilon holds" if name == "noise_multiplier" and value == 0 else ""
            raise OutOfRange(f"privacy.{name}={value}: must be finite and > 0, e.g. {example}{why}.")
    if (settings.epsilon is None) == (settings.noise_multiplier is None):
        raise OutOfRange("privacy.epsilon, privacy.noise_multiplier: give exactly one of them; the other follows.")
    # Also for a matrix mechanism, whose sensitivity is at least 1.
    if settings.noise_multiplier is not None and settings.noise_multiplier < LEAST_NOISE:
        raise OutOfRange(
            f"privacy.noise_multiplier={settings.noise_multiplier}: below {LEAST_NOISE} no figure means "
            "anything; use more noise, or privacy=none and say so."
        )


def _check_without_separation(settings: PrivacySettings) -> None:
    if settings.mechanism != GAUSSIAN:
        raise OutOfRange(
            f"privacy.min_separation: {settings.mechanism} needs it (the steps from one participation of a device to "
            "its next, e.g. 100); only gaussian goes without, with Poisson sampling."
        )
    if settings.max_participations is not None or settings.participations_enforced:
        name = "participations_enforced" if settings.max_participations is None else "max_participations"
        raise OutOfRange(
            f"privacy.{name}: means nothing under Poisson sampling; give privacy.min_separation too, or leave it out."
        )
