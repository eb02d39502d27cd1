"""plan.json: one way to write a plan, and every field judged with its path."""

from __future__ import annotations

import copy
import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.fields import version_key
from fedlearn.device.mechanism_codec import KINDS, mechanism_from_json, mechanism_to_json
from fedlearn.device.plan import DevicePlan, ParameterSpec, Scope
from fedlearn.device.plan_codec import plan_bytes, plan_digest, plan_from_bytes, plan_from_json, plan_to_json
from fedlearn.errors import BundleRefused
from fedlearn.policy.canonical import canonical_bytes, sha256_hex
from fedlearn.privacy.factorization import INDEPENDENT, Blt, Toeplitz, Tree
from fedlearn.terms import ExamplePrivacy

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

FITTING = {
    "independent": INDEPENDENT,
    "gaussian": INDEPENDENT,
    "banded": Toeplitz((1.0, 0.5, 0.25)),
    "blt": Blt((0.9, 0.5), (0.3, 0.2)),
    "tree": Tree(),
}


def plan() -> DevicePlan:
    return town.small_plan()


def whole_plan() -> DevicePlan:
    """Every optional thing present."""
    made = plan()
    return replace(
        made,
        example_options=(("rows", 4096), ("terms", 24)),
        parameters=(
            *made.parameters,
            ParameterSpec("z.taste", (2, 3), Scope.PRIVATE),
            ParameterSpec("z0", (), Scope.SHARED),
        ),
        training=replace(made.training, example_privacy=ExamplePrivacy(1.5, 0.1)),
        mechanism=town.mechanism(kind="blt", factorization=FITTING["blt"]),
        minimum_runtime="12.0.3.4",
    )


@pytest.mark.parametrize("made", [plan, whole_plan])
def test_round_trip(made: Any) -> None:
    data = plan_bytes(made())
    assert plan_from_bytes(data) == made()
    assert plan_from_json(plan_to_json(made())) == made()
    assert plan_digest(made()) == sha256_hex(data)
    assert data == canonical_bytes(json.loads(data))


def test_the_fields_are_those_of_the_dataclass() -> None:
    body = plan_to_json(plan())
    assert set(body) == {"schema", *DevicePlan.__dataclass_fields__}


def test_whole_numbers_given_for_floats_make_the_same_bytes() -> None:
    terms = town.mechanism(noise_multiplier=2, l2_clip_norm=1)
    training = replace(plan().training, learning_rate=1)
    other = replace(plan(), mechanism=terms, training=training)
    same = replace(plan(), training=replace(training, learning_rate=1.0))
    assert plan_bytes(other) == plan_bytes(same)


def test_what_changes_the_plan_changes_its_digest() -> None:
    base = plan()
    others = [
        replace(base, name="x"),
        replace(base, serves=""),
        replace(base, model="other"),
        replace(base, example_options=(("terms", 1),)),
        replace(base, features=base.features[::-1]),
        replace(base, training=replace(base.training, learning_rate=0.26)),
        replace(base, training=replace(base.training, shuffle=False)),
        replace(base, mechanism=town.mechanism(steps=101)),
        replace(base, catalogue=replace(base.catalogue, max_bytes=1)),
        replace(base, minimum_runtime="0.1.1"),
    ]
    assert len({plan_digest(each) for each in (base, *others)}) == len(others) + 1


