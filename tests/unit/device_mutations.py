"""Bundles that no phone may accept: each mutation is a function of a random generator, so a seed names a bundle."""

from __future__ import annotations

import importlib.util
import io
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from onnx import TensorProto, helper

from fedlearn.device.archive import read_archive, write_archive
from fedlearn.device.bundle import SCHEMA, add_approval, open_bundle
from fedlearn.device.manifest import MANIFEST_FILE, manifest_bytes, seal
from fedlearn.device.plan_codec import plan_to_json
from fedlearn.errors import TrustError
from fedlearn.policy.canonical import canonical_bytes
from fedlearn.policy.dsse import BUNDLE_TYPE, CATALOGUE_TYPE

_spec = importlib.util.spec_from_file_location("device_town", Path(__file__).with_name("device_town.py"))
town = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(town)

CAP = 2**24


class Attempt(NamedTuple):
    """One bundle to try, and with what."""

    data: bytes
    now: float = town.NOW
    runtime: str = town.RUNTIME
    seen_roster: int = 0
    root: str = ""

    def accepted(self) -> bool:
        """Whether a phone takes it; an error that is no refusal is a crash, and passes through."""
        try:
            open_bundle(
                self.data,
                root_keys=[self.root or town.root_key().public],
                now=self.now,
                runtime=self.runtime,
                seen_roster=self.seen_roster,
            )
        except TrustError:
            return False
        return True


@lru_cache
def good() -> bytes:
    """A bundle that is accepted."""
    return town.signed_bundle()


@lru_cache
def other() -> bytes:
    """Another bundle that is accepted: other plan, policy, weights and golden vectors; the same approvers."""
    plan = town.small_plan(name="other-run", mechanism=town.mechanism(noise_multiplier=3.0))
    files = town.bundle_files(plan, policy=town.city_policy(retention_days=7), golden=b"{}")
    files["weights.bin"] = struct.pack(f"<{town.WIDTH}f", *range(town.WIDTH))
    return signed(files, plan.minimum_runtime)


def files_of(data: bytes) -> dict[str, bytes]:
    """All files of a bundle, manifest included."""
    return read_archive(data, CAP)


def signed(files: dict[str, bytes], minimum_runtime: str = town.RUNTIME, *, days: float = 30.0, **more: Any) -> bytes:
    """A bundle of whatever files, properly approved: what ``build_bundle`` would have refused to make."""
    signers = more.pop("signers", town.approvers()[:2])
    kind, schema = more.pop("payload_type", BUNDLE_TYPE), more.pop("schema", SCHEMA)
    body = {"minimum_runtime": minimum_runtime, **more}
    return seal(files, kind, manifest_bytes(schema, files, town.NOW + days * town.DAY, body), signers)


def _without_manifest(data: bytes) -> dict[str, bytes]:
    return {name: content for name, content in files_of(data).items() if name != MANIFEST_FILE}


def _changed(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + bytes([content[place] ^ rng.randrange(1, 256)]) + content[place + 1 :]


def flip_byte(rng: random.Random) -> Attempt:
    return Attempt(_changed(good(), rng))


def flip_several(rng: random.Random) -> Attempt:
    data = good()
    for _ in range(rng.randrange(2, 20)):
        data = _changed(data, rng)
    return Attempt(data if data != good() else data[:-1])


def flip_inside_a_file(rng: random.Random) -> Attempt:
    """With a container that is right again: only digests and signatures are left to notice."""
    files = files_of(good())
    name = rng.choice(sorted(files))
    return Attempt(write_archive({**files, name: _changed(files[name], rng)}))


def cut(rng: random.Random) -> Attempt:
    return Attempt(good()[: rng.randrange(len(good()))])


def trailing(rng: random.Random) -> Attempt:
    return Attempt(good() + rng.randbytes(rng.randrange(1, 64)))


def leading(rng: random.Random) -> Attempt:
    return Attempt(rng.randbytes(rng.randrange(1, 64)) + good())


def overwrite_span(rng: random.Random) -> Attempt:
    start = rng.randrange(len(good()) - 8)
    span = rng.randbytes(rng.randrange(8, 200))
    data = good()[:start] + span + good()[start + len(span) :]
    return Attempt(data)


def repeat_span(rng: random.Random) -> Attempt:
    start = rng.randrange(len(good()) - 1)
    stop = rng.randrange(start + 1, len(good()))
    return Attempt(good()[:stop] + good()[start:])


def noise(rng: random.Random) -> Attempt:
    return Attempt(
        rng.choice((b"", b"PK", b"PK\x05\x06" + bytes(18), b"PK\x03\x04")) + rng.randbytes(rng.randrange(300))
    )


def drop_file(rng: random.Random) -> Attempt:
    files = files_of(good())
    del files[rng.choice(sorted(files))]
    return Attempt(write_archive(files))


def drop_file_signed(rng: random.Random) -> Attempt:
    """Properly approved, but a file that every bundle has is missing."""
    files = _without_manifest(good())
    del files[rng.choice(sorted(files))]
    return Attempt(signed(files))


def surplus_file(rng: random.Random) -> Attempt:
    name = rng.choice(("extra.txt", "private.bin", "private_step.onnx", "a", "zz.py"))
    files = {**files_of(good()), name: rng.randbytes(rng.randrange(40))}
    return Attempt(write_archive(files))


def surplus_file_signed(rng: random.Random) -> Attempt:
    name = rng.choice(("extra.txt", "private.bin", "private_step.onnx", "catalogue.json"))
    return Attempt(signed({**_without_manifest(good()), name: rng.randbytes(92)}))


def rename_file(rng: random.Random) -> Attempt:
    files = files_of(good())
    name = rng.choice(sorted(files))
    files[rng.choice((f"{name}.old", f"a{name}", name[1:] or "x", "plan2.json"))] = files.pop(name)
    return Attempt(write_archive(files))


def bad_name(rng: random.Random) -> Attempt:
    """Names that an unzip would follow elsewhere, put in place byte for byte."""
    name = rng.choice(sorted(files_of(good()))).encode()
    evil = rng.choice((b"../", b"/", b"..\\", b"C:", b"\x00", b"A", b"_", b"."))
    renamed = (evil + name)[: len(name)]
    return Attempt(good().replace(name, renamed) if renamed != name else good()[:-1])


def duplicate_file(rng: random.Random) -> Attempt:
    """The same file twice, as ``zipfile`` writes it."""
    return Attempt(_zipped(rng, twice=True))


def compressed(rng: random.Random) -> Attempt:
    return Attempt(_zipped(rng, method=rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))))


