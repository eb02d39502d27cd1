"""What a gateway must know of a run to ask phones for it: the enrolled counterpart of a simulated cohort's config."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Final

from fedlearn.device.fields import BIGGEST_INT, Fields, checked_digest, checked_integer, checked_text
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.mechanism_codec import mechanism_from_json, mechanism_to_json
from fedlearn.errors import BundleRefused, MalformedMessage, OutOfRange

FORMAT: Final = "fedlearn-enrolled-cohort"
VERSION: Final = 1
LONGEST_S: Final = 7 * 86_400.0
"""Life of a collection, and of a task: a phone refuses one that is longer."""
MOST_OVER_SELECTION: Final = 100.0


@dataclass(frozen=True, slots=True)
class FleetTerms:
    """One run over an enrolled population. It travels to the nodes as the cohort's description.

    Args:
        run_id: names the run and its mechanism, 1 to 128 characters.
        population, purpose, recipient: ids in the policy, likewise.
        plan_digest: SHA-256 (hex) of the approved plan.
        bundle_digest: SHA-256 (hex) of the task bundle that phones must have.
        mechanism: as the plan and every task says.
        round_size: least phones in a sum that may be released, over all parts, >= 1.
        target: phones wanted in a step, over all parts, >= ``round_size``.
        over_selection: phones that are given a task, over ``target``, in [1, 100].
        attempt_s: how long a collection stays open, seconds, in (0, 7 days].
        task_s: life of a task, seconds, in (0, 7 days]; at most what is left of its collection.

    Raises:
        OutOfRange: names the field.
    """

    run_id: str
    population: str
    purpose: str
    recipient: str
    plan_digest: str
    bundle_digest: str
    mechanism: MechanismTerms
    round_size: int
    target: int
    over_selection: float
    attempt_s: float
    task_s: float

    def __post_init__(self) -> None:
        try:
            for name in ("run_id", "population", "purpose", "recipient"):
                checked_text(getattr(self, name), name)
            for name in ("plan_digest", "bundle_digest"):
                checked_digest(getattr(self, name), name)
            checked_integer(self.target, "target", 1, BIGGEST_INT)
            checked_integer(self.round_size, "round_size", 1, self.target)
        except BundleRefused as error:
            raise OutOfRange(str(error)) from error
        if not 1.0 <= self.over_selection <= MOST_OVER_SELECTION:
            raise OutOfRange(
                f"over_selection={self.over_selection}: must be in [1, {MOST_OVER_SELECTION:g}], e.g. 1.3."
            )
        for name in ("attempt_s", "task_s"):
            if not 0.0 < getattr(self, name) <= LONGEST_S:
                raise OutOfRange(f"{name}={getattr(self, name)}: must be > 0 and at most {LONGEST_S:g} seconds.")

    def share(self, whole: int, part: int, parts: int) -> int:
        """Return what of ``whole`` phones one part of ``parts`` has; the shares add up to at least the whole."""
        del part  # all the same, so that no phone can tell parts apart
        return max(1, -(-whole // parts))

    def to_json(self) -> str:
        """Return canonical JSON: the description of a cohort."""
        plain = {**asdict(self), "mechanism": mechanism_to_json(self.mechanism)}
        return json.dumps({"format": FORMAT, "version": VERSION, **plain}, sort_keys=True, separators=(",", ":"))


def read_terms(text: str) -> FleetTerms:
    """Read what ``to_json`` wrote; raise MalformedMessage for what is none, or breaks a range."""
    try:
        told = Fields(json.loads(text), "cohort")
        if (told.take("format"), told.take("version")) != (FORMAT, VERSION):
            raise MalformedMessage(f"cohort: not a {FORMAT} of version {VERSION}; update the older side.")
        mechanism = mechanism_from_json(told.take("mechanism"), "cohort.mechanism")
        terms = FleetTerms(
            run_id=told.text("run_id"),
            population=told.text("population"),
            purpose=told.text("purpose"),
            recipient=told.text("recipient"),
            plan_digest=told.text("plan_digest"),
            bundle_digest=told.text("bundle_digest"),
            mechanism=mechanism,
            round_size=told.integer("round_size", least=1),
            target=told.integer("target", least=1),
            over_selection=told.number("over_selection", above=0.0),
            attempt_s=told.number("attempt_s", above=0.0),
            task_s=told.number("task_s", above=0.0),
        )
        told.end()
    except (ValueError, RecursionError, BundleRefused) as error:
        raise MalformedMessage(f"cohort: not a description of an enrolled population ({error}).") from error
    return terms