NUMBER = "must be a finite number"
INTEGER = "must be an integer"
REFUSED: list[tuple[str, Any, str]] = [
    ("schema", "fedlearn.plan/2", r"schema: must be fedlearn\.plan/1"),
    ("name", "", "name: must be a text"),
    ("name", 7, "name: must be a text"),
    ("name", "x" * 129, "name: must be a text"),
    ("name", "a\nb", "name: must have no control"),
    ("serves", None, "serves: must be a text"),
    ("examples", "diffusion", "examples: must be one of match, two_tower"),
    ("example_options", [], "example_options: must be a JSON object"),
    ("example_options", {"terms": 1.0}, rf"example_options\.terms: {INTEGER}"),
    ("example_options", {"terms": -1}, rf"example_options\.terms: {INTEGER}"),
    ("example_options", {"": 1}, "example_options: must be a text"),
    ("parameters", {}, "parameters: must be a list"),
    ("parameters", [], "parameters: none is shared"),
    ("parameters.0", 3, r"parameters\[0\]: not a JSON object"),
    ("parameters.0.name", "", r"parameters\[0\]\.name"),
    ("parameters.0.shape", 23, r"parameters\[0\]\.shape: must be a list"),
    ("parameters.0.shape", [1] * 9, r"parameters\[0\]\.shape: must be a list of at most 8"),
    ("parameters.0.shape.0", 0, rf"parameters\[0\]\.shape\[0\]: {INTEGER}"),
    ("parameters.0.shape.0", True, rf"parameters\[0\]\.shape\[0\]: {INTEGER}"),
    ("parameters.0.shape.0", 2**24 + 1, rf"parameters\[0\]\.shape\[0\]: {INTEGER}"),
    ("parameters.0.shape", [2**13, 2**13], r"parameters: 67108864 weights; at most"),
    ("parameters.0.scope", "public", r"parameters\[0\]\.scope: must be shared or private"),
    ("parameters.0.scope", "private", "parameters: none is shared"),
    ("parameters.0.extra", 1, r"parameters\[0\]\.extra: no such field"),
    ("parameters", [{"name": "w", "shape": [], "scope": "shared"}] * 2, "parameters: names must be sorted"),
    ("columns", [], "columns: none"),
    ("columns.0.dtype", "<f8", r"columns\[0\]\.dtype: must be <f4 or <i8"),
    ("columns.0.name", "zz", "columns: names must be sorted"),
    ("columns.1.name", "features", "columns: names must be sorted, each once"),
    ("features.1", "words", "features: a column is named twice"),
    ("features.0", 1, r"features\[0\]: must be a text"),
    ("training", None, "training: not a JSON object"),
    ("training.epochs", 0, rf"training\.epochs: {INTEGER}"),
    ("training.epochs", 1.0, rf"training\.epochs: {INTEGER}"),
    ("training.batch_size", 0, rf"training\.batch_size: {INTEGER}"),
    ("training.candidates", 1, rf"training\.candidates: {INTEGER}"),
    ("training.learning_rate", 0.0, rf"training\.learning_rate: {NUMBER}"),
    ("training.learning_rate", "0.1", rf"training\.learning_rate: {NUMBER}"),
    ("training.learning_rate", True, rf"training\.learning_rate: {NUMBER}"),
    ("training.learning_rate", float("nan"), rf"training\.learning_rate: {NUMBER}"),
    ("training.learning_rate", 10**400, rf"training\.learning_rate: {NUMBER}"),
    ("training.shuffle", 1, r"training\.shuffle: must be true or false"),
    ("training.max_examples", 0, rf"training\.max_examples: {INTEGER}"),
    ("training.example_privacy", {}, r"training\.example_privacy\.noise_multiplier: absent"),
    (
        "training.example_privacy",
        {"noise_multiplier": 0.0, "l2_clip_norm": 1.0},
        rf"training\.example_privacy\.noise_multiplier: {NUMBER}",
    ),
    ("training.max_seconds", 5, r"training\.max_seconds: no such field"),
    ("mechanism", [], "mechanism: not a JSON object"),
    ("mechanism.kind", "laplace", r"mechanism\.kind: must be one of"),
    (
        "mechanism.kind",
        "banded",
        r"mechanism\.kind: is banded, but the factorization is that of gaussian or independent",
    ),
    ("mechanism.factorization", {"kind": "tree"}, r"mechanism\.kind: is independent, but .* that of tree"),
    ("mechanism.factorization", {"kind": "tree", "x": 1}, r"mechanism\.factorization: factorization kind"),
    ("mechanism.factorization", None, r"mechanism\.factorization: factorization: not a JSON object"),
    ("mechanism.factorization.coefficients", [1.0, 2.0], r"mechanism\.factorization: coefficients: they increase"),
    ("mechanism.factorization.coefficients", [0.5], r"mechanism\.factorization: coefficients"),
    ("mechanism.factorization.coefficients", ["1"], r"mechanism\.factorization: coefficients"),
    ("mechanism.factorization.coefficients", [1.0] * 5000, r"mechanism\.factorization: more than 4096"),
    ("mechanism.noise_multiplier", 0, rf"mechanism\.noise_multiplier: {NUMBER}"),
    ("mechanism.noise_multiplier", float("inf"), rf"mechanism\.noise_multiplier: {NUMBER}"),
    ("mechanism.noise_multiplier", 10**400, rf"mechanism\.noise_multiplier: {NUMBER}"),
    ("mechanism.l2_clip_norm", -1.0, rf"mechanism\.l2_clip_norm: {NUMBER}"),
    ("mechanism.grid_step", 0.3, r"mechanism\.grid_step: must be a power of two"),
    ("mechanism.grid_step", 2.0, r"mechanism\.grid_step: l2_clip_norm must be 1 to 2\^62"),
    ("mechanism.grid_step", 2.0**-62, r"mechanism\.grid_step: l2_clip_norm must be 1 to 2\^62"),
    ("mechanism.steps", 0, rf"mechanism\.steps: {INTEGER}"),
    ("mechanism.steps", 100.0, rf"mechanism\.steps: {INTEGER}"),
    ("mechanism.steps", 2**31, rf"mechanism\.steps: {INTEGER}"),
    ("mechanism.min_separation", 0, rf"mechanism\.min_separation: {INTEGER}"),
    ("mechanism.max_participations", -1, rf"mechanism\.max_participations: {INTEGER}"),
    ("catalogue", "town", "catalogue: not a JSON object"),
    ("catalogue.attributes", ["b", "a"], r"catalogue\.attributes: names must be sorted"),
    ("catalogue.max_bytes", 0, rf"catalogue\.max_bytes: {INTEGER}"),
    ("catalogue.domain", "", r"catalogue\.domain: must be a text"),
    ("operators", [], "operators: none"),
    ("operators", ["Loop"], "operators: Loop; only those of ALLOWED_OPERATORS"),
    ("operators", ["Mul", "Add"], "operators: names must be sorted"),
    ("minimum_runtime", "", "minimum_runtime: must be a version"),
    ("minimum_runtime", "1.0.0-rc1", "minimum_runtime: must be a version"),
    ("minimum_runtime", "01.0", "minimum_runtime: must be a version"),
    ("minimum_runtime", "1.0\n", "minimum_runtime: must be a version"),
    ("minimum_runtime", 1, "minimum_runtime: must be a version"),
    ("surplus", 1, "surplus: no such field"),
]