def rezipped(rng: random.Random) -> Attempt:
    """The same files by another writer: stored too, but with another order, time, comment or system."""
    return Attempt(_zipped(rng, comment=rng.randbytes(rng.randrange(1, 30))))


def _zipped(
    rng: random.Random, *, twice: bool = False, method: int = zipfile.ZIP_STORED, comment: bytes = b""
) -> bytes:
    buffer, files = io.BytesIO(), list(files_of(good()).items())
    if rng.randrange(2):
        rng.shuffle(files)
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.comment = comment
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, method)
    data = buffer.getvalue()
    if not twice:
        return data
    at = good().index(b"PK\x01\x02")
    size = good().index(b"PK\x03\x04", 4)
    return good()[:size] + good()[:at] + good()[at:]


def swap_one(rng: random.Random) -> Attempt:
    """One file of another good bundle."""
    mine, theirs = files_of(good()), files_of(other())
    differ = [name for name in mine if mine[name] != theirs[name]]
    name = rng.choice(sorted(differ))
    return Attempt(write_archive({**mine, name: theirs[name]}))


def swap_all_but_one(rng: random.Random) -> Attempt:
    mine, theirs = files_of(good()), files_of(other())
    differ = [name for name in mine if mine[name] != theirs[name]]
    name = rng.choice(sorted(differ))
    return Attempt(write_archive({**theirs, name: mine[name]}))


def exchange_two(rng: random.Random) -> Attempt:
    files = files_of(good())
    one, two = rng.sample(sorted(files), 2)
    files[one], files[two] = files[two], files[one]
    return Attempt(write_archive(files))


def once_signed(rng: random.Random) -> Attempt:
    return Attempt(town.signed_bundle(signers=[rng.choice(town.approvers())]))


def signed_by_strangers(rng: random.Random) -> Attempt:
    return Attempt(town.signed_bundle(signers=[town.Key() for _ in range(rng.randrange(1, 4))]))


def one_approver_and_a_stranger(rng: random.Random) -> Attempt:
    return Attempt(town.signed_bundle(signers=[rng.choice(town.approvers()), town.Key()]))


def also_signed_by_a_stranger(rng: random.Random) -> Attempt:
    return Attempt(add_approval(good(), town.Key()))


def signed_by_others_in_office(rng: random.Random) -> Attempt:
    """The root, the status key and the operator approve nothing."""
    return Attempt(town.signed_bundle(signers=rng.sample([town.root_key(), town.status_key(), town.operator_key()], 2)))


def third_signature_bad(rng: random.Random) -> Attempt:
    """Enough good signatures, and one more that is damaged."""
    files = files_of(add_approval(good(), town.approvers()[2]))
    text = files[MANIFEST_FILE].decode()
    spot = text.rindex('"sig":"') + 7 + rng.randrange(40)
    text = text[:spot] + ("A" if text[spot] != "A" else "B") + text[spot + 1 :]
    return Attempt(write_archive({**files, MANIFEST_FILE: text.encode()}))


