"""The daemon at full size: 10,000 fuzzed frames a method through the relay, and what calls cost. Prints figures."""

from __future__ import annotations

import random
import struct
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedlearn.device.bundle import build_bundle
from fedlearn.device.catalogue_bundle import build_catalogue_bundle, spec_of
from fedlearn.proto import device_pb2 as pb
from fedlearn_client.services.methods import METHODS

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
import device_phone as phones
import device_town

town: Any = device_town
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not phones.is_root(), reason="apps are other users: only root can start them"),
]
FRAMES = 10_000
NOW = float(int(time.time()))
ROLE_APP = {"app": town.CHAT, "surface": town.SURFACE, "settings": "org.city.settings", "system": "org.city.system"}


def memory(phone: Any) -> int:
    """KiB of the daemon now."""
    text = Path(f"/proc/{phone.pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def large_town() -> tuple[bytes, bytes]:
    """A bundle and a catalogue of 1,000 items."""
    small = town.catalogue()
    items = tuple(replace(one, name=f"{one.name} #{turn}") for turn in range(25) for one in small.items)
    catalogue = replace(small, items=items)
    plan = town.small_plan(catalogue=spec_of(catalogue))
    files = town.bundle_files(plan, now=NOW)
    files["weights.bin"] = struct.pack(f"<{town.WIDTH}f", *([1.0] * town.WIDTH))
    keys = town.approvers()
    bundle = build_bundle(files, expires=NOW + 30 * town.DAY, signers=keys[:2])
    return bundle, build_catalogue_bundle(catalogue, version=1, expires=NOW + 30 * town.DAY, signers=keys[:2])


def ready(phone: Any) -> None:
    """Install everything and grant the chat stream to the surface."""
    bundle, catalogue = large_town()
    system, settings = phone.app("org.city.system"), phone.app("org.city.settings")
    system.call("Runtime/Install", pb.InstallRequest(task_bundle=bundle))
    system.call("Runtime/Install", pb.InstallRequest(catalogue_bundle=catalogue))
    system.call("Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=town.signed_status(now=NOW)))
    settings.call("Consent/SetOwner", pb.SetOwnerRequest(age=pb.AGE_CLASS_ADULT))
    phone.app(town.CHAT).call("Signals/Register", pb.RegisterRequest(stream="m", data_type=1))
    grant = pb.SetRequest(
        app=town.CHAT, data_type=1, purpose=town.RECOMMEND, recipient=town.SURFACE, on=True, text_version=1
    )
    settings.call("Consent/Set", grant)


def seeds() -> dict[str, bytes]:
    """A good request a method, to be damaged."""
    signal = pb.Signal(id="1", time_ms=round(NOW * 1000), message=pb.MessageSignal(text="火锅", direction=1))
    good = {
        "Signals/Register": pb.RegisterRequest(stream="m", data_type=1),
        "Signals/Push": pb.PushRequest(stream="m", signals=[signal]),
        "Signals/Restrict": pb.RestrictRequest(stream="m", purposes=["*"]),
        "Recommend/Get": pb.GetRequest(purpose=town.RECOMMEND, count=3),
        "Recommend/Feedback": pb.FeedbackRequest(ranking_id=bytes(16), item="restaurant:x"),
        "Consent/Set": pb.SetRequest(app=town.CHAT, data_type=1, purpose="p", recipient="r", on=True, text_version=1),
        "Audit/Egress": pb.EgressRequest(limit=5, with_bytes=True),
        "Runtime/Conditions": pb.ConditionsRequest(battery=0.5, thermal="none"),
        "Runtime/TrainNow": pb.TrainNowRequest(purpose="x"),
        "Runtime/Install": pb.InstallRequest(task_bundle=b"PK"),
        "Runtime/UpdateStatus": pb.UpdateStatusRequest(envelope=b"{}"),
    }
    return {name: request.SerializeToString() for name, request in good.items()}


def damaged(good: bytes, random_source: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(random_source.randint(1, 4)):
        at = random_source.randrange(len(data) + 1)
        kind = random_source.randrange(3)
        if kind == 0 or not data:
            data[at:at] = random_source.randbytes(random_source.randint(1, 12))
        elif kind == 1:
            del data[at : at + random_source.randint(1, 6)]
        else:
            data[at % len(data)] ^= 1 << random_source.randrange(8)
    return bytes(data)


@pytest.mark.timeout(3600)
def test_fuzzed_frames_crash_nothing_and_memory_does_not_grow() -> None:
    chance = random.Random(20_26)
    good = seeds()
    with phones.phone([town.root_key().public]) as phone:
        phone.start()
        ready(phone)
        before = 0
        for turn in range(2):  # the first turn warms up
            for path, method in METHODS.items():
                if method.streams:
                    continue
                name = path.removeprefix("/fedlearn.device.v1.")
                app = phone.app(ROLE_APP[sorted(method.roles)[0]])
                frames = [damaged(good.get(name, b""), chance) for _ in range(FRAMES if turn else 200)]
                answers = app.codes(name, frames)
                assert set(answers) <= {
                    *("OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND", "ALREADY_EXISTS"),
                    *("RESOURCE_EXHAUSTED", "PERMISSION_DENIED"),
                }, (name, answers)
            if not turn:
                before = memory(phone)
        time.sleep(3)
        grown = memory(phone) - before
        sys.stdout.write(f"{before} KiB, grown by {grown} KiB\n")
        assert phone.app("org.city.system").call("Runtime/Status").version
    assert grown < 20 * 1024


def test_figures() -> None:
    with phones.phone([town.root_key().public]) as phone:
        cold = phone.start()
        ready(phone)
        surface, chat = phone.app(town.SURFACE), phone.app(town.CHAT)
        get = [pb.GetRequest(purpose=town.RECOMMEND, count=10)] * 500
        told = 0
        for number in (0, 20, 30):
            told += number
            texts = [f"今晚想吃川菜的麻辣火锅 with parking {told} {one}" for one in range(number)]
            chat.call("Signals/Push", pb.PushRequest(stream="m", signals=messages(texts, 60.0)))
            seconds = sorted(surface.measure("Recommend/Get", get))
            sys.stdout.write(
                f"recommend, {told} messages: p50 {seconds[250] * 1e3:.1f} p95 {seconds[475] * 1e3:.1f} ms\n"
            )
        pushes = [
            pb.PushRequest(
                stream="m", signals=messages([f"晚上吃火锅 then a walk, {turn} {one}" for one in range(500)], 200_000.0)
            )
            for turn in range(20)
        ]
        took = sum(chat.measure("Signals/Push", pushes))
        sys.stdout.write(f"push: {10_000 / took:.0f} messages/s; now {memory(phone)} KiB")
        time.sleep(8)
        sys.stdout.write(f", after a quiet while {memory(phone)} KiB\n")
        phone.stop()
        sys.stdout.write(f"start to serving: fresh {cold:.2f} s, again {phone.start():.2f} s; {memory(phone)} KiB\n")


def messages(texts: list[str], ago_s: float) -> list[pb.Signal]:
    """The owner's, ``ago_s`` seconds ago."""
    at = round((time.time() - ago_s) * 1000)
    return [
        pb.Signal(id=text, time_ms=at + number, message=pb.MessageSignal(text=text, direction=pb.DIRECTION_OUTGOING))
        for number, text in enumerate(texts)
    ]
