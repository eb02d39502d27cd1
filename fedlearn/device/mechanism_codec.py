"""``MechanismTerms`` as JSON, and what makes them consistent: one check for plans and tasks."""

from __future__ import annotations

import math
from typing import Final

from fedlearn.device.fields import Fields
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.errors import BundleRefused, InvalidSpend
from fedlearn.privacy.factorization import (
    INDEPENDENT,
    Blt,
    Factorization,
    Toeplitz,
    Tree,
    factorization_from_json,
    factorization_to_json,
)

KINDS: Final = ("banded", "blt", "gaussian", "independent", "tree")
MOST_STEPS: Final = 2**31 - 1
MOST_COEFFICIENTS: Final = 4096
MOST_NOISE: Final = 1e6
MOST_CLIP: Final = 1e6
_HEADROOM: Final = 2.0**62  # fedlearn.privacy.grid: a vector of more steps than this does not fit the grid


def mechanism_to_json(terms: MechanismTerms) -> dict[str, object]:
    """Return the terms as a JSON object."""
    return {
        "kind": terms.kind,
        "factorization": factorization_to_json(terms.factorization),
        "noise_multiplier": float(terms.noise_multiplier),
        "l2_clip_norm": float(terms.l2_clip_norm),
        "grid_step": float(terms.grid_step),
        "steps": terms.steps,
        "min_separation": terms.min_separation,
        "max_participations": terms.max_participations,
    }


def mechanism_from_json(body: object, path: str) -> MechanismTerms:
    """Read terms back.

    Raises:
        BundleRefused: a field is absent, unknown, of another type or out of range, or kind and factorization differ;
            the message begins with the field's path.
    """
    fields = Fields(body, path)
    terms = MechanismTerms(
        kind=fields.text("kind"),
        factorization=_factorization(fields.take("factorization"), fields.path("factorization")),
        noise_multiplier=fields.number("noise_multiplier", above=0.0, most=MOST_NOISE),
        l2_clip_norm=fields.number("l2_clip_norm", above=0.0, most=MOST_CLIP),
        grid_step=fields.number("grid_step", above=0.0),
        steps=fields.integer("steps", least=1, most=MOST_STEPS),
        min_separation=fields.integer("min_separation", least=1, most=MOST_STEPS),
        max_participations=fields.integer("max_participations", least=1, most=MOST_STEPS),
    )
    fields.end()
    require_consistent(terms, path)
    return terms


def require_consistent(terms: MechanismTerms, path: str) -> None:
    """Refuse terms whose fields contradict each other.

    Raises:
        BundleRefused: an unknown kind, a factorization of another kind, more coefficients than steps, a grid step that
            is no power of two, or one that the clip does not fit.
    """
    if terms.kind not in KINDS:
        raise BundleRefused(f"{path}.kind: must be one of {', '.join(KINDS)}.")
    if terms.kind not in _kinds_of(terms.factorization):
        fit = " or ".join(_kinds_of(terms.factorization))
        raise BundleRefused(f"{path}.kind: is {terms.kind}, but the factorization is that of {fit}.")
    if isinstance(terms.factorization, Toeplitz):
        bands = len(terms.factorization.coefficients)
        if bands > min(terms.steps, MOST_COEFFICIENTS):
            most = min(terms.steps, MOST_COEFFICIENTS)
            raise BundleRefused(f"{path}.factorization.coefficients: {bands}; at most {most}, and no more than steps.")
    if math.frexp(terms.grid_step)[0] != 0.5:
        raise BundleRefused(f"{path}.grid_step: must be a power of two, from fedlearn.privacy.grid.grid_step.")
    if not terms.grid_step <= terms.l2_clip_norm < terms.grid_step * _HEADROOM:
        raise BundleRefused(f"{path}.grid_step: l2_clip_norm must be 1 to 2^62 grid steps.")


def _kinds_of(factorization: Factorization) -> tuple[str, ...]:
    match factorization:
        case Toeplitz():
            return ("gaussian", "independent") if factorization == INDEPENDENT else ("banded",)
        case Blt():
            return ("blt",)
        case Tree():
            return ("tree",)


def _factorization(body: object, path: str) -> Factorization:
    if isinstance(body, dict) and any(
        isinstance(values, list) and len(values) > MOST_COEFFICIENTS for values in body.values()
    ):
        raise BundleRefused(f"{path}: more than {MOST_COEFFICIENTS} numbers.")
    try:
        return factorization_from_json(body)
    except (InvalidSpend, OverflowError) as error:
        raise BundleRefused(f"{path}: {error}") from error