def another_spelling(rng: random.Random) -> Attempt:
    """White space in an envelope: the same JSON, other bytes."""
    files = files_of(good())
    text = files[MANIFEST_FILE].decode()
    spot = rng.choice([place for place, character in enumerate(text) if character in "{[,"]) + 1
    return Attempt(write_archive({**files, MANIFEST_FILE: (text[:spot] + " " + text[spot:]).encode()}))


def expired(rng: random.Random) -> Attempt:
    return Attempt(good(), now=town.NOW + 30 * town.DAY + rng.randrange(10_000_000))


def policy_expired(rng: random.Random) -> Attempt:
    return Attempt(town.signed_bundle(days=10_000), now=town.NOW + (200 + rng.randrange(90)) * town.DAY)


def roster_expired(rng: random.Random) -> Attempt:
    return Attempt(town.signed_bundle(days=10_000), now=town.NOW + (300 + rng.randrange(1000)) * town.DAY)


def older_roster(rng: random.Random) -> Attempt:
    return Attempt(good(), seen_roster=rng.randrange(2, 100))


def roster_by_another_root(rng: random.Random) -> Attempt:
    return Attempt(good(), root=town.Key().public)


def runtime_too_old(rng: random.Random) -> Attempt:
    return Attempt(good(), runtime=rng.choice(("0.0.9", "0", "0.0", "0.0.99999", "0.1.0-rc1", "", "0.1.0.0.1")))


def wrong_schema(rng: random.Random) -> Attempt:
    """A later or damaged plan, properly approved."""
    files = _without_manifest(good())
    body = plan_to_json(town.small_plan())
    path = rng.choice(sorted(body))
    edit = rng.randrange(4)
    if edit == 0:
        body["schema"] = rng.choice(("fedlearn.plan/2", "fedlearn.plan/0", "", 1, None))
    elif edit == 1:
        body[f"{path}_too"] = body[path]
    elif edit == 2:
        del body[path]
    else:
        body[path] = rng.choice((None, -1, 0.5, [], {}, True, [[]], "\n"))
    return Attempt(signed({**files, "plan.json": canonical_bytes(body)}))


def plan_not_canonical(rng: random.Random) -> Attempt:
    files = _without_manifest(good())
    text = files["plan.json"].decode()
    changed = rng.choice((text.replace(":", ": "), text + "\n", " " + text, text.replace("0.25", "2.5e-1")))
    return Attempt(signed({**files, "plan.json": changed.encode()}))


def manifest_of_another_schema(rng: random.Random) -> Attempt:
    files = _without_manifest(good())
    kinds = ({"schema": "fedlearn.bundle/2"}, {"payload_type": CATALOGUE_TYPE}, {"surplus": 1})
    return Attempt(signed(files, **rng.choice(kinds)))


def manifest_runtime_differs(rng: random.Random) -> Attempt:
    return Attempt(signed(_without_manifest(good()), rng.choice(("0.0.1", "0.0", "0", "nonsense"))))


def extra_operator(rng: random.Random) -> Attempt:
    """A graph with an operator that the plan does not list, properly approved."""
    files = _without_manifest(good())
    kinds = (
        (("Neg", ["features"], ["spare"]), {}),
        (("RandomNormal", [], ["spare"]), {"shape": [2]}),
        (("Tanh", ["features"], ["spare"]), {}),
        (("Neg", ["features"], ["spare"]), {"domain": "com.evil"}),
        (("If", ["flag"], ["spare"]), {"then_branch": _branch(), "else_branch": _branch()}),
    )
    (kind, inputs, outputs), attributes = rng.choice(kinds)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["features", "p.weights"], ["scores"]),
            helper.make_node(kind, inputs, outputs, **attributes),
        ],
        "infer",
        [
            helper.make_tensor_value_info("p.weights", TensorProto.FLOAT, [town.WIDTH]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", town.WIDTH]),
        ],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N"])],
    )
    return Attempt(signed({**files, "infer.onnx": town.model_bytes(graph)}))


def _branch() -> Any:
    return helper.make_graph([], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, [1])])


def operator_list_differs(rng: random.Random) -> Attempt:
    plan = town.small_plan()
    names = list(plan.operators)
    if rng.randrange(2):
        names.remove(rng.choice(names))
    else:
        names = sorted({*names, rng.choice(("Abs", "Where", "Log"))})
    body = {**plan_to_json(plan), "operators": names}
    return Attempt(signed({**_without_manifest(good()), "plan.json": canonical_bytes(body)}))


def graph_of_another_shape(rng: random.Random) -> Attempt:
    graphs = town.hand_made_graphs(width=town.WIDTH + rng.choice((-1, 1)), batch=8, candidates=8)
    name = rng.choice(sorted(graphs))
    return Attempt(signed({**_without_manifest(good()), name: graphs[name]}))


