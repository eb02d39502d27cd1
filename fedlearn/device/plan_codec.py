"""``plan.json``: a ``DevicePlan`` as canonical JSON, and the strict way back. Fields: docs/bundle.md."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from fedlearn.device.fields import (
    Fields,
    checked_integer,
    checked_text,
    checked_version,
    require_sorted,
)
from fedlearn.device.mechanism_codec import mechanism_from_json, mechanism_to_json
from fedlearn.device.operators import ALLOWED_OPERATORS
from fedlearn.device.plan import SCHEMA, CatalogueSpec, ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.errors import BundleRefused, OutOfRange, PolicyInvalid
from fedlearn.policy.canonical import canonical_bytes, parse_strict, sha256_hex
from fedlearn.terms import ExamplePrivacy

EXAMPLES: Final = ("match", "two_tower")
DTYPES: Final = ("<f4", "<i8")
MOST_PLAN_BYTES: Final = 2**20
MOST_PARAMETERS: Final = 256
MOST_COLUMNS: Final = 64
MOST_FEATURES: Final = 1024
MOST_DIMENSIONS: Final = 8
MOST_WEIGHTS: Final = 2**24
"""Of all parameters together: 64 MiB of f32."""
MOST_CATALOGUE_BYTES: Final = 64 * 2**20
_MOST_ROWS: Final = 65_536
_MOST_EXAMPLES: Final = 1_000_000


def plan_to_json(plan: DevicePlan) -> dict[str, object]:
    """Return the plan as a JSON object, with its schema."""
    return {
        "schema": SCHEMA,
        "name": plan.name,
        "population": plan.population,
        "purpose": plan.purpose,
        "recipient": plan.recipient,
        "serves": plan.serves,
        "model": plan.model,
        "examples": plan.examples,
        "example_options": dict(plan.example_options),
        "parameters": [
            {"name": spec.name, "shape": list(spec.shape), "scope": spec.scope.value} for spec in plan.parameters
        ],
        "columns": [{"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)} for spec in plan.columns],
        "features": list(plan.features),
        "training": _training_to_json(plan.training),
        "mechanism": mechanism_to_json(plan.mechanism),
        "catalogue": {
            "name": plan.catalogue.name,
            "domain": plan.catalogue.domain,
            "attributes": list(plan.catalogue.attributes),
            "max_bytes": plan.catalogue.max_bytes,
        },
        "operators": list(plan.operators),
        "minimum_runtime": plan.minimum_runtime,
    }


def plan_from_json(body: object) -> DevicePlan:
    """Read a plan back.

    Raises:
        BundleRefused: another schema; a field that is absent, unknown, of another type or out of range; names that are
            not sorted; a mechanism that contradicts itself. The message begins with the field's path.
    """
    fields = Fields(body, "")
    if fields.take("schema") != SCHEMA:
        raise BundleRefused(f"schema: must be {SCHEMA}; update the runtime, or export again.")
    plan = DevicePlan(
        name=fields.text("name"),
        population=fields.text("population"),
        purpose=fields.text("purpose"),
        recipient=fields.text("recipient"),
        serves=fields.text("serves", empty=True),
        model=fields.text("model"),
        examples=fields.text("examples"),
        example_options=_options(fields.take("example_options")),
        parameters=fields.rows("parameters", _parameter, most=MOST_PARAMETERS),
        columns=fields.rows("columns", _column, most=MOST_COLUMNS),
        features=fields.rows("features", checked_text, most=MOST_FEATURES),
        training=_training(fields.take("training")),
        mechanism=mechanism_from_json(fields.take("mechanism"), "mechanism"),
        catalogue=_catalogue(fields.take("catalogue")),
        operators=fields.rows("operators", checked_text, most=len(ALLOWED_OPERATORS)),
        minimum_runtime=checked_version(fields.take("minimum_runtime"), "minimum_runtime"),
    )
    fields.end()
    _require_whole(plan)
    return plan


def plan_bytes(plan: DevicePlan) -> bytes:
    """Return ``plan.json``: canonical, so that equal plans have equal bytes.

    Raises:
        BundleRefused: a phone would refuse the plan; the message names the field.
    """
    data = canonical_bytes(plan_to_json(plan))
    if plan_from_bytes(data) != plan:
        raise BundleRefused("plan: does not survive its own JSON; give tuples, numbers and texts as documented.")
    return data


def plan_from_bytes(data: bytes) -> DevicePlan:
    """Read ``plan.json``.

    Raises:
        BundleRefused: as ``plan_from_json``; also bytes that are not the canonical ones of that plan.
    """
    try:
        body = parse_strict(data, MOST_PLAN_BYTES, "plan.json")
    except PolicyInvalid as error:
        raise BundleRefused(str(error)) from error
    plan = plan_from_json(body)
    if canonical_bytes(plan_to_json(plan)) != data:
        raise BundleRefused("plan.json: not canonical JSON; write it with plan_bytes.")
    return plan


def plan_digest(plan: DevicePlan) -> str:
    """Return the SHA-256 (hex) of ``plan.json``: what a task names."""
    return sha256_hex(plan_bytes(plan))


def _require_whole(plan: DevicePlan) -> None:
    if plan.examples not in EXAMPLES:
        raise BundleRefused(f"examples: must be one of {', '.join(EXAMPLES)}.")
    for path, names in (
        ("parameters", tuple(spec.name for spec in plan.parameters)),
        ("columns", tuple(spec.name for spec in plan.columns)),
        ("catalogue.attributes", plan.catalogue.attributes),
        ("operators", plan.operators),
    ):
        require_sorted(names, path)
    if len(set(plan.features)) != len(plan.features):
        raise BundleRefused("features: a column is named twice.")
    if not plan.shared:
        raise BundleRefused("parameters: none is shared, so there is nothing to train together.")
    if not plan.columns:
        raise BundleRefused("columns: none; the step would read no example.")
    weights = sum(math.prod(spec.shape) for spec in plan.parameters)
    if weights > MOST_WEIGHTS:
        raise BundleRefused(f"parameters: {weights} weights; at most {MOST_WEIGHTS}.")
    surplus = sorted(set(plan.operators) - ALLOWED_OPERATORS)
    if surplus or not plan.operators:
        raise BundleRefused(f"operators: {', '.join(surplus) or 'none'}; only those of ALLOWED_OPERATORS are run.")


def _parameter(body: object, path: str) -> ParameterSpec:
    fields = Fields(body, path)
    name, shape, scope = fields.text("name"), fields.rows("shape", _size, most=MOST_DIMENSIONS), fields.text("scope")
    fields.end()
    if scope not in tuple(Scope):
        raise BundleRefused(f"{path}.scope: must be shared or private.")
    return ParameterSpec(name, shape, Scope(scope))


def _column(body: object, path: str) -> ColumnSpec:
    fields = Fields(body, path)
    name, dtype = fields.text("name"), fields.text("dtype")
    shape = fields.rows("shape", _size, most=MOST_DIMENSIONS)
    fields.end()
    if dtype not in DTYPES:
        raise BundleRefused(f"{path}.dtype: must be <f4 or <i8.")
    return ColumnSpec(name, dtype, shape)


def _size(value: object, path: str) -> int:
    return checked_integer(value, path, 1, MOST_WEIGHTS)


def _options(body: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(body, Mapping) or len(body) > MOST_COLUMNS:
        raise BundleRefused(f"example_options: must be a JSON object of at most {MOST_COLUMNS} fields.")
    return tuple(
        (checked_text(name, "example_options"), checked_integer(body[name], f"example_options.{name}", 0, 2**31 - 1))
        for name in sorted(body)
    )


def _training_to_json(training: TrainingSpec) -> dict[str, object]:
    privacy = training.example_privacy
    return {
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "candidates": training.candidates,
        "learning_rate": float(training.learning_rate),
        "shuffle": training.shuffle,
        "max_examples": training.max_examples,
        "example_privacy": None
        if privacy is None
        else {"noise_multiplier": float(privacy.noise_multiplier), "l2_clip_norm": float(privacy.l2_clip_norm)},
    }


def _training(body: object) -> TrainingSpec:
    fields = Fields(body, "training")
    training = TrainingSpec(
        epochs=fields.integer("epochs", least=1, most=1000),
        batch_size=fields.integer("batch_size", least=1, most=_MOST_ROWS),
        candidates=fields.integer("candidates", least=2, most=_MOST_ROWS),
        learning_rate=fields.number("learning_rate", above=0.0, most=1e6),
        shuffle=fields.flag("shuffle"),
        max_examples=fields.integer("max_examples", least=1, most=_MOST_EXAMPLES),
        example_privacy=_example_privacy(fields.take("example_privacy")),
    )
    fields.end()
    return training


def _example_privacy(body: object) -> ExamplePrivacy | None:
    if body is None:
        return None
    fields = Fields(body, "training.example_privacy")
    noise, clip = fields.number("noise_multiplier", above=0.0), fields.number("l2_clip_norm", above=0.0)
    fields.end()
    try:
        return ExamplePrivacy(noise, clip)
    except OutOfRange as error:
        raise BundleRefused(f"training.example_privacy: {error}") from error


def _catalogue(body: object) -> CatalogueSpec:
    fields = Fields(body, "catalogue")
    spec = CatalogueSpec(
        name=fields.text("name"),
        domain=fields.text("domain"),
        attributes=fields.rows("attributes", checked_text, most=MOST_COLUMNS),
        max_bytes=fields.integer("max_bytes", least=1, most=MOST_CATALOGUE_BYTES),
    )
    fields.end()
    return spec
