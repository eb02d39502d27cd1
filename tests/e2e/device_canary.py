"""One owner's evening with words in it that must never be seen again, and everything in which they could be."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import device_search as search
import device_world as worlds

from fedlearn.proto import device_pb2 as pb
from fedlearn_client.hooks import Method

CHAT, READING, SURFACE, SETTINGS, SYSTEM = (
    worlds.CHAT,
    worlds.READING,
    worlds.SURFACE,
    worlds.SETTINGS,
    worlds.SYSTEM,
)
TRAIN, RECOMMEND, OPERATOR = worlds.town.TRAIN, worlds.town.RECOMMEND, worlds.town.OPERATOR


@dataclass
class Words:
    """Random words, ASCII and Chinese, all of one seed; ``texts`` has every text that was made with them."""

    chance: random.Random
    texts: list[str] = field(default_factory=list)

    def ascii(self) -> str:
        """A word of no language."""
        return "".join(self.chance.choices("bcdfghjkmpqtvwxz3579", k=self.chance.randint(9, 18)))

    def chinese(self) -> str:
        """Rare characters, which no catalogue has."""
        return "".join(chr(self.chance.randint(0x9180, 0x9FA0)) for _ in range(self.chance.randint(5, 12)))

    def both(self) -> str:
        """One of each, in any order."""
        made = [self.ascii(), self.chinese()]
        self.chance.shuffle(made)
        return " ".join(made)

    def note(self, text: str) -> str:
        """Remember a text that must not be found, and return it."""
        self.texts.append(text)
        return text

    def name(self, most: int = 60) -> str:
        """An id of a signal."""
        return self.note(self.chance.choice([self.ascii(), self.chinese()]).encode()[:most].decode(errors="ignore"))


def messages(words: Words) -> list[pb.Signal]:
    """What is said: always the same about the catalogue, around words that differ."""
    w, at = words, worlds.NOW - 7200.0
    quote = f"{w.ascii()} 烤鸭 {w.chinese()}"
    made = [
        (f"{w.both()} 今晚想吃川菜的麻辣火锅 {w.both()}", False, 0),
        (f"{w.ascii()} sushi with parking please {w.chinese()}", False, 0),
        (f"{w.both()} {w.both()}", False, 0),
        (f"{quote} {w.chinese()} 我想吃早茶", False, len(quote)),
        (f"{w.both()} 我们去吃寿司 {w.both()}", True, 0),
        (f"{w.both()} 想吃便宜的饺子 {w.both()}", False, 0),
    ]
    return [
        worlds.said(w.note(text), w.name(), at + 60.0 * number, incoming=incoming, spans=[(0, end)] if end else [])
        for number, (text, incoming, end) in enumerate(made)
    ]


def choices(words: Words) -> list[pb.Signal]:
    """What was chosen; an item that no catalogue has among it."""
    at, keys = worlds.NOW - 7200.0, worlds.items()
    unknown = f"restaurant:{words.note(words.both())}"
    return [
        worlds.chose(key, words.name(), at + 90.0 * number) for number, key in enumerate([keys[3], unknown, keys[17]])
    ]


@dataclass
class Evening:
    """A phone, and whatever it answered to bad requests.

    Args:
        phone: with everything installed.
        words: of the owner.
        stream: of the chat app.
    """

    phone: Any
    words: Words
    heard: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.stream = self.words.note(self.words.ascii())

    def agree(self) -> None:
        """Register, and grant everything."""
        phone = self.phone
        phone.register(CHAT, self.stream)
        phone.register(READING)
        for app in (CHAT, READING):
            phone.grant(app, TRAIN, OPERATOR)
            phone.grant(app, RECOMMEND, SURFACE)

    def talk(self) -> None:
        """Ingest."""
        self.phone.push(CHAT, *messages(self.words), stream=self.stream)
        self.phone.push(READING, *choices(self.words))

    def live(self, pictures: bool = False) -> None:
        """From consent to the receipt of its withdrawal, without a fault; with pictures of the disk on the way."""
        phone = self.phone
        self.agree()
        self.talk()
        ranked = phone.rank(SURFACE)
        assert {one.app for one in ranked.used} == {CHAT, READING}
        assert phone.train() == "acknowledged"
        if pictures:
            self.picture("before the withdrawal")
        for app in (CHAT, READING):
            for purpose, recipient in ((TRAIN, OPERATOR), (RECOMMEND, SURFACE)):
                assert phone.grant(app, purpose, recipient, on=False).HasField("receipt")
        if pictures:
            self.picture("after the withdrawal")

    def refuse(self, app: str, method: str, request: Any) -> None:
        """Ask for what is refused, and remember what it says."""
        data = request if isinstance(request, bytes) else request.SerializeToString()
        try:
            self.phone.raw(app, method, data)
        except worlds.Refused as refused:
            self.heard.append(str(refused))
        else:
            raise AssertionError(f"{method} was not refused")

    def blunder(self) -> None:
        """Every kind of bad request, with words in each."""
        w, stream = self.words, self.stream
        text = w.note(f"{w.both()} 麻辣火锅 {w.both()}")
        good = worlds.said(text, "x", worlds.NOW - 10.0)
        push = pb.PushRequest(stream=stream, signals=[good])
        raw = push.SerializeToString()
        word = w.note(w.both())
        for broken in (
            raw.replace("麻".encode(), b"\xff\xfe\xfd"),  # not UTF-8
            raw[:-3],
            text.encode(),
            pb.PushRequest(stream=stream, signals=[worlds.said(text, text * 3, worlds.NOW)]),
            pb.PushRequest(stream=stream, signals=[worlds.said(text, "x", worlds.NOW + 9999.0)]),
            pb.PushRequest(stream=stream, signals=[worlds.said(text * 400, "x", worlds.NOW)]),
            pb.PushRequest(stream=stream, signals=[worlds.said(text, "x", worlds.NOW, spans=[(5, 9999)])]),
            pb.PushRequest(stream=stream, signals=[good, good]),
            pb.PushRequest(stream=stream, signals=[worlds.chose(f"restaurant:{word}", "x", worlds.NOW)]),
            pb.PushRequest(stream=w.note(w.ascii()), signals=[good]),
            pb.PushRequest(stream=word, signals=[good]),
            pb.PushRequest(stream=stream, signals=[pb.Signal(id=word[:9], message=pb.MessageSignal(text=text))]),
        ):
            self.refuse(CHAT, "Signals/Push", broken)
        self.refuse(CHAT, "Signals/Register", pb.RegisterRequest(stream=word, data_type=1))
        self.refuse(CHAT, "Signals/Restrict", pb.RestrictRequest(stream=stream, purposes=[word]))
        self.refuse(CHAT, "Signals/Purge", pb.PurgeRequest(stream=w.note(w.ascii())))
        self.refuse(SURFACE, "Recommend/Get", pb.GetRequest(purpose=word))
        self.refuse(SURFACE, "Recommend/Feedback", pb.FeedbackRequest(ranking_id=bytes(16), item=word))
        self.refuse(
            SETTINGS,
            "Consent/Set",
            pb.SetRequest(app=word, data_type=1, purpose=word, recipient=word, on=True, text_version=1),
        )
        self.refuse(SYSTEM, "Runtime/TrainNow", pb.TrainNowRequest(purpose=word))
        self.refuse(SYSTEM, "Runtime/Install", pb.InstallRequest(task_bundle=text.encode()))
        self.refuse(SYSTEM, "Runtime/Install", pb.InstallRequest(catalogue_bundle=text.encode()))
        self.refuse(SYSTEM, "Runtime/UpdateStatus", pb.UpdateStatusRequest(envelope=f'{{"x":"{text}"}}'.encode()))
        self.refuse(SYSTEM, "Runtime/Conditions", pb.ConditionsRequest(thermal=word))
        self.refuse(SETTINGS, "Signals/Push", push)

    def kill_readers(self, times: int) -> int:
        """Kill the worker while it reads; return how often it was caught at it."""
        caught = 0
        for _ in range(times):
            w = self.words
            text = w.note(f"{w.both()} 想吃饺子 {w.both()}")
            signals = [
                worlds.said(f"{text} {number}", f"{text[:9]}{number}", worlds.NOW - 9.0) for number in range(400)
            ]
            pushed = threading.Thread(target=self._try_push, args=(signals,))
            pushed.start()
            while pushed.is_alive():
                caught += kill_children(self.phone.pid)
                time.sleep(0.02)
            pushed.join()
        return caught

    def kill_trainer(self) -> str:
        """Kill whatever works while a round is trained; return its outcome."""
        outcome: list[str] = []
        training = threading.Thread(target=lambda: outcome.append(self.phone.train()))
        training.start()
        while training.is_alive():
            kill_children(self.phone.pid)
            time.sleep(0.005)
        training.join()
        # that round took part, with zeros; the next one is of another run, and so may take part too
        gateway = self.phone.gateway
        gateway.run_id += "+"
        gateway.step = 0
        return outcome[0]

    def fill_disk(self) -> list[str]:
        """Push while no file of the daemon may grow; return what it says."""
        pid, w, before = self.phone.pid, self.words, len(self.heard)
        largest = max(one.stat().st_size for one in self.phone.state.iterdir() if one.is_file())
        text = w.note(f"{w.both()} 想吃麻辣火锅 {w.both()}")
        signals = [worlds.said(text, f"{text[:8]}{number}", worlds.NOW - 8.0) for number in range(400)]
        limits = resource.prlimit(pid, resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))
        try:
            for _ in range(2):
                self._try_push(signals)
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        return self.heard[before:]

    def _try_push(self, signals: list[pb.Signal]) -> None:
        try:
            self.phone.push(CHAT, *signals, stream=self.stream)
        except worlds.Refused as refused:
            self.heard.append(str(refused))

    def picture(self, name: str) -> None:
        """Remember every file as it is now."""
        copy = self.phone.folder.with_name(self.phone.folder.name + "-picture")
        shutil.copytree(self.phone.folder, copy, ignore=_no_sockets)
        try:
            self.pictures |= {f"{name}: {path}": data for path, data in search.files_under(copy).items()}
        finally:
            shutil.rmtree(copy)

    def requests(self) -> list[tuple[Method, bytes]]:
        """Everything that left."""
        return [(seen.method, seen.body) for seen in self.phone.gateway.requests]

    def everything(self) -> dict[str, bytes]:
        """What is to be searched, by where it was found. The phone must have stopped."""
        sent = {
            f"request {number} {seen.method}: part {part}": data
            for number, seen in enumerate(self.phone.gateway.requests)
            for part, data in enumerate(search.decoded(seen.method, seen.body))
        }
        said = {"what callers heard": "\n".join(self.heard).encode(errors="surrogatepass")}
        return sent | said | self.pictures | search.files_under(self.phone.folder)

    def found(self) -> dict[str, list[bytes]]:
        """Return every hit of anything the owner wrote, by place: empty if all is well."""
        needles = search.Needles(self.words.texts)
        hits = {place: needles.hits(data) for place, data in self.everything().items()}
        return {place: found for place, found in hits.items() if found}


def _no_sockets(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if not (Path(folder) / name).is_file() and not (Path(folder) / name).is_dir()}


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def kill_children(pid: int) -> int:
    """kill -9 to all of them; return how many."""
    killed = 0
    for child in children(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            killed += 1
    return killed


@contextlib.contextmanager
def evening(seed: int, **options: Any) -> Iterator[Evening]:
    """A phone of its own and words of ``seed``."""
    with worlds.world(**options) as phone:
        yield Evening(phone, Words(random.Random(seed)))
