"""What a reviewer would flag in a policy that loads: errors, which keep it from being signed, and warnings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Final

from fedlearn.policy.document import FEATURE_SOURCE, Policy, PopulationKind, PurposeKind
from fedlearn.policy.floors import SAMPLED
from fedlearn.policy.load import policy_digest
from fedlearn.policy.rules import forbidden
from fedlearn.policy.times import parse_time

DAY_S: Final = 86_400
LONGEST_LIFE_DAYS: Final = 400
FEWEST_DEVICES: Final = 1000
SMALL_ROUND: Final = 1000
LARGE_EPSILON: Final = 10.0
TEMPLATE_MARK: Final = "REPLACE"
"""What the template writes where only the author knows what to say."""

_PROMISES: Final = ("anonym", "guarantee", "never", "impossible", "completely", "100%", "fully private", "绝不", "匿名")


class Level(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at.

    Args:
        level: error or warning.
        message: names the field and the fix.
    """

    level: Level
    message: str


def lint(policy: Policy, now: float, previous: Policy | None = None) -> tuple[Finding, ...]:
    """Return everything a reviewer would flag, errors first.

    Args:
        policy: as loaded.
        now: seconds since the Unix epoch.
        previous: the version before, if there is one: what owners agreed to must not change under the same number.
    """
    found = [Finding(Level.ERROR, message) for message in forbidden(policy)]
    for rule in _RULES:
        found += rule(policy)
    found += _expiry(policy, now)
    if previous is not None:
        found += _changes(policy, previous)
    return tuple(sorted(found, key=lambda finding: finding.level is not Level.ERROR))


