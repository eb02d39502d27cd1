"""What a reviewer would flag is flagged, and a sound policy is not."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.policy.document import Feature, PopulationKind, PurposeKind
from fedlearn.policy.keys import PLACEHOLDER_KEY
from fedlearn.policy.lint import Level, errors_of, floor_spend, lint
from fedlearn.policy.load import load_policy
from fedlearn.policy.times import format_time
from fedlearn.privacy.gaussian import gaussian_epsilon, zcdp_epsilon

_spec = importlib.util.spec_from_file_location("policy_papers", Path(__file__).with_name("policy_papers.py"))
assert _spec is not None
assert _spec.loader is not None
p: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = p
_spec.loader.exec_module(p)

POLICY = p.POLICY
NOW = p.NOW
CHAT, CHOICES = POLICY.sources
SIMULATED = replace(POLICY, population=replace(POLICY.population, kind=PopulationKind.SIMULATED))


def said(policy: Any, previous: Any = None) -> list[tuple[str, str]]:
    return [(finding.level.value, finding.message) for finding in lint(policy, NOW, previous)]


def with_source(**changes: Any) -> Any:
    return replace(POLICY, sources=(replace(CHAT, **changes), CHOICES))


def with_mechanism(**changes: Any) -> Any:
    return replace(POLICY, mechanism=replace(POLICY.mechanism, **changes))


def with_purpose(**changes: Any) -> Any:
    return replace(POLICY, purposes=(replace(POLICY.purposes[0], **changes), POLICY.purposes[1]))


def with_population(**changes: Any) -> Any:
    return replace(POLICY, population=replace(POLICY.population, **changes))


def with_operator(policy: Any = POLICY, **changes: Any) -> Any:
    return replace(policy, recipients=(*POLICY.recipients[:2], replace(POLICY.recipients[2], **changes)))


def test_a_sound_policy_is_silent() -> None:
    assert said(POLICY) == []


FLAGGED = [
    (with_source(collection="screen"), "error", "sources[0].collection=screen"),
    (with_source(collection="notification"), "error", "sources[0].collection=notification"),
    (with_source(collection="accessibility"), "error", "sources[0].collection=accessibility"),
    (with_operator(task_key=PLACEHOLDER_KEY), "error", "recipients[2].task_key"),
    (with_operator(task_key="01" + "0" * 62), "error", "recipients[2].task_key"),
    (with_source(disputed=True), "warning", "sources[0].purposes: the source is disputed"),
    (with_source(purposes=()), "warning", "sources[0].purposes: serves nothing"),
    (replace(POLICY, sources=(CHAT, replace(CHOICES, app=CHAT.app))), "warning", "sources[1].owner='Maps Ltd'"),
    (with_source(purposes=("places",)), "warning", "purposes[1].id='places-training': no undisputed source"),
    (replace(POLICY, purposes=POLICY.purposes[1:]), "warning", "purposes: none is of kind recommend"),
    (replace(POLICY, purposes=POLICY.purposes[:1]), "warning", "purposes: none is of kind train"),
    (replace(POLICY, purposes=POLICY.purposes[:1]), "warning", "recipients[2].id='operator': no purpose names it"),
    (with_purpose(text="Completely anonymous suggestions."), "warning", "purposes[0].text: says 'anonym'"),
    (with_purpose(text=POLICY.purposes[1].text), "warning", "purposes[1].text: the same words"),
    (with_purpose(text="REPLACE with words."), "error", "purposes[0].text: still the template's"),
    (
        replace(POLICY, recipients=(*POLICY.recipients, replace(POLICY.recipients[2], id="other"))),
        "warning",
        "recipients[3].task_key: 'operator' has it too",
    ),
    (
        replace(POLICY, features=(replace(POLICY.features[0], needs=()),)),
        "error",
        "features[0].needs: words is made from [message_content]",
    ),
    (replace(POLICY, features=(replace(POLICY.features[2], width=2),)), "error", "features[0].width=2"),
    (replace(POLICY, features=(Feature("charisma", (), "Charm.", 1),)), "warning", "features[0].name='charisma'"),
    (replace(POLICY, sources=(CHAT,)), "warning", "features[1].needs: no undisputed source gives choice"),
    (with_source(disputed=True, purposes=()), "warning", "features[0].needs: no undisputed source gives message"),
    (with_mechanism(min_round_size=999), "warning", "mechanism.min_round_size=999: under 1000"),
    (with_population(minimum_devices=999), "error", "population.minimum_devices=999: under mechanism.min_round_size"),
    (with_population(minimum_devices=999), "warning", "population.minimum_devices=999: under 1000 a run compares"),
    (with_population(minimum_devices=19_999), "warning", "population.minimum_devices=19999: phones rest 20 steps"),
    (replace(POLICY, budget=replace(POLICY.budget, epsilon=10.5)), "warning", "budget.epsilon=10.5"),
    (replace(POLICY, device=replace(POLICY.device, epsilon=10.5)), "warning", "device.epsilon=10.5"),
    (replace(POLICY, budget=replace(POLICY.budget, delta=2.1e-6)), "error", "budget.delta=2.1e-06: over 1/(10 x"),
    (replace(POLICY, device=replace(POLICY.device, delta=2.1e-6)), "error", "device.delta=2.1e-06"),
    (with_mechanism(min_noise_multiplier=1.0), "warning", "device.epsilon=8: one run at the floors spends"),
    (with_mechanism(max_participations=6), "warning", "mechanism.max_participations=6: max_steps=100"),
    (replace(POLICY, expires=format_time(NOW)), "error", "expires="),
    (replace(POLICY, expires=format_time(NOW + 401 * 86_400)), "warning", "expires="),
]


@pytest.mark.parametrize(("policy", "level", "words"), FLAGGED, ids=[row[2][:50] for row in FLAGGED])
def test_what_a_reviewer_would_flag(policy: Any, level: str, words: str) -> None:
    found = said(policy)
    assert any(kind == level and message.startswith(words) for kind, message in found), found


def test_errors_come_first() -> None:
    findings = lint(replace(with_source(collection="screen"), expires=format_time(NOW + 500 * 86_400)), NOW)
    assert [finding.level for finding in findings] == sorted([f.level for f in findings], key=list(Level).index)
    assert len(errors_of(findings)) == 1


def test_a_simulation_may_have_a_placeholder_and_live_long() -> None:
    policy = replace(with_operator(SIMULATED, task_key=PLACEHOLDER_KEY), expires=format_time(NOW + 3000 * 86_400))
    assert said(policy) == []
    small = replace(SIMULATED, budget=replace(POLICY.budget, delta=1e-5))
    assert said(small)[0][0] == "warning"


CHANGES = [
    (replace(POLICY, version=4), None),
    (POLICY, None),
    (with_mechanism(min_round_size=2000), "version=3: changed since version 3"),
    (replace(with_mechanism(min_round_size=1500), version=2), "version=2: changed since version 3"),
    (replace(with_purpose(text="Other words."), version=4), "purposes[0].text_version=2: the words changed"),
    (replace(with_purpose(text="Other words.", text_version=3), version=4), None),
    (replace(with_purpose(text_version=1), version=4), "purposes[0].text_version=1"),
    (replace(with_purpose(text_version=3), version=4), "purposes[0].text_version: rose"),
    (replace(POLICY, name="other", version=4), "name='other'"),
    (replace(with_purpose(id="cafes"), version=4), "purposes[0].id='cafes'"),
]


@pytest.mark.parametrize(("policy", "words"), CHANGES, ids=[str(row[1]) for row in CHANGES])
def test_what_owners_agreed_to_does_not_change_under_one_number(policy: Any, words: str | None) -> None:
    found = [message for _, message in said(policy, POLICY)]
    if words is None:
        assert found == []
    else:
        assert any(message.startswith(words) for message in found), found


def test_a_new_recipient_under_unchanged_words_is_flagged() -> None:
    before = with_purpose(recipients=("surface",))
    assert "com.example.maps is new" in " ".join(m for _, m in said(replace(POLICY, version=4), before))


@pytest.mark.parametrize(("noise", "k"), [(4.0, 5), (1.0, 1), (20.0, 3), (0.5, 50)])
def test_the_figure_of_one_run_at_the_floors(noise: float, k: int) -> None:
    """Never under the exact figure of k Gaussian releases, and as good as the accountant's own zCDP conversion."""
    ours = floor_spend(with_mechanism(min_noise_multiplier=noise, max_participations=k))
    assert gaussian_epsilon(math.sqrt(k) / noise, 1e-6) <= ours
    assert ours == pytest.approx(zcdp_epsilon(k / (2 * noise**2), 1e-6), rel=1e-3)


def test_every_kind_of_purpose_has_recipients_of_its_own_kind() -> None:
    """A training purpose cannot hand rankings to apps: the loader refuses the mixture, so lint need not."""
    assert {purpose.kind for purpose in POLICY.purposes} == set(PurposeKind)


@pytest.mark.parametrize("name", ["city", "crosswoz"])
def test_shipped_policies_have_no_error(repository: Path, name: str) -> None:
    policy = load_policy(repository / "configs" / "policy" / f"{name}.yaml")
    assert errors_of(lint(policy, NOW)) == ()
    assert errors_of(lint(p.enrolled(replace(policy, mechanism=POLICY.mechanism)), NOW))[0].startswith("recipients[")
