"""Task bundles: a good one opens, and nothing else does."""

from __future__ import annotations

import importlib.util
import random
from dataclasses import replace
from pathlib import Path

import pytest

from fedlearn.device import bundle as bundle_module
from fedlearn.device.archive import read_archive, write_archive
from fedlearn.device.bundle import SCHEMA, add_approval, build_bundle, open_bundle
from fedlearn.device.manifest import MANIFEST_FILE, manifest_bytes, seal
from fedlearn.device.plan import ColumnSpec, ParameterSpec, Scope
from fedlearn.device.plan_codec import plan_digest
from fedlearn.errors import BundleRefused, PolicyInvalid, SignatureRefused, TrustError
from fedlearn.policy.dsse import BUNDLE_TYPE, signed_by
from fedlearn.policy.load import policy_digest
from fedlearn.policy.status import require_live
from fedlearn.terms import ExamplePrivacy

_spec = importlib.util.spec_from_file_location("device_mutations", Path(__file__).with_name("device_mutations.py"))
mutations = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(mutations)
town = mutations.town


def opened(data: bytes, **given: object) -> bundle_module.Bundle:
    root = [town.root_key().public]
    return open_bundle(data, **{"root_keys": root, "now": town.NOW, "runtime": town.RUNTIME, **given})


def test_a_good_bundle_opens() -> None:
    data = town.signed_bundle()
    found = opened(data)
    assert found.plan == town.small_plan()
    assert found.plan_digest == plan_digest(found.plan)
    assert found.verified.policy == town.city_policy()
    assert found.verified.digest == policy_digest(town.city_policy())
    assert found.expires == town.NOW + 30 * town.DAY
    assert set(found.files) == set(town.bundle_files())
    assert found.step == found.files["step.onnx"]
    assert "files" not in repr(found)
    assert len(set(found.digests)) == 4
    require_live(town.status(), found.digests, town.NOW)


def test_equal_files_and_signers_give_equal_bytes() -> None:
    assert town.signed_bundle() == town.signed_bundle()
    files = town.bundle_files()
    backwards = dict(reversed(files.items()))
    sealed = [build_bundle(each, expires=town.NOW, signers=town.approvers()) for each in (files, backwards)]
    assert sealed[0] == sealed[1]


@pytest.mark.parametrize("what", ["policy", "roster"])
def test_expiry_is_the_earliest(what: str) -> None:
    found = opened(town.signed_bundle(days=100_000))
    assert found.expires == town.NOW + 200 * town.DAY
    policy = town.city_policy(expires="2033-01-01T00:00:00Z")
    assert opened(town.signed_bundle(policy=policy, days=100_000)).expires == town.NOW + 300 * town.DAY


def test_more_signatures_than_needed_are_welcome() -> None:
    thrice = add_approval(town.signed_bundle(), town.approvers()[2])
    assert opened(thrice).files == opened(town.signed_bundle()).files
    assert thrice == town.signed_bundle(signers=town.approvers())


def test_an_approval_is_added_without_touching_the_files() -> None:
    one, two, _ = town.approvers()
    once = town.signed_bundle(signers=[one])
    with pytest.raises(SignatureRefused, match="1 of the 3"):
        opened(once)
    twice = add_approval(once, two)
    assert opened(twice).contents == opened(add_approval(twice, town.approvers()[2])).contents
    before, after = read_archive(once, 10**8), read_archive(twice, 10**8)
    assert signed_by(after.pop(MANIFEST_FILE)) == tuple(sorted((one.public, two.public)))
    assert len(signed_by(before.pop(MANIFEST_FILE))) == 1
    assert before == after
    with pytest.raises(SignatureRefused, match="signed it already"):
        add_approval(twice, one)


def test_nobody_is_asked_to_sign_what_is_no_bundle() -> None:
    key = town.approvers()[2]
    files = read_archive(town.signed_bundle(), 10**8)
    with pytest.raises(BundleRefused, match=r"weights\.bin"):
        add_approval(write_archive({**files, "weights.bin": bytes(92 + 4)}), key)
    with pytest.raises(SignatureRefused, match="absent"):
        add_approval(write_archive({"plan.json": b"{}"}), key)
    with pytest.raises(BundleRefused, match="expected application"):
        add_approval(town.signed_catalogue(), key)


