"""CrossWOZ as a population of phones: Chinese chat, and what was chosen in three apps (task B1).

Source: Zhu, Huang, Zhang, Zhu & Huang (2020), CrossWOZ: A Large-Scale Chinese Cross-Domain Task-Oriented Dialogue
Dataset, TACL 8. The files are read from a folder and never shipped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fedlearn.catalogue import Catalogue, Item
from fedlearn.errors import DataCorrupt, DataMissing, EmptyPopulation, UnknownSetting
from fedlearn.lab.dataset import TaskProtocol
from fedlearn.signals import Choice, Device, Direction, Message, Session

PROTOCOL_VERSION = "crosswoz-b1/1"

DOMAINS: Mapping[str, str] = {"restaurant": "餐馆", "attraction": "景点", "hotel": "酒店"}
"""Domain -> its name inside the files."""

_PRICE = {"restaurant": "人均消费", "attraction": "门票", "hotel": "价格"}
_NEARBY = {"周边餐馆": "restaurant", "周边景点": "attraction", "周边酒店": "hotel"}
_ATTRIBUTES = {"推荐菜": "dish", "酒店设施": "facility", "酒店类型": "type"}

_Json = Any  # parsed JSON: checked where it is read


@dataclass(frozen=True)
class CrossWoz:
    """Loader of task B1 for one split file and one target domain.

    A device is a worker (``sys-usr[1]``). A session is one (goal, domain) of a dialogue for which ``user_state`` names
    an item of the data base; its label is the first such name. Messages are all turns strictly before that turn, the
    worker's as outgoing and the other side's as incoming; earlier choices are the items named in earlier turns of the
    dialogue, in any domain. Sessions in whose outgoing messages the item's name is uttered, or that have no outgoing
    message, are left out.

    Args:
        root: ``data.root``, the folder that holds ``crosswoz/``.
        domain: ``"restaurant"``, ``"attraction"`` or ``"hotel"``.
        file: split file inside ``root/crosswoz``, a zip with one JSON file.

    Raises:
        UnknownSetting: a domain that does not exist.
    """

    root: Path
    domain: str = "restaurant"
    file: str = "val.json.zip"

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise UnknownSetting(f"data.domain={self.domain!r}: choose one of {', '.join(DOMAINS)}.")

    @property
    def protocol(self) -> TaskProtocol:
        """Task, split, negatives and tie rule of results on this data set."""
        return TaskProtocol(
            task=f"B1 chat-zh, CrossWOZ -> {self.domain}",
            split=self.file,
            negatives="full ranking over all items of the domain",
            tie_rule="ties count against the positive",
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """The domain's data base in file order, and the other two as context.

        Raises:
            DataMissing: a data base file is absent.
            DataCorrupt: a data base file cannot be read.
        """
        items = {domain: self._items(domain) for domain in DOMAINS}
        context = tuple(item for domain in DOMAINS if domain != self.domain for item in items[domain])
        return Catalogue(f"CrossWOZ {self.domain}", self.domain, items[self.domain], context)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over the protocol version, the domain and the bytes of the four files that are read."""
        total = hashlib.sha256(f"{PROTOCOL_VERSION}/{self.domain}".encode())
        for path in (*(_database_path(self._folder, domain) for domain in DOMAINS), self._split_path):
            total.update(hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()

    def devices(self) -> Iterator[Device]:
        """Yield every worker with at least one session: workers by number, sessions by dialogue and turn.

        Raises:
            DataMissing: a file is absent.
            DataCorrupt: a file cannot be read, or lacks a field; the message names file, dialogue and field.
            EmptyPopulation: no session of the domain is left after the protocol's filters.
        """
        sessions: dict[int, list[Session]] = defaultdict(list)
        for dialogue in self._dialogues:
            sessions[dialogue.worker].extend(self._sessions(dialogue))
        found = [Device(str(worker), tuple(rows)) for worker, rows in sorted(sessions.items()) if rows]
        if not found:
            raise EmptyPopulation(f"{self._split_path}: no dialogue leads to a {self.domain}; use another split file.")
        yield from found

    def _items(self, domain: str) -> tuple[Item, ...]:
        try:
            return tuple(_item(domain, name, row) for name, row in self._databases[domain])
        except (TypeError, ValueError) as error:
            path = _database_path(self._folder, domain)
            raise DataCorrupt(f"{path}: a row is not in CrossWOZ form ({error}); fetch it again.") from error

    @property
    def _folder(self) -> Path:
        return Path(self.root) / "crosswoz"

    @property
    def _split_path(self) -> Path:
        path = self._folder / self.file
        if not path.is_file():
            raise DataMissing(
                f"{path} is absent: expected a CrossWOZ split (zip with one JSON file); set data.root to the folder "
                "that holds crosswoz/, e.g. data.root=../shared/data, and data.file to val, test or train.json.zip."
            )
        return path

    @cached_property
    def _databases(self) -> Mapping[str, Sequence[tuple[str, Mapping[str, _Json]]]]:
        return {domain: _read_database(_database_path(self._folder, domain)) for domain in DOMAINS}

    @cached_property
    def _dialogues(self) -> tuple[_Dialogue, ...]:
        path = self._split_path
        names = {DOMAINS[domain]: {name for name, _ in rows} for domain, rows in self._databases.items()}
        parsed = _read_split(path)
        found = []
        for dialogue_id, body in sorted(parsed.items(), key=lambda pair: (len(pair[0]), pair[0])):
            try:
                found.append(_dialogue(dialogue_id, body, names))
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise DataCorrupt(f"{path}: dialogue {dialogue_id} is not in CrossWOZ form ({error!r}).") from error
        return tuple(found)

    def _sessions(self, dialogue: _Dialogue) -> Iterator[Session]:
        for choice in dialogue.named:
            if choice.domain != self.domain:
                continue
            before = dialogue.messages[: choice.turn]
            own = [m.text for m in before if m.direction is Direction.OUTGOING]
            if not own or any(choice.name in text for text in own):
                continue
            earlier = tuple(
                Choice(f"{c.domain}:{c.name}", c.domain, c.turn) for c in dialogue.named if c.turn < choice.turn
            )
            label = self.catalogue.index[f"{choice.domain}:{choice.name}"]
            yield Session(before, earlier, label, dialogue.id)


@dataclass(frozen=True, slots=True)
class _Named:
    """The first turn in which the state of a (goal, domain) names an item."""

    turn: int
    domain: str
    name: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Dialogue:
    id: str
    worker: int
    messages: tuple[Message, ...]
    named: tuple[_Named, ...]


def _dialogue(dialogue_id: str, body: Mapping[str, _Json], names: Mapping[str, set[str]]) -> _Dialogue:
    english = {zh: domain for domain, zh in DOMAINS.items()}
    messages: list[Message] = []
    named: dict[tuple[int, str], _Named] = {}
    for turn, message in enumerate(body["messages"]):
        own = message["role"] == "usr"
        messages.append(Message(str(message["content"]), Direction.OUTGOING if own else Direction.INCOMING, turn))
        for goal, domain, slot, value, *_ in message["user_state"] if own else ():
            known = slot == "名称" and isinstance(value, str) and value in names.get(domain, ())
            if known and (goal, domain) not in named:
                named[goal, domain] = _Named(turn, english[domain], value)
    return _Dialogue(dialogue_id, int(body["sys-usr"][1]), tuple(messages), tuple(named.values()))


def _item(domain: str, name: str, row: Mapping[str, _Json]) -> Item:
    return Item(
        domain=domain,
        name=name,
        attributes=_attributes(row),
        price=_number(row.get(_PRICE[domain])),
        rating=_number(row.get("评分")),
        duration=str(row.get("游玩时间") or ""),
        nearby=tuple(f"{near}:{other}" for key, near in _NEARBY.items() for other in row.get(key) or ()),
    )


def _attributes(row: Mapping[str, _Json]) -> Mapping[str, tuple[str, ...]]:
    found = {}
    for key, name in _ATTRIBUTES.items():
        value = row.get(key)
        if value:
            found[name] = (value,) if isinstance(value, str) else tuple(str(v) for v in value)
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and value >= 0 else None


def _database_path(folder: Path, domain: str) -> Path:
    names = (f"{domain}_db.json.gz", f"{domain}_db.json", f"database/{domain}_db.json")
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataMissing(
        f"{folder / names[0]} is absent: expected one of {', '.join(names)} in {folder}; set data.root to the folder "
        "that holds crosswoz/, e.g. data.root=../shared/data."
    )


def _read_database(path: Path) -> list[tuple[str, Mapping[str, _Json]]]:
    try:
        raw = path.read_bytes()
        parsed = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataCorrupt(f"{path} is not a readable CrossWOZ data base ({error}); fetch it again.") from error
    rows = parsed if isinstance(parsed, list) else None
    if not rows or not all(isinstance(r, list) and len(r) == 2 and isinstance(r[1], dict) for r in rows):
        raise DataCorrupt(f"{path}: expected a JSON list of [name, attributes] pairs; fetch it again.")
    return [(str(name), row) for name, row in rows]


def _read_split(path: Path) -> dict[str, Mapping[str, _Json]]:
    try:
        with zipfile.ZipFile(path) as archive:
            inside = [n for n in archive.namelist() if n.endswith(".json") and "__MACOSX" not in n]
            if len(inside) != 1:
                raise DataCorrupt(f"{path}: expected exactly one .json inside, found {len(inside)}.")
            parsed = json.loads(archive.read(inside[0]))
    except (OSError, EOFError, zlib.error, ValueError, RuntimeError, zipfile.BadZipFile) as error:
        raise DataCorrupt(f"{path} is not a readable CrossWOZ split ({error}); fetch it again.") from error
    if not isinstance(parsed, dict):
        raise DataCorrupt(f"{path}: expected a JSON object of dialogues, found a {type(parsed).__name__}.")
    return {str(key): body for key, body in parsed.items()}
