"""A small town for tests of the device runtime: keys, roster, status, policy, plan, bundle, task, catalogue.

How to use it, from any test file::

    import importlib.util
    from pathlib import Path

    _spec = importlib.util.spec_from_file_location("device_town", Path(__file__).parents[1] / "unit" / "device_town.py")
    town = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(town)

    bundle = open_bundle(town.signed_bundle(), root_keys=[town.root_key().public], now=town.NOW, runtime=town.RUNTIME)
    task = open_task(town.signed_task(step=3), town.operator_key().public)
    status = open_status(town.signed_status(), town.roster(), town.NOW, 0)

Every function is pure but for the keys, which are fresh in each process (and remembered in it), so equal arguments give
equal bytes. ``now`` is when things are issued: ``NOW`` unless given; a test of a real daemon gives ``time.time()``.
What a test wants to be different is an argument: ``signed_bundle(plan=replace(small_plan(), ...))``,
``signed_task(attempt=1, token=b"x" * 16)``, ``city_policy(retention_days=3)``.

The graphs are the match model (conditional logit, plain SGD), written by hand with the onnx package, and onnxruntime
runs them: ``step.onnx`` really trains, ``infer.onnx`` really ranks. ``exported_graphs()`` gives those of the real
exporter instead: ``signed_bundle(graphs=town.exported_graphs())``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedlearn.catalogue import Catalogue, Item
from fedlearn.device.bundle import build_bundle
from fedlearn.device.catalogue_bundle import build_catalogue_bundle, spec_of
from fedlearn.device.mechanism import MechanismTerms
from fedlearn.device.operators import operators_of
from fedlearn.device.plan import ColumnSpec, DevicePlan, ParameterSpec, Scope, TrainingSpec
from fedlearn.device.plan_codec import plan_bytes, plan_digest
from fedlearn.device.task import DeviceTask
from fedlearn.device.task_codec import sign_task, with_digest
from fedlearn.device.weights import expected_bytes
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
from fedlearn.policy.dsse import POLICY_TYPE, ROSTER_TYPE, STATUS_TYPE, sign_envelope
from fedlearn.policy.load import policy_bytes
from fedlearn.policy.roster import Roster, roster_bytes
from fedlearn.policy.status import Status, status_bytes
from fedlearn.policy.times import format_time
from fedlearn.privacy.factorization import INDEPENDENT

NOW = 1_800_000_000.0
DAY = 86_400.0
RUNTIME = "0.1.0"

CHAT = "org.city.chat"
READING = "org.city.reading"
SHOPPING = "org.city.shopping"
MAPS = "org.city.maps"
SURFACE = "org.city.surface"
OPERATOR = "city-lab"
POPULATION = "city"
TRAIN = "train-restaurants"
RECOMMEND = "recommend-restaurants"
DOMAIN = "restaurant"

# column of fedlearn.features -> data types that it needs, in the order of fedlearn.features.FEATURES
_CHAT = (DataType.MESSAGE_CONTENT,)
_CHOICES = (DataType.CHOICE,)
FEATURE_NEEDS: dict[str, tuple[DataType, ...]] = {
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
WIDTH = len(FEATURE_NEEDS)
BATCH = 8
CANDIDATES = 8


class Key:
    """An Ed25519 key that signs envelopes and tasks; a test may make as many as it likes."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> str:
        """Return the signature in hexadecimal."""
        return self._key.sign(message).hex()


@lru_cache
def root_key() -> Key:
    """The phone maker's root key."""
    return Key()


@lru_cache
def approvers() -> tuple[Key, Key, Key]:
    """Three approvers, of whom two must sign."""
    return Key(), Key(), Key()


@lru_cache
def status_key() -> Key:
    """Signs statuses."""
    return Key()


@lru_cache
def operator_key() -> Key:
    """Signs the operator's tasks."""
    return Key()