@pytest.mark.parametrize(("path", "value", "names"), REFUSED)
def test_refused_with_its_path(path: str, value: Any, names: str) -> None:
    body = copy.deepcopy(plan_to_json(plan()))
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = body
    for part in way:
        at = at[part]
    at[last] = value
    with pytest.raises(BundleRefused, match=f"^{names}"):
        plan_from_json(body)


@pytest.mark.parametrize("path", ["", "training", "mechanism", "catalogue", "parameters.0", "columns.0"])
def test_no_field_may_be_absent(path: str) -> None:
    def part(body: Any) -> Any:
        for step in filter(None, path.split(".")):
            body = body[int(step) if step.isdigit() else step]
        return body

    for name in part(plan_to_json(plan())):
        body = copy.deepcopy(plan_to_json(plan()))
        del part(body)[name]
        with pytest.raises(BundleRefused, match=f"{name}: absent"):
            plan_from_json(body)


@pytest.mark.parametrize("body", [None, [], "plan", 1, True])
def test_what_is_no_object(body: object) -> None:
    with pytest.raises(BundleRefused, match="document: not a JSON object"):
        plan_from_json(body)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 5000, b'{"a":1,"a":2}', b'{"a":NaN}', b"x" * (2**20 + 1)])
def test_bytes_that_are_no_plan(data: bytes) -> None:
    with pytest.raises(BundleRefused):
        plan_from_bytes(data)