def test_a_revoked_bundle_stays_revoked_with_one_more_signature() -> None:
    from fedlearn.errors import StatusRefused

    found = opened(town.signed_bundle())
    again = opened(add_approval(town.signed_bundle(), town.approvers()[2]))
    assert again.digest != found.digest
    with pytest.raises(StatusRefused, match="revoked"):
        require_live(town.status(revoked=[found.contents]), again.digests, town.NOW)


@pytest.mark.parametrize("name", sorted(mutations.MUTATIONS))
def test_no_mutation_is_accepted(name: str) -> None:
    for seed in range(2):
        assert not mutations.MUTATIONS[name](random.Random(f"{name}/{seed}")).accepted(), f"{name}, seed {seed}"


def test_what_the_mutations_start_from_is_accepted() -> None:
    assert mutations.Attempt(mutations.good()).accepted()
    assert mutations.Attempt(mutations.other()).accepted()
    assert mutations.Attempt(mutations.signed(mutations._without_manifest(mutations.good()))).accepted()
    assert mutations.Attempt(town.signed_bundle(roster_version=7), seen_roster=7).accepted()
    assert mutations.Attempt(mutations.good(), now=town.NOW + 30 * town.DAY - 1).accepted()
    assert mutations.Attempt(mutations.good(), runtime="0.10").accepted()
    assert len(mutations.MUTATIONS) * 2 >= 60


def test_every_byte_counts() -> None:
    """Each byte of the archive, one at a time; the roster, the policy and the files are all in it."""
    data = mutations.good()
    for place in range(len(data)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(TrustError):
            opened(changed)


def test_every_byte_of_the_manifest_counts_when_the_container_is_right() -> None:
    files = mutations.files_of(mutations.good())
    manifest = files[MANIFEST_FILE]
    for place in range(len(manifest)):
        changed = manifest[:place] + bytes([manifest[place] ^ 1]) + manifest[place + 1 :]
        with pytest.raises(TrustError):
            opened(write_archive({**files, MANIFEST_FILE: changed}))


def test_a_bundle_over_the_cap_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    data = town.signed_bundle()
    monkeypatch.setattr(bundle_module, "MOST_BUNDLE_BYTES", len(data) - 1)
    with pytest.raises(BundleRefused, match="at most"):
        opened(data)
    with pytest.raises(BundleRefused, match="at most"):
        town.signed_bundle()
    monkeypatch.setattr(bundle_module, "MOST_BUNDLE_BYTES", len(data))
    opened(data)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda files: files.pop("infer.onnx"), r"infer\.onnx: absent"),
        (lambda files: files.pop("plan.json"), r"plan\.json: absent"),
        (lambda files: files.update({"notes.txt": b""}), r"notes\.txt: no file of such"),
        (lambda files: files.update({"private.bin": b""}), r"private\.bin: no file of such"),
        (
            lambda files: files.update({"weights.bin": bytes(8)}),
            r"weights\.bin: 8 bytes; the plan's parameters have 92",
        ),
        (lambda files: files.update({"weights.bin": b"\xff" * 92}), r"weights\.bin: a value is not finite"),
        (lambda files: files.update({"step.onnx": files["infer.onnx"]}), r"step\.onnx: input c\.features: absent"),
        (lambda files: files.update({"infer.onnx": b"\xff"}), r"infer\.onnx: not an ONNX model"),
    ],
)
def test_an_exporter_is_told_before_anybody_signs(change: object, names: str) -> None:
    files = town.bundle_files()
    change(files)
    with pytest.raises(BundleRefused, match=names):
        build_bundle(files, expires=town.NOW, signers=town.approvers())


def test_messages_name_the_breach() -> None:
    policy = town.city_policy(mechanism=replace(town.city_policy().mechanism, min_noise_multiplier=2.5))
    with pytest.raises(BundleRefused, match="noise_multiplier=2: under mechanism"):
        opened(town.signed_bundle(policy=policy))
    with pytest.raises(BundleRefused, match=r"minimum_runtime: 0\.1\.0; this runtime is 0\.0\.9"):
        opened(town.signed_bundle(), runtime="0.0.9")
    with pytest.raises(BundleRefused, match="has passed"):
        opened(town.signed_bundle(), now=town.NOW + 31 * town.DAY)
    with pytest.raises(PolicyInvalid, match="has passed"):
        opened(town.signed_bundle(days=1000), now=town.NOW + 200 * town.DAY)
    with pytest.raises(SignatureRefused, match=r"roster\.version=1: version 2 was seen"):
        opened(town.signed_bundle(), seen_roster=2)