def roster(version: int = 1, now: float = NOW, **changes: Any) -> Roster:
    """Two of three approvers, one status key; holds for 300 days."""
    made = Roster(
        version=version,
        expires=format_time(now + 300 * DAY),
        threshold=2,
        approvers=tuple(key.public for key in approvers()),
        status_keys=(status_key().public,),
    )
    return replace(made, **changes)


def signed_roster(version: int = 1, now: float = NOW, **changes: Any) -> bytes:
    """The roster under the root's signature."""
    return sign_envelope(ROSTER_TYPE, roster_bytes(roster(version, now, **changes)), [root_key()])


def status(version: int = 1, now: float = NOW, stopped: Sequence[str] = (), revoked: Sequence[str] = ()) -> Status:
    """A status issued at ``now``."""
    return Status(version=version, issued=format_time(now), stopped=tuple(stopped), revoked=tuple(revoked))


def signed_status(
    version: int = 1, now: float = NOW, stopped: Sequence[str] = (), revoked: Sequence[str] = ()
) -> bytes:
    """The status under the status key's signature."""
    return sign_envelope(STATUS_TYPE, status_bytes(status(version, now, stopped, revoked)), [status_key()])


def city_policy(now: float = NOW, *, retention_days: int = 30, disputed: Sequence[str] = (), **changes: Any) -> Policy:
    """Chat, reading and shopping apps; rankings for the surface and the maps app; training for one operator.

    Args:
        now: holds for 200 days from then.
        retention_days: of every source.
        disputed: apps whose sources are disputed.
        changes: fields of the policy.
    """
    both = (RECOMMEND, TRAIN)
    sources = tuple(
        Source(app, owner, kind, both, "own_app", "drop", "off", app in disputed, retention_days)
        for app, owner, kind in (
            (CHAT, "City Chat", DataType.MESSAGE_CONTENT),
            (READING, "City Books", DataType.CHOICE),
            (SHOPPING, "City Market", DataType.CHOICE),
            (MAPS, "City Maps", DataType.CHOICE),
        )
    )
    made = Policy(
        name="city",
        version=1,
        expires=format_time(now + 200 * DAY),
        population=Population(POPULATION, PopulationKind.ENROLLED, 1000),
        purposes=(
            Purpose(RECOMMEND, PurposeKind.RECOMMEND, "Suggest restaurants on this phone.", 1, (SURFACE, MAPS)),
            Purpose(TRAIN, PurposeKind.TRAIN, "Improve suggestions with private sums of many phones.", 1, (OPERATOR,)),
        ),
        recipients=(
            Recipient(SURFACE, RecipientKind.SURFACE, "Phone", ""),
            Recipient(MAPS, RecipientKind.APP, "City Maps", ""),
            Recipient(OPERATOR, RecipientKind.OPERATOR, "City Lab", operator_key().public),
        ),
        sources=sources,
        features=tuple(Feature(name, needs, "matches places", 1) for name, needs in FEATURE_NEEDS.items()),
        mechanism=MechanismFloors(
            kinds=("banded", "blt", "independent", "tree"),
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
    return replace(made, **changes)


def signed_policy(policy: Policy | None = None, now: float = NOW, signers: Sequence[Key] | None = None) -> bytes:
    """A policy under the signatures of two approvers."""
    keys = approvers()[:2] if signers is None else signers
    return sign_envelope(POLICY_TYPE, policy_bytes(city_policy(now) if policy is None else policy), keys)


def mechanism(**changes: Any) -> MechanismTerms:
    """Independent noise over 100 steps, b = 10, k = 5."""
    made = MechanismTerms(
        kind="independent",
        factorization=INDEPENDENT,
        noise_multiplier=2.0,
        l2_clip_norm=1.0,
        grid_step=2.0**-30,
        steps=100,
        min_separation=10,
        max_participations=5,
    )
    return replace(made, **changes)


def small_plan(**changes: Any) -> DevicePlan:
    """The match model over all columns of ``fedlearn.features``, for ``catalogue()`` and ``city_policy()``."""
    made = DevicePlan(
        name="town-run",
        population=POPULATION,
        purpose=TRAIN,
        recipient=OPERATOR,
        serves=RECOMMEND,
        model="match",
        examples="match",
        example_options=(),
        parameters=(ParameterSpec("weights", (WIDTH,), Scope.SHARED),),
        columns=(
            ColumnSpec("features", "<f4", (CANDIDATES, WIDTH)),
            ColumnSpec("label", "<i8", ()),
            ColumnSpec("logq", "<f4", (CANDIDATES,)),
        ),
        features=tuple(FEATURE_NEEDS),
        training=TrainingSpec(
            epochs=2,
            batch_size=BATCH,
            candidates=CANDIDATES,
            learning_rate=0.25,
            shuffle=True,
            max_examples=200,
            example_privacy=None,
        ),
        mechanism=mechanism(),
        catalogue=spec_of(catalogue()),
        operators=operators_in(hand_made_graphs()),
        minimum_runtime=RUNTIME,
    )
    return replace(made, **changes)


def operators_in(graphs: Mapping[str, bytes]) -> tuple[str, ...]:
    """What a plan for these graphs lists."""
    return tuple(sorted(set().union(*map(operators_of, graphs.values()))))


def weights(plan: DevicePlan | None = None) -> bytes:
    """Zeros for every shared weight."""
    return bytes(expected_bytes((small_plan() if plan is None else plan).shared))


def bundle_files(
    plan: DevicePlan | None = None,
    *,
    now: float = NOW,
    policy: Policy | None = None,
    graphs: Mapping[str, bytes] | None = None,
    roster_version: int = 1,
    golden: bytes = b'{"schema":"fedlearn.golden/1"}',
) -> dict[str, bytes]:
    """The files of a bundle, without its manifest."""
    used = hand_made_graphs() if graphs is None else graphs
    plan = small_plan(operators=operators_in(used)) if plan is None else plan
    files = {
        "plan.json": plan_bytes(plan),
        "weights.bin": weights(plan),
        "golden.json": golden,
        "policy.dsse.json": signed_policy(policy, now),
        "roster.dsse.json": signed_roster(roster_version, now),
        **used,
    }
    if plan.private:
        files["private.bin"] = bytes(expected_bytes(plan.private))
    return files


def signed_bundle(
    plan: DevicePlan | None = None,
    *,
    now: float = NOW,
    days: float = 30.0,
    signers: Sequence[Key] | None = None,
    policy: Policy | None = None,
    graphs: Mapping[str, bytes] | None = None,
    roster_version: int = 1,
    golden: bytes = b'{"schema":"fedlearn.golden/1"}',
) -> bytes:
    """A bundle under two approvers' signatures that holds for ``days`` from ``now``."""
    files = bundle_files(plan, now=now, policy=policy, graphs=graphs, roster_version=roster_version, golden=golden)
    return build_bundle(files, expires=now + days * DAY, signers=approvers()[:2] if signers is None else signers)


def task(plan: DevicePlan | None = None, *, now: float = NOW, **changes: Any) -> DeviceTask:
    """A task for ``plan`` at its first step, issued at ``now`` and good for an hour; its digest is set.

    The token follows from run, step and attempt, so that different steps have different tokens.
    """
    plan = small_plan() if plan is None else plan
    made = DeviceTask(
        run_id="town-run.1",
        population=plan.population,
        purpose=plan.purpose,
        recipient=plan.recipient,
        step=0,
        attempt=0,
        plan_digest=plan_digest(plan),
        weights_digest=hashlib.sha256(weights(plan)).hexdigest(),
        token=b"",
        issued=now,
        expires=now + 3600.0,
        round_size=100,
        mechanism=plan.mechanism,
        shuffle_seed=7,
        digest=b"",
    )
    made = replace(made, **changes)
    if not made.token:
        named = f"{made.run_id}/{made.step}/{made.attempt}".encode()
        made = replace(made, token=hashlib.sha256(named).digest()[:16])
    return with_digest(made)


def signed_task(
    plan: DevicePlan | None = None, *, now: float = NOW, signer: Key | None = None, **changes: Any
) -> bytes:
    """``task`` under the operator's signature: a ``SignedTask``."""
    return sign_task(task(plan, now=now, **changes), operator_key() if signer is None else signer)


@lru_cache
def catalogue(version: int = 1) -> Catalogue:
    """40 restaurants and 10 other places, in Chinese and English; another version has another first item."""
    cuisines = (
        ("川菜", "Sichuan"),
        ("粤菜", "Cantonese"),
        ("意餐", "Italian"),
        ("素食", "vegetarian"),
        ("日料", "Japanese"),
    )
    dishes = (
        ("麻辣火锅", "mala hotpot"),
        ("早茶", "dim sum"),
        ("margherita pizza", "tiramisu"),
        ("豆腐煲", "tofu pot"),
        ("寿司", "sushi"),
        ("烤鸭", "roast duck"),
        ("牛肉面", "beef noodles"),
        ("饺子", "dumplings"),
    )
    facilities = (("wifi",), ("停车位", "parking"), ("outdoor seating",), ())
    places = [Item("attraction", name, {"theme": (theme,)}, price=price) for name, theme, price in _PLACES]
    items = []
    for number in range(40):
        attributes = {"cuisine": cuisines[number % 5], "dish": dishes[number % 8]}
        if facilities[number % 4]:
            attributes["facility"] = facilities[number % 4]
        items.append(
            Item(
                DOMAIN,
                f"{('小馆', 'Kitchen', '饭店', 'Corner')[number % 4]} {number or version * 100}",
                attributes,
                price=None if number % 10 == 9 else 20.0 + 15.0 * (number * 7 % 20),
                rating=None if number % 13 == 12 else 3.0 + (number * 3 % 20) / 10,
                nearby=(places[number % len(places)].key,),
            )
        )
    books = [Item("book", f"{cuisine[0]}入门", {"cuisine": cuisine}) for cuisine in cuisines]
    return Catalogue("town", DOMAIN, tuple(items), (*places, *books))


_PLACES = (
    ("青山公园", "园林", 0.0),
    ("旧城博物馆", "历史", 60.0),
    ("River Walk", "water", 0.0),
    ("Old Mill", "history", 15.0),
    ("动物园", "动物", 40.0),
)


def signed_catalogue(
    version: int = 1, *, now: float = NOW, days: float = 60.0, signers: Sequence[Key] | None = None
) -> bytes:
    """A catalogue bundle of ``catalogue(version)``, signed by two approvers."""
    keys = approvers()[:2] if signers is None else signers
    return build_catalogue_bundle(catalogue(version), version=version, expires=now + days * DAY, signers=keys)


@lru_cache
def hand_made_graphs(width: int = WIDTH, batch: int = BATCH, candidates: int = CANDIDATES) -> Mapping[str, bytes]:
    """``step.onnx`` and ``infer.onnx`` of the match model: mean cross-entropy, plain SGD, no ridge."""
    from onnx import TensorProto, helper

    f32, i64, flag = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    node, info = helper.make_node, helper.make_tensor_value_info
    constants = [
        helper.make_tensor("last", i64, [1], [-1]),
        helper.make_tensor("first_two", i64, [2], [0, 1]),
        helper.make_tensor("positions", i64, [1, candidates], list(range(candidates))),
        helper.make_tensor("one", f32, [], [1.0]),
    ]
    nodes = [
        node("Add", ["p.weights", "d.weights"], ["w"]),
        node("MatMul", ["c.features", "w"], ["utility"]),
        node("Sub", ["utility", "c.logq"], ["logits"]),
        node("ReduceMax", ["logits", "last"], ["top"], keepdims=1),
        node("Sub", ["logits", "top"], ["shifted"]),
        node("Exp", ["shifted"], ["powers"]),
        node("ReduceSum", ["powers", "last"], ["total"], keepdims=1),
        node("Div", ["powers", "total"], ["share"]),
        node("Unsqueeze", ["c.label", "last"], ["label_column"]),
        node("Equal", ["label_column", "positions"], ["is_chosen"]),
        node("Cast", ["is_chosen"], ["chosen"], to=f32),
        node("Sub", ["share", "chosen"], ["error"]),
        node("Cast", ["mask"], ["rows"], to=f32),
        node("ReduceSum", ["rows"], ["row_count"], keepdims=0),
        node("Max", ["row_count", "one"], ["divisor"]),
        node("Div", ["rows", "divisor"], ["row_weight"]),
        node("Unsqueeze", ["row_weight", "last"], ["row_column"]),
        node("Mul", ["error", "row_column"], ["weighted"]),
        node("Unsqueeze", ["weighted", "last"], ["spread"]),
        node("Mul", ["spread", "c.features"], ["parts"]),
        node("ReduceSum", ["parts", "first_two"], ["gradient"], keepdims=0),
        node("Mul", ["gradient", "learning_rate"], ["change"]),
        node("Sub", ["d.weights", "change"], ["next.weights"]),
    ]
    inputs = [
        info("p.weights", f32, [width]),
        info("d.weights", f32, [width]),
        info("c.features", f32, [batch, candidates, width]),
        info("c.label", i64, [batch]),
        info("c.logq", f32, [batch, candidates]),
        info("mask", flag, [batch]),
        info("learning_rate", f32, []),
    ]
    step = helper.make_graph(nodes, "step", inputs, [info("next.weights", f32, [width])], constants)
    infer = helper.make_graph(
        [node("MatMul", ["features", "p.weights"], ["scores"])],
        "infer",
        [info("p.weights", f32, [width]), info("features", f32, ["N", width])],
        [info("scores", f32, ["N"])],
    )
    return {"step.onnx": model_bytes(step), "infer.onnx": model_bytes(infer)}


@lru_cache
def private_graphs() -> Mapping[str, bytes]:
    """The hand-made graphs and a ``private_step.onnx`` that adds the noise it is given, without clipping: for forms."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_from_string(hand_made_graphs()["step.onnx"])
    model.graph.input.append(helper.make_tensor_value_info("n.weights", TensorProto.FLOAT, [WIDTH]))
    model.graph.node[-1].output[0] = "quiet"
    model.graph.node.append(helper.make_node("Add", ["quiet", "n.weights"], ["next.weights"]))
    return {**hand_made_graphs(), "private_step.onnx": model_bytes(model.graph)}


def with_private_parameter(graphs: Mapping[str, bytes], name: str, shape: Sequence[int]) -> dict[str, bytes]:
    """The graphs with one more parameter: carried along by the step, ignored by the ranking."""
    import onnx
    from onnx import TensorProto, helper

    made = {}
    for file, data in graphs.items():
        graph = onnx.load_from_string(data).graph
        graph.input.append(helper.make_tensor_value_info(f"p.{name}", TensorProto.FLOAT, shape))
        if file != "infer.onnx":
            graph.input.append(helper.make_tensor_value_info(f"d.{name}", TensorProto.FLOAT, shape))
            graph.output.append(helper.make_tensor_value_info(f"next.{name}", TensorProto.FLOAT, shape))
            graph.node.append(helper.make_node("Add", [f"p.{name}", f"d.{name}"], [f"next.{name}"]))
        made[file] = model_bytes(graph)
    return made


def model_bytes(graph: Any, **changes: Any) -> bytes:
    """An ONNX model of one graph, as a file."""
    from onnx import helper

    made = helper.make_model(
        graph, **{"opset_imports": [helper.make_opsetid("", 20)], "ir_version": 10, "producer_name": "", **changes}
    )
    return made.SerializeToString(deterministic=True)


@lru_cache
def exported_graphs() -> Mapping[str, bytes]:
    """The same model as the real exporter writes it; takes seconds, and needs torch."""
    from fedlearn.export.infer import infer_onnx
    from fedlearn.export.step import step_onnx
    from fedlearn.models.match import MatchModel

    model = MatchModel(WIDTH)
    return {"step.onnx": step_onnx(model, small_plan().columns, BATCH), "infer.onnx": infer_onnx(model)}