def test_bytes_have_one_spelling() -> None:
    data = plan_bytes(plan())
    text = data.decode()
    for other in (
        text + "\n",
        text.replace(",", ", ", 1),
        text.replace('"epochs":2', '"epochs":2.0'),
        text.replace('"learning_rate":0.25', '"learning_rate":25e-2'),
        text.replace('"noise_multiplier":2.0', '"noise_multiplier":2'),
        text.replace('"town-run"', '"\\u0074own-run"'),
        json.dumps(dict(reversed(json.loads(text).items())), separators=(",", ":")),
    ):
        assert other != text
        with pytest.raises(BundleRefused):
            plan_from_bytes(other.encode())


def test_an_invalid_plan_cannot_be_written() -> None:
    for wrong in (
        replace(plan(), name=""),
        replace(plan(), features=list(plan().features)),
        replace(plan(), mechanism=town.mechanism(kind="tree")),
        replace(plan(), example_options=(("b", 1), ("a", 2))),
    ):
        with pytest.raises(BundleRefused):
            plan_bytes(wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("other", KINDS)
def test_a_kind_has_its_own_factorization(kind: str, other: str) -> None:
    terms = town.mechanism(kind=kind, factorization=FITTING[other])
    if FITTING[kind] == FITTING[other]:
        assert mechanism_from_json(mechanism_to_json(terms), "m") == terms
        return
    with pytest.raises(BundleRefused, match=rf"^m\.kind: is {kind}"):
        mechanism_from_json(mechanism_to_json(terms), "m")


def test_no_more_bands_than_steps() -> None:
    terms = town.mechanism(kind="banded", factorization=Toeplitz((1.0,) * 101))
    with pytest.raises(BundleRefused, match=r"coefficients: 101; at most 100"):
        mechanism_from_json(mechanism_to_json(terms), "m")


def test_the_grid_step_of_the_privacy_code_fits() -> None:
    from fedlearn.privacy.grid import grid_step

    for clip in (1e-3, 0.1, 0.999, 1.0, 1.5, 1e4):
        terms = town.mechanism(l2_clip_norm=clip, grid_step=grid_step(clip))
        assert mechanism_from_json(mechanism_to_json(terms), "m") == terms


def test_versions_are_compared_number_by_number() -> None:
    rising = ["0", "0.0.1", "0.1", "0.9.9", "0.10", "1", "1.0.0.1", "1.2", "2"]
    keys = [version_key(version) for version in rising]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert version_key("1") == version_key("1.0.0.0")


def test_the_page_names_every_field_file_and_operator(repository: Path) -> None:
    from dataclasses import fields

    from fedlearn.device.bundle import ALWAYS, PRIVATE, PRIVATE_STEP
    from fedlearn.device.mechanism import MechanismTerms
    from fedlearn.device.operators import ALLOWED_OPERATORS, MOST_NODES, OPSETS
    from fedlearn.device.plan import CatalogueSpec, TrainingSpec
    from fedlearn.proto import gateway_pb2

    page = (repository / "docs" / "bundle.md").read_text(encoding="utf-8")
    operators = page.split("those of the shipped models:\n")[1].split(".\n")[0].split()
    assert operators == sorted(ALLOWED_OPERATORS)
    assert f"{OPSETS.start}..{OPSETS.stop - 1}, at most {MOST_NODES} nodes" in page
    names = {
        *(field.name for field in (*fields(DevicePlan), *fields(MechanismTerms))),
        *(f"training.{field.name}" for field in fields(TrainingSpec)),
        *(f"catalogue.{field.name}" for field in fields(CatalogueSpec)),
        *(field.name for field in gateway_pb2.DeviceTask.DESCRIPTOR.fields),
        *(*ALWAYS, PRIVATE, PRIVATE_STEP),
    } - {"training", "catalogue"}
    assert not [name for name in names if f"`{name}`" not in page]