def errors_of(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    """Return the messages of the errors."""
    return tuple(finding.message for finding in findings if finding.level is Level.ERROR)


def floor_spend(policy: Policy) -> float:
    """Return the least epsilon, at ``device.delta``, of a phone that takes part in one run as often as the floors let
    it, at the least noise: independent noise, no amplification. Correlated noise of the same multiplier spends more.
    """
    k = policy.mechanism.max_participations
    rho = k / (2 * policy.mechanism.min_noise_multiplier**2)
    return _zcdp_epsilon(rho, policy.device.delta)


def _zcdp_epsilon(rho: float, delta: float) -> float:
    """Canonne, Kamath and Steinke (2020), proposition 12, at the best of 2,000 orders; any order is valid."""

    def at(order: float) -> float:
        return order * rho + math.log1p(-1 / order) - (math.log(delta) + math.log(order)) / (order - 1)

    return max(0.0, min(at(1 + math.exp(-8 + 20 * i / 2000)) for i in range(2000)))


def _sources(policy: Policy) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    for i, source in enumerate(policy.sources):
        at = f"sources[{i}]"
        if source.disputed and source.purposes:
            yield _warning(
                f"{at}.purposes: the source is disputed, so that it serves nothing; empty the list, or settle the "
                "dispute and set disputed: false."
            )
        if not source.disputed and not source.purposes:
            yield _warning(f"{at}.purposes: serves nothing; name a purpose, or leave the source out.")
        if owners.setdefault(source.app, source.owner) != source.owner:
            yield _warning(f"{at}.owner={source.owner!r}: {source.app} has another owner above; name one per app.")


def _purposes(policy: Policy) -> Iterator[Finding]:
    kinds = {purpose.kind for purpose in policy.purposes}
    for kind in PurposeKind:
        if kind not in kinds:
            yield _warning(f"purposes: none is of kind {kind}; nothing can {kind} under this policy.")
    for i, purpose in enumerate(policy.purposes):
        at = f"purposes[{i}]"
        if not any(purpose.id in source.purposes and not source.disputed for source in policy.sources):
            yield _warning(f"{at}.id={purpose.id!r}: no undisputed source serves it; name it in sources[].purposes.")
        for word in _PROMISES:
            if word in purpose.text.casefold():
                yield _warning(f"{at}.text: says {word!r}, a promise that nobody can keep; say what is done instead.")
    for (i, one), (j, other) in combinations(enumerate(policy.purposes), 2):
        if one.text == other.text:
            yield _warning(f"purposes[{j}].text: the same words as purposes[{i}]; the owner cannot tell them apart.")


def _template(policy: Policy) -> Iterator[Finding]:
    places = [("name", policy.name), ("population.id", policy.population.id)]
    places += [(f"purposes[{i}].text", purpose.text) for i, purpose in enumerate(policy.purposes)]
    places += [(f"recipients[{i}].name", recipient.name) for i, recipient in enumerate(policy.recipients)]
    places += [(f"recipients[{i}].id", recipient.id) for i, recipient in enumerate(policy.recipients)]
    places += [(f"sources[{i}].app", source.app) for i, source in enumerate(policy.sources)]
    places += [(f"sources[{i}].owner", source.owner) for i, source in enumerate(policy.sources)]
    for field, value in places:
        if TEMPLATE_MARK in value:
            yield _error(f"{field}: still the template's; say what is true here.")


def _recipients(policy: Policy) -> Iterator[Finding]:
    used = {name for purpose in policy.purposes for name in purpose.recipients}
    keys: dict[str, str] = {}
    for i, recipient in enumerate(policy.recipients):
        if recipient.id not in used:
            yield _warning(f"recipients[{i}].id={recipient.id!r}: no purpose names it; leave it out.")
        if recipient.task_key and keys.setdefault(recipient.task_key, recipient.id) != recipient.id:
            yield _warning(
                f"recipients[{i}].task_key: {keys[recipient.task_key]!r} has it too; give each operator its own."
            )


def _features(policy: Policy) -> Iterator[Finding]:
    from fedlearn.features import FEATURES  # noqa: PLC0415  # numpy, which phones' daemons do not load

    columns = {spec.name: spec.needs for spec in FEATURES}
    given = {source.data_type for source in policy.sources if source.purposes and not source.disputed}
    for i, feature in enumerate(policy.features):
        at = f"features[{i}]"
        if missing := sorted(set(feature.needs) - given):
            yield _warning(f"{at}.needs: no undisputed source gives {', '.join(missing)}; the feature is never made.")
        needs = columns.get(feature.name)
        if needs is None:
            yield _warning(f"{at}.name={feature.name!r}: no column of this version of fedlearn.features.")
            continue
        named = {FEATURE_SOURCE[data_type] for data_type in feature.needs}
        if named != needs - {"catalogue"}:
            made_from = [data_type.value for data_type, source in FEATURE_SOURCE.items() if source in needs]
            yield _error(f"{at}.needs: {feature.name} is made from [{', '.join(made_from)}]; write just that.")
        if feature.width != 1:
            yield _error(f"{at}.width={feature.width}: {feature.name} is one number; write 1.")


def _population(policy: Policy) -> Iterator[Finding]:
    devices, floors = policy.population.minimum_devices, policy.mechanism
    if devices < floors.min_round_size:
        yield _error(
            f"population.minimum_devices={devices}: under mechanism.min_round_size={floors.min_round_size}; no round "
            "could be released."
        )
    if devices < FEWEST_DEVICES:
        yield _warning(
            f"population.minimum_devices={devices}: under {FEWEST_DEVICES} a run compares methods and is no guarantee "
            "to publish."
        )
    if policy.population.kind is PopulationKind.SIMULATED:
        return
    if floors.min_round_size < SMALL_ROUND:
        yield _warning(
            f"mechanism.min_round_size={floors.min_round_size}: under {SMALL_ROUND} phones a sum hides few; raise it."
        )
    if devices < floors.min_round_size * floors.min_separation:
        yield _warning(
            f"population.minimum_devices={devices}: phones rest {floors.min_separation} steps, so that rounds of "
            f"{floors.min_round_size} need {floors.min_round_size * floors.min_separation} of them; raise it."
        )


def _budgets(policy: Policy) -> Iterator[Finding]:
    enrolled = policy.population.kind is PopulationKind.ENROLLED
    most = 1 / (10 * policy.population.minimum_devices)
    for name, epsilon, delta in (
        ("budget", policy.budget.epsilon, policy.budget.delta),
        ("device", policy.device.epsilon, policy.device.delta),
    ):
        if epsilon > LARGE_EPSILON:
            yield _warning(f"{name}.epsilon={epsilon:g}: above {LARGE_EPSILON:g} it says little; lower it.")
        if delta > most:
            level = Level.ERROR if enrolled else Level.WARNING
            yield Finding(level, f"{name}.delta={delta:g}: over 1/(10 x minimum_devices) = {most:.3g}; lower it.")


def _floors(policy: Policy) -> Iterator[Finding]:
    floors = policy.mechanism
    if floors.kinds == (SAMPLED,):
        return
    attainable = -(-floors.max_steps // floors.min_separation)
    if floors.max_participations > attainable:
        yield _warning(
            f"mechanism.max_participations={floors.max_participations}: max_steps={floors.max_steps} at min_separation="
            f"{floors.min_separation} leave room for {attainable}; write that."
        )
    spend = floor_spend(policy)
    if spend > policy.device.epsilon:
        yield _warning(
            f"device.epsilon={policy.device.epsilon:g}: one run at the floors spends {spend:.3g} at delta "
            f"{policy.device.delta:g} on a phone that takes part {floors.max_participations} times; raise "
            "mechanism.min_noise_multiplier, lower max_participations, or raise the cap."
        )


def _expiry(policy: Policy, now: float) -> Iterator[Finding]:
    left = parse_time(policy.expires, "expires") - now
    if left <= 0:
        yield _error(f"expires={policy.expires}: has passed; set a later day and raise the version.")
    elif left > LONGEST_LIFE_DAYS * DAY_S and policy.population.kind is PopulationKind.ENROLLED:
        yield _warning(
            f"expires={policy.expires}: {left / DAY_S:.0f} days ahead; at most {LONGEST_LIFE_DAYS}, so that somebody "
            "looks at it again."
        )


def _changes(policy: Policy, previous: Policy) -> Iterator[Finding]:
    if policy.name != previous.name or policy.population.id != previous.population.id:
        yield _warning(f"name={policy.name!r}: another policy than the previous one, {previous.name!r}.")
    if policy_digest(policy) != policy_digest(previous) and policy.version <= previous.version:
        yield _error(f"version={policy.version}: changed since version {previous.version}; raise it.")
    before = {purpose.id: purpose for purpose in previous.purposes}
    for i, purpose in enumerate(policy.purposes):
        old = before.get(purpose.id)
        if old is None:
            continue
        changed = purpose.text != old.text
        if purpose.text_version < old.text_version or (changed and purpose.text_version == old.text_version):
            yield _error(
                f"purposes[{i}].text_version={purpose.text_version}: the words changed since text_version "
                f"{old.text_version}; raise it, so that owners are asked again."
            )
        elif not changed and purpose.text_version > old.text_version:
            yield _warning(f"purposes[{i}].text_version: rose, and the words did not change: every grant becomes void.")
        wider = sorted(set(purpose.recipients) - set(old.recipients))
        if wider and not changed:
            yield _warning(f"purposes[{i}].recipients: {', '.join(wider)} is new and the words are unchanged; say so.")


def _error(message: str) -> Finding:
    return Finding(Level.ERROR, message)


def _warning(message: str) -> Finding:
    return Finding(Level.WARNING, message)


_RULES: Final[tuple[Callable[[Policy], Iterator[Finding]], ...]] = (
    _template,
    _sources,
    _purposes,
    _recipients,
    _features,
    _population,
    _budgets,
    _floors,
)
