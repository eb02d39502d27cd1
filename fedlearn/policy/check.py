"""Ranges and cross-references of a policy: what its types do not say."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Final

from fedlearn.errors import PolicyInvalid
from fedlearn.policy.document import (
    LONGEST_RETENTION_DAYS,
    Policy,
    PopulationKind,
    Purpose,
    PurposeKind,
    Recipient,
    RecipientKind,
    Source,
)
from fedlearn.policy.keys import require_key
from fedlearn.policy.rules import ALLOWED_COLLECTIONS, SCRAPED_COLLECTIONS
from fedlearn.policy.times import parse_time

MECHANISM_KINDS: Final = ("gaussian", "independent", "blt", "banded", "tree")
LONGEST_TRAINING_S: Final = 585
_LARGEST_COUNT: Final = 10**9
_LARGEST_FILE: Final = 2**31 - 1
_LARGEST_REAL: Final = 1e6
_LARGEST_EPSILON: Final = 100.0

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FEATURE: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")
# embeddings, overrides, isolates and marks: they make a text read otherwise than it is written
_BIDIRECTIONAL: Final = frozenset("\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_RECIPIENTS_OF: Final = {
    PurposeKind.TRAIN: frozenset({RecipientKind.OPERATOR}),
    PurposeKind.RECOMMEND: frozenset({RecipientKind.SURFACE, RecipientKind.APP}),
}


def check_policy(policy: Policy) -> None:
    """Return if every value is in range and every reference resolves.

    Raises:
        PolicyInvalid: names the field, e.g. ``sources[2].retention_days``, and the fix.
    """
    _matches("name", policy.name, _NAME, "1-64")
    _whole("version", policy.version, 1, _LARGEST_COUNT)
    parse_time(policy.expires, "expires")
    _matches("population.id", policy.population.id, _NAME, "1-64")
    _whole("population.minimum_devices", policy.population.minimum_devices, 1, 10 * _LARGEST_COUNT)
    _count("purposes", policy.purposes, 1, 64)
    _count("recipients", policy.recipients, 1, 64)
    _count("sources", policy.sources, 1, 256)
    _count("features", policy.features, 0, 1024)
    recipients = {recipient.id: recipient for recipient in policy.recipients}
    _unique("recipients", "id", [recipient.id for recipient in policy.recipients])
    _unique("purposes", "id", [purpose.id for purpose in policy.purposes])
    _unique("features", "name", [feature.name for feature in policy.features])
    _unique("sources", "app and data_type", [(source.app, source.data_type) for source in policy.sources])
    for i, recipient in enumerate(policy.recipients):
        _recipient(f"recipients[{i}]", recipient)
    for i, purpose in enumerate(policy.purposes):
        _purpose(f"purposes[{i}]", purpose, recipients)
    known = [purpose.id for purpose in policy.purposes]
    for i, source in enumerate(policy.sources):
        _source(f"sources[{i}]", source, known)
    for i, feature in enumerate(policy.features):
        _matches(f"features[{i}].name", feature.name, _FEATURE, "a-z first, 1-64")
        _unique(f"features[{i}].needs", "data type", feature.needs)
        _words(f"features[{i}].why", feature.why, 500)
        _whole(f"features[{i}].width", feature.width, 1, 65_536)
    _mechanism(policy)
    _caps(policy)


def _recipient(path: str, recipient: Recipient) -> None:
    _matches(f"{path}.id", recipient.id, _ID, "1-128")
    _words(f"{path}.name", recipient.name, 200)
    if recipient.kind is RecipientKind.OPERATOR:
        require_key(recipient.task_key, f"{path}.task_key", weak=True)  # a placeholder is judged with the population
    elif recipient.task_key:
        raise PolicyInvalid(f'{path}.task_key: only an operator signs tasks; write "" for kind {recipient.kind}.')


def _purpose(path: str, purpose: Purpose, recipients: dict[str, Recipient]) -> None:
    _matches(f"{path}.id", purpose.id, _NAME, "1-64")
    _words(f"{path}.text", purpose.text, 2000)
    _whole(f"{path}.text_version", purpose.text_version, 1, _LARGEST_COUNT)
    _count(f"{path}.recipients", purpose.recipients, 1, 64)
    _unique(f"{path}.recipients", "recipient", purpose.recipients)
    allowed = _RECIPIENTS_OF[purpose.kind]
    for i, name in enumerate(purpose.recipients):
        recipient = recipients.get(name)
        if recipient is None:
            raise PolicyInvalid(f"{path}.recipients[{i}]={name[:60]!r}: not among recipients; add it there.")
        if recipient.kind not in allowed:
            raise PolicyInvalid(
                f"{path}.recipients[{i}]={name!r}: is of kind {recipient.kind}; a {purpose.kind} purpose has "
                f"recipients of kind {' or '.join(sorted(allowed))}. Make a purpose of its own for it."
            )


def _source(path: str, source: Source, purposes: Sequence[str]) -> None:
    _matches(f"{path}.app", source.app, _ID, "1-128")
    _words(f"{path}.owner", source.owner, 200)
    _unique(f"{path}.purposes", "purpose", source.purposes)
    for i, name in enumerate(source.purposes):
        if name not in purposes:
            raise PolicyInvalid(f"{path}.purposes[{i}]={name[:60]!r}: not among purposes; add it there.")
    if source.collection not in (*ALLOWED_COLLECTIONS, *SCRAPED_COLLECTIONS):
        raise PolicyInvalid(
            f"{path}.collection={source.collection[:60]!r}: choose from {', '.join(ALLOWED_COLLECTIONS)}."
        )
    for name, value, only in (("third_party", source.third_party, "drop"), ("minors", source.minors, "off")):
        if value != only:
            raise PolicyInvalid(f'{path}.{name}={value[:60]!r}: must be "{only}", the only rule there is.')
    _whole(f"{path}.retention_days", source.retention_days, 1, LONGEST_RETENTION_DAYS)


def _mechanism(policy: Policy) -> None:
    floors = policy.mechanism
    _count("mechanism.kinds", floors.kinds, 1, len(MECHANISM_KINDS))
    _unique("mechanism.kinds", "kind", floors.kinds)
    for i, kind in enumerate(floors.kinds):
        if kind not in MECHANISM_KINDS:
            raise PolicyInvalid(f"mechanism.kinds[{i}]={kind[:60]!r}: choose from {', '.join(MECHANISM_KINDS)}.")
        if kind == "gaussian" and policy.population.kind is not PopulationKind.SIMULATED:
            raise PolicyInvalid(
                f"mechanism.kinds[{i}]=gaussian: counts on secret sampling, and phones that check in by themselves are "
                "not sampled; use independent, or a correlated kind."
            )
    _real("mechanism.max_l2_clip_norm", floors.max_l2_clip_norm, _LARGEST_REAL)
    _real("mechanism.min_noise_multiplier", floors.min_noise_multiplier, _LARGEST_REAL)
    _whole("mechanism.min_round_size", floors.min_round_size, 2, _LARGEST_COUNT)
    _whole("mechanism.min_separation", floors.min_separation, 1, _LARGEST_COUNT)
    _whole("mechanism.max_participations", floors.max_participations, 1, _LARGEST_COUNT)
    _whole("mechanism.max_steps", floors.max_steps, 1, _LARGEST_COUNT)


def _caps(policy: Policy) -> None:
    for name, epsilon, delta in (
        ("budget", policy.budget.epsilon, policy.budget.delta),
        ("device", policy.device.epsilon, policy.device.delta),
    ):
        _real(f"{name}.epsilon", epsilon, _LARGEST_EPSILON)
        if not 0.0 < delta < 1.0:
            raise PolicyInvalid(f"{name}.delta={delta:g}: must be in (0, 1), e.g. 1.0e-6.")
    device = policy.device
    _whole("device.max_upload_bytes", device.max_upload_bytes, 1, _LARGEST_FILE)
    _whole("device.max_catalogue_bytes", device.max_catalogue_bytes, 1, _LARGEST_FILE)
    _whole("device.max_training_seconds", device.max_training_seconds, 1, LONGEST_TRAINING_S)
    _whole("device.max_rounds_per_day", device.max_rounds_per_day, 1, 1440)


def _matches(field: str, value: str, shape: re.Pattern[str], length: str) -> None:
    if not shape.fullmatch(value):
        allowed = "a-z 0-9 _" if shape is _FEATURE else "A-Z a-z 0-9 . _ -, a letter or digit first"
        raise PolicyInvalid(f"{field}={value[:60]!r}: {length} characters of {allowed}.")


def _words(field: str, value: str, longest: int) -> None:
    if not value.strip() or value != value.strip() or len(value) > longest:
        raise PolicyInvalid(f"{field}: 1-{longest} characters, without blanks at the ends.")
    if any(unicodedata.category(character) == "Cc" or character in _BIDIRECTIONAL for character in value):
        raise PolicyInvalid(f"{field}: holds a line break, control or direction character; write one line of text.")
    if "${" in value:
        raise PolicyInvalid(f"{field}: holds ${{, which the lab's configs would replace; write the text itself.")


def _whole(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise PolicyInvalid(f"{field}={value}: must be in {least}..{most}.")


def _real(field: str, value: float, most: float) -> None:
    if not 0.0 < value <= most:
        raise PolicyInvalid(f"{field}={value:g}: must be > 0 and at most {most:g}.")


def _count(field: str, values: Sequence[object], least: int, most: int) -> None:
    if not least <= len(values) <= most:
        raise PolicyInvalid(f"{field}: has {len(values)} entries; must have {least}..{most}.")


def _unique(field: str, what: str, values: Iterable[object]) -> None:
    seen: set[object] = set()
    for value in values:
        if value in seen:
            shown = " ".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
            raise PolicyInvalid(f"{field}: {what} {shown[:80]!r} is given twice; keep one.")
        seen.add(value)