def graphs_exchanged(rng: random.Random) -> Attempt:
    files = _without_manifest(good())
    files["step.onnx"], files["infer.onnx"] = files["infer.onnx"], files["step.onnx"]
    return Attempt(signed(files))


def not_a_graph(rng: random.Random) -> Attempt:
    name = rng.choice(("step.onnx", "infer.onnx"))
    return Attempt(signed({**_without_manifest(good()), name: rng.randbytes(rng.randrange(2000))}))


def wrong_weights(rng: random.Random) -> Attempt:
    right = 4 * town.WIDTH
    bad = rng.choice((bytes(right - 4), bytes(right + 4), b"", b"\x00\x00\xc0\x7f" * town.WIDTH, bytes(right + 1)))
    return Attempt(signed({**_without_manifest(good()), "weights.bin": bad}))


def policy_of_another_digest(rng: random.Random) -> Attempt:
    """A good policy that these approvals were not given for."""
    policy = town.city_policy(retention_days=rng.randrange(1, 30))
    return Attempt(write_archive({**files_of(good()), "policy.dsse.json": town.signed_policy(policy)}))


def policy_once_signed(rng: random.Random) -> Attempt:
    policy = town.signed_policy(signers=[rng.choice(town.approvers())])
    return Attempt(signed({**_without_manifest(good()), "policy.dsse.json": policy}))


def policy_forbids(rng: random.Random) -> Attempt:
    """All properly signed; the policy's floors and caps say no."""
    floors, device = town.city_policy().mechanism, town.city_policy().device
    change = rng.choice(
        (
            {"mechanism": replace(floors, min_noise_multiplier=2.5)},
            {"mechanism": replace(floors, kinds=("blt",))},
            {"mechanism": replace(floors, min_separation=11)},
            {"mechanism": replace(floors, max_participations=4)},
            {"mechanism": replace(floors, max_steps=99)},
            {"mechanism": replace(floors, max_l2_clip_norm=0.5)},
            {"device": replace(device, max_upload_bytes=10)},
            {"device": replace(device, max_catalogue_bytes=10)},
            {"population": replace(town.city_policy().population, id="village")},
            {"features": town.city_policy().features[1:]},
        )
    )
    policy = town.signed_policy(town.city_policy(**change))
    return Attempt(signed({**_without_manifest(good()), "policy.dsse.json": policy}))


def roster_inside_is_not_the_roots(rng: random.Random) -> Attempt:
    """A roster of strangers, signed by a stranger, approving their own bundle."""
    from fedlearn.policy.dsse import POLICY_TYPE, ROSTER_TYPE, sign_envelope
    from fedlearn.policy.load import policy_bytes
    from fedlearn.policy.roster import roster_bytes

    strangers = [town.Key(), town.Key()]
    roster = town.roster(approvers=tuple(key.public for key in strangers))
    files = _without_manifest(good())
    files["roster.dsse.json"] = sign_envelope(ROSTER_TYPE, roster_bytes(roster), [rng.choice(strangers)])
    files["policy.dsse.json"] = sign_envelope(POLICY_TYPE, policy_bytes(town.city_policy()), strangers)
    return Attempt(signed(files, signers=strangers))


def manifest_replayed(rng: random.Random) -> Attempt:
    """The other bundle's manifest over these files."""
    return Attempt(write_archive({**files_of(good()), MANIFEST_FILE: files_of(other())[MANIFEST_FILE]}))


def manifest_lies(rng: random.Random) -> Attempt:
    """Properly approved, but sizes, digests or order are not those of the files."""
    files = _without_manifest(good())
    payload = manifest_bytes(SCHEMA, files, town.NOW + town.DAY, {"minimum_runtime": town.RUNTIME}).decode()
    size = len(files["plan.json"])
    lie = rng.choice(
        (
            payload.replace(f'"size":{size}', f'"size":{size + 1}'),
            payload.replace('"sha256":"', '"sha256":"0', 1).replace('","size"', 'x","size"', 1),
            payload.replace('"plan.json"', '"plan.jsoo"'),
            payload.replace("Z", "", 1),
            payload.replace("T", " ", 1),
            payload + " ",
        )
    )
    return Attempt(seal(files, BUNDLE_TYPE, lie.encode(), town.approvers()[:2]))


def catalogue_bundle_instead(rng: random.Random) -> Attempt:
    return Attempt(town.signed_catalogue(version=rng.randrange(1, 3)))


def manifest_only(rng: random.Random) -> Attempt:
    return Attempt(write_archive({MANIFEST_FILE: files_of(good())[MANIFEST_FILE]}))


MUTATIONS: dict[str, Callable[[random.Random], Attempt]] = {
    name: made
    for name, made in list(globals().items())
    if callable(made) and getattr(made, "__annotations__", {}).get("return") == "Attempt" and not name.startswith("_")
}