def test_nothing_is_acceptable_at_no_time() -> None:
    with pytest.raises(TrustError):
        opened(town.signed_bundle(), now=float("nan"))


def test_private_parameters_bring_their_own_file() -> None:
    """A second parameter that stays on the phone: in both graphs, in private.bin, not in weights.bin."""
    plan = town.small_plan(
        parameters=(ParameterSpec("taste", (3,), Scope.PRIVATE), ParameterSpec("weights", (town.WIDTH,), Scope.SHARED))
    )
    graphs = town.with_private_parameter(town.hand_made_graphs(), "taste", (3,))
    plan = replace(plan, operators=town.operators_in(graphs))
    files = town.bundle_files(plan, graphs=graphs)
    assert len(files["private.bin"]) == 12
    assert len(files["weights.bin"]) == 4 * town.WIDTH
    found = opened(build_bundle(files, expires=town.NOW + 9, signers=town.approvers()))
    assert [spec.name for spec in found.plan.private] == ["taste"]
    for wrong in (bytes(8), b"\xff" * 12):
        with pytest.raises(BundleRefused, match=r"private\.bin"):
            build_bundle({**files, "private.bin": wrong}, expires=town.NOW, signers=town.approvers())
    del files["private.bin"]
    with pytest.raises(BundleRefused, match=r"private\.bin: absent"):
        build_bundle(files, expires=town.NOW, signers=town.approvers())


def test_private_steps_bring_their_own_graph() -> None:
    graphs = town.private_graphs()
    training = replace(town.small_plan().training, example_privacy=ExamplePrivacy(1.0, 0.5))
    plan = town.small_plan(training=training, operators=town.operators_in(graphs))
    found = opened(town.signed_bundle(plan, graphs=graphs))
    assert found.step == graphs["private_step.onnx"]
    with pytest.raises(BundleRefused, match=r"private_step\.onnx: absent"):
        town.signed_bundle(replace(plan, operators=town.small_plan().operators))
    with pytest.raises(BundleRefused, match=r"private_step\.onnx: no file"):
        town.signed_bundle(graphs=graphs)
    swapped = {**graphs, "private_step.onnx": graphs["step.onnx"]}
    with pytest.raises(BundleRefused, match=r"private_step\.onnx: input n\.weights: absent"):
        town.signed_bundle(replace(plan, operators=town.operators_in(swapped)), graphs=swapped)


def test_columns_are_judged_by_type_and_shape() -> None:
    columns = town.small_plan().columns
    wrong = (replace(columns[0], dtype="<i8"), columns[1], columns[2])
    with pytest.raises(BundleRefused, match=r"input c\.features: must be i64\[8, 8, 23\]"):
        town.signed_bundle(town.small_plan(columns=wrong))
    more = (*columns, ColumnSpec("weight", "<f4", ()))
    with pytest.raises(BundleRefused, match=r"input c\.weight: absent"):
        town.signed_bundle(town.small_plan(columns=more))
    with pytest.raises(BundleRefused, match=r"input c\.logq: not in the plan"):
        town.signed_bundle(town.small_plan(columns=columns[:2]))


@pytest.mark.parametrize("spelling", ["{} ", " {}", "{}\n"])
def test_a_manifest_has_one_spelling_even_where_it_is_signed(spelling: str) -> None:
    files = town.bundle_files()
    right = manifest_bytes(SCHEMA, files, town.NOW + 9, {"minimum_runtime": town.RUNTIME}).decode()
    opened(seal(files, BUNDLE_TYPE, right.encode(), town.approvers()))
    with pytest.raises(BundleRefused, match="manifest: not canonical"):
        opened(seal(files, BUNDLE_TYPE, spelling.format(right).encode(), town.approvers()))


def test_the_manifest_is_not_among_the_files() -> None:
    with pytest.raises(BundleRefused, match="made here"):
        seal({MANIFEST_FILE: b""}, BUNDLE_TYPE, b"", town.approvers())
