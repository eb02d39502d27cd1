"""One local round: the good case, each refusal, each change of mind, each failure of the gateway."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedlearn.device.padding import size_class
from fedlearn.device.plan import ParameterSpec, Scope
from fedlearn.errors import Refusal, StoreFailed, WorkerFailed
from fedlearn.policy.document import DataType
from fedlearn.proto import gateway_pb2 as pb
from fedlearn.proto import wire_pb2
from fedlearn_client.fakes import FIT, Fault
from fedlearn_client.handover import private_basis_of
from fedlearn_client.hooks import Method, Thermal


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


uplink_town: Any = _load("uplink_town")
town = uplink_town.town


@pytest.fixture
def phone(tmp_path: Path) -> Iterator[Any]:
    made = uplink_town.Phone(tmp_path)
    yield made
    made.store.close()


def test_a_round(phone: Any) -> None:
    assert phone.run() == "acknowledged"
    assert phone.methods() == ["CheckIn", "Fetch", "Upload"]
    assert phone.states() == [(method, "acknowledged") for method in phone.methods()]
    assert phone.participated() == [0]
    assert phone.outcomes() == ["acknowledged"]
    assert list(phone.gateway.contributions) == [uplink_town.token_of(phone.uploads()[0])]


def test_the_log_has_the_very_bytes_of_every_request(phone: Any) -> None:
    phone.run()
    logged = list(reversed(phone.egress.entries(10, with_bytes=True)))
    assert [entry.body for entry in logged] == [seen.body for seen in phone.gateway.requests]
    for entry in logged:
        assert entry.size == len(entry.body)
        assert entry.sha256 == hashlib.sha256(entry.body).digest()
        assert entry.size == size_class(entry.size)


def test_a_request_is_in_the_log_before_it_leaves(phone: Any) -> None:
    states: list[list[tuple[str, str]]] = []
    phone.gateway.on_call = lambda _: states.append(phone.states())
    phone.run()
    assert [seen[-1] for seen in states] == [("CheckIn", "sent"), ("Fetch", "sent"), ("Upload", "sent")]


def test_without_a_grant_there_is_no_request(tmp_path: Path) -> None:
    phone = uplink_town.Phone(tmp_path, grant=False)
    for _ in range(10):
        assert phone.run() == "refused: no_grant"
        phone.scheduler.tick()
        phone.clock.advance(86_400 / 10)
    assert phone.gateway.requests == []
    assert phone.states() == []


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"charging": False}, "refused: not_charging"),
        ({"idle": False}, "refused: in_use"),
        ({"unmetered": False}, "refused: metered"),
        ({"battery": 0.29}, "refused: battery_low"),
        ({"battery": float("nan")}, "refused: battery_low"),
        ({"thermal": Thermal.MODERATE}, "refused: too_warm"),
    ],
)
def test_a_phone_that_is_not_fit_makes_no_request(phone: Any, change: dict[str, Any], outcome: str) -> None:
    phone.conditions.state = dataclasses.replace(FIT, **change)
    assert phone.run() == outcome
    assert phone.gateway.requests == []


def test_a_phone_that_is_just_fit_trains(phone: Any) -> None:
    phone.conditions.state = dataclasses.replace(FIT, battery=0.3, thermal=Thermal.LIGHT)
    assert phone.run() == "acknowledged"


def test_what_else_lets_no_request_out(phone: Any) -> None:
    phone.scheduler.pause(True)
    assert phone.run() == "refused: paused"
    phone.scheduler.pause(False)
    phone.examples.examples.clear()
    assert phone.run() == "refused: no_examples"
    assert phone.round.run("no such purpose") == "refused: no_bundle"
    phone.clock.advance(31 * 86_400)
    assert phone.run() == "refused: no_bundle"  # it has expired
    assert phone.gateway.requests == []


def test_an_old_status_is_renewed_by_the_check_in_itself(phone: Any) -> None:
    phone.clock.advance(25 * 3600)
    assert phone.run() == "refused: status_old"
    assert phone.methods() == ["CheckIn"]  # and the task in its reply was not even opened
    phone.gateway.offer_status(town.signed_status(2, now=phone.clock.now()), 2)
    assert phone.run() == "acknowledged"
    assert phone.installed.status().version == 2
    first, second = (seen.body for seen in phone.gateway.requests[:2])
    assert len(first) == len(second) == 1024


@pytest.mark.parametrize("what", ["plan_digest", "digest"])
def test_the_kill_switch(phone: Any, what: str) -> None:
    stopped = getattr(phone.installed.bundle_for(town.TRAIN), what)
    phone.gateway.offer_status(town.signed_status(2, stopped=[stopped]), 2)
    assert phone.run() == "refused: stopped"
    assert phone.run() == "refused: stopped"
    assert phone.methods() == ["CheckIn", "CheckIn"]
    phone.gateway.offer_status(town.signed_status(3), 3)
    assert phone.run() == "acknowledged"


def test_a_bad_status_changes_nothing(phone: Any) -> None:
    phone.gateway.offer_status(b"{}", 9)
    assert phone.run() == "acknowledged"
    assert phone.installed.status().version == 1
    assert [event.kind for event in phone.audit.events].count("status_refused") == 1


def _lies(**changes: Any) -> Any:
    return lambda task: dataclasses.replace(task, **changes)


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (_lies(round_size=1), Refusal.POLICY),
        (_lies(plan_digest="ab" * 32), Refusal.PLAN),
        (_lies(recipient="somebody-else"), Refusal.PLAN),
        (lambda task: dataclasses.replace(task, expires=task.issued + 9 * 86_400), Refusal.EXPIRED),
        (_lies(mechanism=town.mechanism(noise_multiplier=0.6)), Refusal.PLAN),
        (_lies(weights_digest="ab" * 32), Refusal.WEIGHTS),
        (_lies(step=7), Refusal.HISTORY),
    ],
)
def test_a_refused_task_costs_nothing(phone: Any, lie: Any, reason: Refusal) -> None:
    phone.gateway.alter = lie
    assert phone.run() == f"refused: {reason}"
    assert phone.uploads() == []
    assert phone.participated() == []
    assert phone.store.rows("SELECT count(*) FROM tokens") == [(0,)]
    assert phone.outcomes() == [f"refused: {reason}"]


@pytest.mark.parametrize(
    ("method", "fault", "outcome"),
    [
        (Method.CHECK_IN, Fault.UNREACHABLE, "abandoned: transport"),
        (Method.CHECK_IN, Fault.REPLY_LOST, "abandoned: transport"),
        (Method.CHECK_IN, Fault.GARBAGE, "abandoned: transport"),
        (Method.CHECK_IN, Fault.EMPTY, "no_task"),
        (Method.CHECK_IN, Fault.NO_TASK, "no_task"),
        (Method.CHECK_IN, Fault.BAD_SIGNATURE, "refused: bad_signature"),
        (Method.CHECK_IN, Fault.EXPIRED, "refused: expired"),
        (Method.FETCH, Fault.UNREACHABLE, "abandoned: transport"),
        (Method.FETCH, Fault.GARBAGE, "abandoned: transport"),
        (Method.FETCH, Fault.EMPTY, "refused: wrong_weights"),
        (Method.FETCH, Fault.WRONG_WEIGHTS, "refused: wrong_weights"),
        (Method.FETCH, Fault.ENDLESS_WEIGHTS, "refused: wrong_weights"),
    ],
)
def test_a_fault_before_the_upload_costs_nothing(phone: Any, method: Method, fault: Fault, outcome: str) -> None:
    phone.gateway.fail_next(method, fault)
    assert phone.run() == outcome
    assert phone.participated() == []
    assert phone.uploads() == []
    assert phone.run() == "acknowledged"  # and nothing is left of it


def test_a_token_is_good_for_one_contribution(phone: Any) -> None:
    assert phone.run() == "acknowledged"
    phone.gateway.advance(10)
    phone.gateway.fail_next(Method.CHECK_IN, Fault.REPLAYED_TOKEN)
    assert phone.run() == f"refused: {Refusal.TOKEN}"
    assert phone.participated() == [0]


def test_the_same_step_is_refused_and_so_is_one_too_soon(phone: Any) -> None:
    assert phone.run() == "acknowledged"
    phone.gateway.attempt = 1
    assert phone.run() == f"refused: {Refusal.SEPARATION}"
    phone.gateway.advance(9)
    assert phone.run() == f"refused: {Refusal.SEPARATION}"
    phone.gateway.advance(1)
    assert phone.run() == "acknowledged"
    assert phone.participated() == [0, 10]


@pytest.mark.parametrize(("fault", "outcome"), [(Fault.LATE, "late"), (Fault.REJECTED, "rejected")])
def test_late_and_rejected_uploads_are_not_sent_again(phone: Any, fault: Fault, outcome: str) -> None:
    phone.gateway.fail_next(Method.UPLOAD, fault)
    assert phone.run() == outcome
    assert phone.participated() == [0]
    assert phone.outcomes() == [outcome]
    assert phone.round.resume() == []
    assert len(phone.uploads()) == 1


@pytest.mark.parametrize("fault", [Fault.UNREACHABLE, Fault.REPLY_LOST, Fault.GARBAGE, Fault.EMPTY])
@pytest.mark.parametrize("restart", [False, True])
def test_an_upload_without_an_answer_is_sent_again_with_the_same_bytes(phone: Any, fault: Fault, restart: bool) -> None:
    phone.gateway.fail_next(Method.UPLOAD, fault, times=2)
    assert phone.run() == "sent"
    assert phone.outcomes() == ["sent"]
    if restart:
        phone.restart()
    assert [outcome.words for outcome in phone.round.resume()] == ["sent"]
    assert [outcome.words for outcome in phone.round.resume()] == ["acknowledged"]
    assert len(set(phone.uploads())) == 1
    assert len(phone.gateway.contributions) == 1
    assert phone.participated() == [0]
    assert phone.outcomes() == ["acknowledged"]


def test_an_upload_that_expired_is_given_up(phone: Any) -> None:
    phone.gateway.fail_next(Method.UPLOAD, Fault.UNREACHABLE)
    phone.run()
    phone.clock.advance(3601)
    assert phone.round.resume() == []
    assert phone.uploads() == []
    assert phone.states()[-1] == ("Upload", "failed")


def test_a_withdrawal_while_it_trains_ends_the_round(phone: Any) -> None:
    phone.workers.on_train = phone.withdraw
    assert phone.run() == "abandoned: consent_changed"
    assert phone.uploads() == []
    assert phone.participated() == [0]  # the charge stays
    assert phone.outcomes() == ["abandoned: consent_changed"]


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({"charging": False}, "abandoned: not_charging"),
        ({"thermal": Thermal.SEVERE}, "abandoned: too_warm"),
    ],
)
def test_conditions_are_watched_while_it_trains(phone: Any, change: dict[str, Any], outcome: str) -> None:
    def spoil() -> None:
        phone.conditions.state = dataclasses.replace(FIT, **change)

    phone.workers.on_train = spoil
    assert phone.run() == outcome
    assert phone.participated() == [0]
    assert phone.uploads() == []
    assert phone.outcomes() == [outcome]


def test_pause_kill_switch_and_off_switch_are_watched_while_it_trains(phone: Any) -> None:
    phone.workers.on_train = lambda: phone.scheduler.pause(True)
    assert phone.run() == "abandoned: paused"
    phone.scheduler.pause(False)
    phone.gateway.advance(10)
    phone.workers.on_train = lambda: phone.installed.update_status(town.signed_status(2, stopped=["*"]))
    assert phone.run() == "abandoned: stopped"
    phone.installed.update_status(town.signed_status(3))
    phone.gateway.advance(10)
    phone.workers.on_train = lambda: phone.consent.set_owner(uplink_town.Age.ADULT, personal_off=True)
    assert phone.run() == "abandoned: consent_changed"
    assert phone.uploads() == []
    assert phone.participated() == [0, 10, 20]


def test_a_task_that_expires_while_it_trains(phone: Any) -> None:
    phone.workers.on_train = lambda: phone.clock.advance(3601)
    assert phone.run() == "abandoned: no_time"
    assert phone.uploads() == []
    assert phone.participated() == [0]


def test_a_training_ends_before_its_task_expires(phone: Any) -> None:
    """A gateway can not pick an expiry that only a phone with much to learn misses."""
    phone.gateway.alter = lambda task: dataclasses.replace(task, expires=phone.clock.now() + 100.0)
    assert phone.run() == "acknowledged"
    assert 39.0 < phone.workers.deadlines[0] <= 40.0
    phone.gateway.advance(10)
    phone.gateway.alter = lambda task: dataclasses.replace(task, expires=phone.clock.now() + 59.0)
    assert phone.run() == "abandoned: no_time"
    assert phone.participated() == [0]  # too short a task is not charged


def _sizes(phone: Any) -> list[tuple[str, int]]:
    return [(seen.method.value, len(seen.body)) for seen in phone.gateway.requests]


def _contribution(upload: bytes) -> Any:
    return wire_pb2.Envelope.FromString(pb.UploadRequest.FromString(upload).contribution).contribution


def _fail() -> None:
    raise WorkerFailed("worker: died.")


def _crash() -> None:
    raise ValueError("anything else")


@pytest.mark.parametrize("fault", ["died", "crashed", "over_the_clip", "no_examples", "bad_examples"])
def test_whatever_goes_wrong_with_the_data_zeros_are_sent_and_charged(
    phone: Any, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a gateway reads from the missing upload what the data made of the weights it chose."""
    match fault:
        case "died":
            phone.workers.on_train = _fail
        case "crashed":
            phone.workers.on_train = _crash
        case "over_the_clip":
            phone.workers.values = [2**31] + [0] * (town.WIDTH - 1)
        case "no_examples":
            phone.gateway.on_call = lambda method: phone.examples.examples.clear() if method is Method.FETCH else None
        case "bad_examples":
            many = phone.plan.training.max_examples

            def occasions(purpose: str, recipient: str, limit: int) -> Iterator[Any]:
                if limit == many:
                    raise UnicodeDecodeError("utf-8", b"", 0, 1, "")
                return iter([uplink_town.WISH])

            monkeypatch.setattr(phone.examples, "occasions", occasions)
    assert phone.run() == "acknowledged"
    other = uplink_town.Phone(tmp_path / "other")
    other.workers.values = [1] * town.WIDTH
    assert other.run() == "acknowledged"
    assert _sizes(phone) == _sizes(other)
    assert phone.states() == other.states()
    assert phone.participated() == other.participated() == [0]
    zeros, trained = _contribution(phone.uploads()[0]), _contribution(other.uploads()[0])
    assert not any(zeros.values)
    assert any(trained.values)
    assert len(zeros.values) == len(trained.values)
    assert len(zeros.nonce) == len(trained.nonce)
    (run,) = phone.runs.newest(1)
    assert (run.outcome, run.examples) == ("acknowledged", 0)
    assert phone.audit.events == other.audit.events  # the phone maker's log
    other.store.close()


