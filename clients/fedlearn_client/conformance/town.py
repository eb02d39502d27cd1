"""The made-up phone of the kit: who calls, what the policy says, what the owner talks about."""

from __future__ import annotations

from typing import Final

from fedlearn.policy.document import (
    Budget,
    DataType,
    DeviceCaps,
    Feature,
    MechanismFloors,
    Policy,
    Population,
    PopulationKind,
    Purpose,
    PurposeKind,
    Recipient,
    RecipientKind,
    Source,
)
from fedlearn.policy.times import format_time

DAY_S: Final = 86_400.0
_YEAR_2020: Final = 1_577_836_800

CHAT: Final = "kit.chat"
READING: Final = "kit.reading"
OTHER: Final = "kit.other"
SURFACE: Final = "kit.surface"
SETTINGS: Final = "kit.settings"
SYSTEM: Final = "kit.system"
DISPUTED: Final = "kit.disputed"
OPERATOR: Final = "kit-lab"

RECOMMEND: Final = "recommend-places"
TRAIN: Final = "train-places"

ROLES: Final = {
    "chat": (CHAT, "app"),
    "reading": (READING, "app"),
    "other": (OTHER, "app"),
    "surface": (SURFACE, "surface"),
    "settings": (SETTINGS, "settings"),
    "system": (SYSTEM, "system"),
}
"""Caller of the kit -> app id and role. ``stranger`` is nobody's."""

STRANGER: Final = "stranger"

_CHAT = (DataType.MESSAGE_CONTENT,)
_CHOICES = (DataType.CHOICE,)
FEATURES: Final = {
    **dict.fromkeys(
        (
            *("words", "words_earlier", "dish", "facility", "kind", "values_earlier", "rejected", "price_fit"),
            *("price_level_fit", "free", "rating_fit", "hours_fit", "near_named"),
        ),
        _CHAT,
    ),
    **dict.fromkeys(("near_own", "near_other"), _CHOICES),
    **dict.fromkeys(("near_wished", "near_last_wished"), (*_CHAT, *_CHOICES)),
    **dict.fromkeys(("alike_own", "alike_other", "price_alike", "chosen_before"), _CHOICES),
    **dict.fromkeys(("rating", "price_level"), ()),
}
"""Column of ``fedlearn.features`` -> data types that it needs, in order."""

_PURPOSES = (RECOMMEND, TRAIN)
_SOURCES = (
    (CHAT, DataType.MESSAGE_CONTENT, False),
    (READING, DataType.CHOICE, False),
    (OTHER, DataType.CHOICE, False),
    (DISPUTED, DataType.CHOICE, True),
)


def version_at(now: float) -> int:
    """Return the version of what is issued at ``now``: seconds since 2020, so that it grows from run to run."""
    return max(1, int(now) - _YEAR_2020)


def make_policy(now: float, task_key: str) -> Policy:
    """Return the policy of the kit, good for 200 days.

    Args:
        now: seconds since the Unix epoch.
        task_key: of the made-up operator, 64 hexadecimal digits.
    """
    return Policy(
        name="conformance",
        version=version_at(now),
        expires=format_time(now + 200 * DAY_S),
        population=Population("kit", PopulationKind.ENROLLED, 1000),
        purposes=(
            Purpose(RECOMMEND, PurposeKind.RECOMMEND, "Suggest places on this phone.", 3, (SURFACE, OTHER)),
            Purpose(TRAIN, PurposeKind.TRAIN, "Improve suggestions with private sums.", 3, (OPERATOR,)),
        ),
        recipients=(
            Recipient(SURFACE, RecipientKind.SURFACE, "Phone", ""),
            Recipient(OTHER, RecipientKind.APP, "Maps", ""),
            Recipient(OPERATOR, RecipientKind.OPERATOR, "Lab", task_key),
        ),
        sources=tuple(
            Source(app, "Kit", kind, _PURPOSES, "own_app", "drop", "off", disputed, 30)
            for app, kind, disputed in _SOURCES
        ),
        features=tuple(Feature(name, needs, "matches places", 1) for name, needs in FEATURES.items()),
        mechanism=MechanismFloors(
            kinds=("independent",),
            max_l2_clip_norm=1.0,
            min_noise_multiplier=0.5,
            min_round_size=2,
            min_separation=5,
            max_participations=20,
            max_steps=2000,
        ),
        budget=Budget(8.0, 1e-6),
        device=DeviceCaps(
            epsilon=20.0,
            delta=1e-6,
            max_upload_bytes=2_000_000,
            max_catalogue_bytes=5_000_000,
            max_training_seconds=585,
            max_rounds_per_day=24,
        ),
    )