def test_a_round_that_learned_nothing_uses_up_the_day_like_any_other(phone: Any) -> None:
    phone.workers.on_train = _fail
    assert phone.run() == "acknowledged"
    assert phone.runs.trained_within(86_400.0) == 1


def test_it_is_charged_and_sealed_before_the_data_are_read(phone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest, seen = phone.examples.occasions, []

    def occasions(purpose: str, recipient: str, limit: int) -> Any:
        head = phone.store.rows("SELECT digest FROM participations ORDER BY id DESC LIMIT 1")
        sealed = bool(head) and bytes(head[0][0]).hex() in (phone.keystore.read_anchor() or b"").decode()
        seen.append((phone.participated(), sealed, phone.outcomes()))
        return honest(purpose, recipient, limit)

    monkeypatch.setattr(phone.examples, "occasions", occasions)
    assert phone.run() == "acknowledged"
    assert seen[-1] == ([0], True, ["charged"])
    assert seen[0] == ([], False, [])  # whether there is anything to learn from, before the check-in


def test_consent_that_changes_during_the_fetch_costs_nothing(phone: Any) -> None:
    phone.gateway.on_call = lambda method: phone.withdraw() if method is Method.FETCH else None
    assert phone.run() == "abandoned: consent_changed"
    assert phone.participated() == []
    assert phone.outcomes() == ["abandoned: consent_changed"]


def test_the_owner_can_read_an_upload_before_it_leaves(tmp_path: Path) -> None:
    seen: list[tuple[float, bytes]] = []

    def look(seconds: float) -> None:
        (entry,) = phone.egress.pending()
        assert entry.state == "prepared"
        assert phone.uploads() == []
        seen.append((phone.clock.now(), entry.body))
        phone.clock.advance(seconds)

    phone = uplink_town.Phone(tmp_path, egress_hold_s=5.5, wait=look)
    assert phone.run() == "acknowledged"
    assert len(seen) == 6
    assert {body for _, body in seen} == {phone.uploads()[0]}


def test_what_happens_while_an_upload_is_held(tmp_path: Path) -> None:
    def unplug(_: float) -> None:
        phone.conditions.state = dataclasses.replace(FIT, charging=False)

    phone = uplink_town.Phone(tmp_path, egress_hold_s=60.0, wait=unplug)
    assert phone.run() == "prepared"
    assert phone.outcomes() == ["prepared"]
    phone.conditions.state = FIT
    phone.clock.advance(60.0)
    assert [outcome.words for outcome in phone.round.resume()] == ["acknowledged"]


def test_a_withdrawal_while_an_upload_is_held_destroys_it(tmp_path: Path) -> None:
    def withdraw(seconds: float) -> None:
        phone.withdraw()
        phone.clock.advance(seconds)

    phone = uplink_town.Phone(tmp_path, egress_hold_s=60.0, wait=withdraw)
    assert phone.run() == "destroyed"
    assert phone.uploads() == []
    assert phone.participated() == [0]  # charged all the same
    assert phone.states()[-1] == ("Upload", "destroyed")
    assert phone.outcomes() == ["destroyed"]
    assert phone.egress.entries(1, with_bytes=True)[0].body is None
    phone.grant()  # a new grant brings nothing back
    assert phone.round.resume() == []
    assert phone.uploads() == []


def test_withdrawn_and_granted_again_within_a_second_is_a_change_too(phone: Any) -> None:
    def waver() -> None:
        phone.withdraw()
        phone.grant()

    phone.workers.on_train = waver
    assert phone.run() == "abandoned: consent_changed"
    assert phone.uploads() == []


def test_a_restriction_by_the_app_stops_an_upload(tmp_path: Path) -> None:
    def restrict(seconds: float) -> None:
        phone.streams.restrict(town.READING, "shelf", [town.TRAIN])
        phone.clock.advance(seconds)

    phone = uplink_town.Phone(tmp_path, egress_hold_s=2.0, wait=restrict)
    assert phone.run() == "destroyed"
    assert phone.uploads() == []


def test_a_sent_upload_is_not_sent_again_after_a_withdrawal(phone: Any) -> None:
    phone.gateway.fail_next(Method.UPLOAD, Fault.REPLY_LOST)
    assert phone.run() == "sent"
    phone.withdraw()
    assert phone.round.resume() == []
    assert len(phone.uploads()) == 1
    assert phone.states()[-1] == ("Upload", "sent")  # the log does not pretend that it never left
    assert phone.egress.entries(1, with_bytes=True)[0].body is None


def _with_own_weights(graphs: Any) -> dict[str, bytes]:
    """The same graphs with a private parameter that is handed through."""
    import onnx
    from onnx import TensorProto, helper

    made = {}
    for name, data in graphs.items():
        model = onnx.load_model_from_string(data)
        graph = model.graph
        graph.input.append(helper.make_tensor_value_info("p.weights_own", TensorProto.FLOAT, [4]))
        if name == "step.onnx":
            graph.input.append(helper.make_tensor_value_info("d.weights_own", TensorProto.FLOAT, [4]))
            graph.node.append(helper.make_node("Identity", ["d.weights_own"], ["next.weights_own"]))
            graph.output.append(helper.make_tensor_value_info("next.weights_own", TensorProto.FLOAT, [4]))
        made[name] = model.SerializeToString(deterministic=True)
    return made


def _phone_with_own_weights(directory: Path) -> Any:
    plan = town.small_plan()
    own = ParameterSpec("weights_own", (4,), Scope.PRIVATE)
    plan = dataclasses.replace(plan, parameters=(*plan.parameters, own))
    graphs = _with_own_weights(town.hand_made_graphs())
    plan = dataclasses.replace(plan, operators=town.operators_in(graphs))
    phone = uplink_town.Phone(directory, plan=plan, graphs=graphs)
    phone.workers.private = b"private" * 3
    return phone


def test_private_parameters_are_kept_after_an_upload_and_never_leave(tmp_path: Path) -> None:
    phone = _phone_with_own_weights(tmp_path)
    assert phone.run() == "acknowledged"
    bundle = phone.installed.bundle_for(town.TRAIN)
    assert phone.private.load(bundle.plan_digest, private_basis_of(phone.consent, bundle)) == b"private" * 3
    assert b"private" not in phone.gateway.received(Method.UPLOAD)
    phone.gateway.advance(10)
    assert phone.run() == "acknowledged"
    assert phone.workers.requests[1].private_parameters == b"private" * 3
    assert phone.workers.requests[0].private_parameters == bytes(16)


def test_private_parameters_of_other_streams_are_not_used(tmp_path: Path) -> None:
    phone = _phone_with_own_weights(tmp_path)
    phone.streams.register(town.SHOPPING, "basket", DataType.CHOICE)
    phone.consent.set(town.SHOPPING, DataType.CHOICE, town.TRAIN, town.OPERATOR, True, 1)
    assert phone.run() == "acknowledged"
    phone.streams.restrict(town.SHOPPING, "basket", ["*"])
    phone.gateway.advance(10)
    assert phone.run() == "acknowledged"
    assert phone.workers.requests[1].private_parameters == bytes(16), "trained on a stream that the app withholds"
    phone.gateway.advance(10)
    assert phone.run() == "acknowledged"
    assert phone.workers.requests[2].private_parameters == b"private" * 3


def test_private_parameters_outlive_no_retention(tmp_path: Path) -> None:
    phone = _phone_with_own_weights(tmp_path)
    assert phone.run() == "acknowledged"
    sources = phone.installed.bundle_for(town.TRAIN).verified.policy.sources
    days = next(one.retention_days for one in sources if one.app == town.READING)
    ((expires,),) = phone.store.rows("SELECT expires FROM private_parameters")
    assert expires == phone.clock.now() + days * 86_400
    phone.clock.advance(days * 86_400)
    phone.round.tidy()
    assert phone.store.rows("SELECT count(*) FROM private_parameters") == [(0,)]


def test_a_round_that_learned_nothing_leaves_private_parameters_as_they_were(tmp_path: Path) -> None:
    phone = _phone_with_own_weights(tmp_path)
    assert phone.run() == "acknowledged"
    phone.gateway.advance(10)
    phone.workers.on_train = _fail
    assert phone.run() == "acknowledged"
    phone.gateway.advance(10)
    phone.workers.on_train = lambda: None
    assert phone.run() == "acknowledged"
    assert phone.workers.requests[2].private_parameters == b"private" * 3


def test_one_round_at_a_time(phone: Any) -> None:
    second: list[str] = []
    phone.workers.on_train = lambda: second.append(phone.run())
    assert phone.run() == "acknowledged"
    assert second == ["refused: running"]


def test_every_request_says_only_what_every_phone_says(phone: Any) -> None:
    """Two phones with other examples make the same check-in and fetch, but for the attestation."""
    phone.run()
    asked = pb.CheckInRequest.FromString(phone.gateway.requests[0].body)
    assert (asked.version, asked.population, asked.purpose) == (1, town.POPULATION, town.TRAIN)
    assert asked.bundle_digest.hex() == phone.installed.bundle_for(town.TRAIN).digest
    assert not any(asked.padding)
    fetched = pb.FetchRequest.FromString(phone.gateway.requests[1].body)
    assert fetched.digest == hashlib.sha256(phone.gateway.weights).digest()


def test_a_withdrawal_after_the_last_look_at_the_trainer(phone: Any) -> None:
    phone.workers.on_done = phone.withdraw
    assert phone.run() == "abandoned: consent_changed"
    assert phone.participated() == [0]
    assert phone.uploads() == []


def test_a_task_that_expires_while_its_upload_is_held(tmp_path: Path) -> None:
    phone = uplink_town.Phone(tmp_path, egress_hold_s=60.0, wait=lambda _: phone.clock.advance(3601.0))
    assert phone.run() == "destroyed"
    assert phone.uploads() == []


def test_an_upload_that_others_destroyed_does_not_leave_though_the_streams_are_the_same(tmp_path: Path) -> None:
    def destroy(seconds: float) -> None:
        phone.egress.destroy(town.TRAIN, town.OPERATOR)
        phone.clock.advance(seconds)

    phone = uplink_town.Phone(tmp_path, egress_hold_s=1.0, wait=destroy)
    assert phone.run() == "destroyed"
    assert phone.uploads() == []
    assert phone.outcomes() == ["destroyed"]


def test_weights_in_many_pieces(phone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedlearn_client.calls.FETCH_BYTES", 40)
    assert phone.run() == "acknowledged"
    assert phone.methods() == ["CheckIn", "Fetch", "Fetch", "Fetch", "Upload"]  # 92 bytes


def test_weights_that_trickle_are_given_up(phone: Any) -> None:
    """A gateway that hands out a byte at a time does not keep the phone busy."""
    honest = phone.gateway.call

    def trickle(method: Method, request: bytes) -> bytes:
        if method is Method.FETCH:
            asked = pb.FetchRequest.FromString(request)
            asked.max_bytes = 1
            request = asked.SerializeToString()
        reply: bytes = honest(method, request)
        return reply

    phone.gateway.call = trickle
    assert phone.run() == f"refused: {Refusal.WEIGHTS}"
    assert phone.methods().count("Fetch") == 20


def test_without_an_anchor_nothing_is_read_and_nothing_leaves(phone: Any) -> None:
    """The charge is durable, but the KeyStore fails: the round ends there, and the charge stays."""
    seal = phone.participations.seal

    def fail() -> None:
        phone.participations.seal = seal
        raise StoreFailed("keystore: injected.")

    phone.participations.seal = fail
    assert phone.run() == "abandoned: store"
    assert phone.outcomes() == ["abandoned: store"]
    assert phone.workers.requests == []
    phone.restart()
    assert phone.round.resume() == []
    assert phone.uploads() == []
    assert phone.participated() == [0]
