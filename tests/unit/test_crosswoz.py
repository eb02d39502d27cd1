"""The CrossWOZ loader: protocol counts on the public sample, a hand-made release, and every bad input."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedlearn.errors import DataCorrupt, DataMissing, EmptyPopulation, UnknownSetting
from fedlearn.lab.data.crosswoz import DOMAINS, CrossWoz
from fedlearn.signals import Direction

ROOT = Path(os.environ.get("FEDLEARN_DATA_ROOT", Path(__file__).parents[2].parent / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (ROOT / "crosswoz").is_dir(),
    reason=f"no CrossWOZ in {ROOT}: set FEDLEARN_DATA_ROOT to the folder that holds it",
)


@pytest.mark.data
@needs_data
def test_counts_of_the_protocol() -> None:
    workers: set[str] = set()
    for domain, sessions, items in (("restaurant", 461, 951), ("attraction", 469, 465), ("hotel", 435, 1133)):
        data = CrossWoz(ROOT, domain)
        devices = list(data.devices())
        assert sum(len(d.sessions) for d in devices) == sessions
        assert len(data.catalogue) == items
        workers |= {d.id for d in devices}
        for session in (s for d in devices for s in d.sessions):
            own = [m.text for m in session.messages if m.direction is Direction.OUTGOING]
            assert own
            assert not any(data.catalogue.items[session.chosen].name in text for text in own)
    assert len(workers) == 60


def state(goal: int, domain: str, name: str) -> list[Any]:
    return [goal, domain, "名称", name, True]


def turn(text: str, *named: list[Any]) -> dict[str, Any]:
    return {"role": "usr", "content": text, "user_state": list(named)}


def reply(text: str) -> dict[str, Any]:
    return {"role": "sys", "content": text}


DIALOGUE = [
    turn("想去公园", state(1, "景点", "")),
    reply("推荐青山公园"),
    turn("好的,再来一家川菜", state(1, "景点", "青山公园")),
    reply("推荐老王火锅"),
    turn("就这家", state(1, "景点", "旧城博物馆"), state(2, "餐馆", "老王火锅")),
]
TABLES: dict[str, list[Any]] = {
    "restaurant": [
        ["老王火锅", {"人均消费": 80, "评分": 4.5, "推荐菜": ["毛肚"], "周边景点": ["青山公园"]}],
        ["小店", {}],
    ],
    "attraction": [["青山公园", {"门票": 0, "游玩时间": "1小时"}], ["旧城博物馆", {"门票": None, "评分": None}]],
    "hotel": [["大酒店", {"价格": 400, "酒店类型": "豪华型", "酒店设施": ["wifi"]}]],
}


def release(root: Path, layout: str = "{}_db.json.gz", **dialogues: Any) -> Path:
    for domain, rows in TABLES.items():
        path = root / "crosswoz" / layout.format(domain)
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = json.dumps(rows, ensure_ascii=False).encode()
        path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    split(root, dialogues or {"7": {"sys-usr": [1, 20], "messages": DIALOGUE}})
    return root


def split(root: Path, dialogues: Any, **more: str) -> None:
    with zipfile.ZipFile(root / "crosswoz" / "val.json.zip", "w") as archive:
        archive.writestr("val.json", dialogues if isinstance(dialogues, str) else json.dumps(dialogues))
        archive.writestr("__MACOSX/._val.json", "junk")
        for name, text in more.items():
            archive.writestr(f"{name}.json", text)


@pytest.mark.parametrize("layout", ["{}_db.json.gz", "{}_db.json", "database/{}_db.json"])
def test_one_dialogue_by_protocol(tmp_path: Path, layout: str) -> None:
    data = CrossWoz(release(tmp_path, layout), "restaurant")
    (device,) = data.devices()
    assert device.id == "20"
    (session,) = device.sessions
    assert [(m.text, m.direction.value) for m in session.messages] == [
        ("想去公园", "outgoing"),
        ("推荐青山公园", "incoming"),
        ("好的,再来一家川菜", "outgoing"),
        ("推荐老王火锅", "incoming"),
    ]
    assert [c.item for c in session.earlier] == ["attraction:青山公园"]
    assert (session.chosen, session.group) == (0, "7")


def test_catalogue_rows(tmp_path: Path) -> None:
    catalogue = CrossWoz(release(tmp_path), "restaurant").catalogue
    first = catalogue.items[0]
    assert (first.price, first.rating, first.attributes) == (80.0, 4.5, {"dish": ("毛肚",)})
    assert first.nearby == ("attraction:青山公园",)
    assert {i.domain for i in catalogue.context} == {"attraction", "hotel"}
    assert catalogue.context[1].price is None


def test_uttered_name_and_missing_message_are_left_out(tmp_path: Path) -> None:
    uttered = [turn("去老王火锅"), reply("好"), turn("好", state(1, "餐馆", "老王火锅"))]
    at_once = [turn("你好", state(1, "餐馆", "老王火锅"))]
    data = CrossWoz(
        release(
            tmp_path,
            **{
                "1": {"sys-usr": [1, 2], "messages": uttered},
                "2": {"sys-usr": [1, 2], "messages": at_once},
                "10": {"sys-usr": [1, 3], "messages": DIALOGUE},
                "9": {"sys-usr": [1, 3], "messages": DIALOGUE},
            },
        )
    )
    (device,) = data.devices()
    assert [s.group for s in device.sessions] == ["9", "10"]


def test_digest_follows_files_and_domain(tmp_path: Path) -> None:
    first = CrossWoz(release(tmp_path)).digest
    assert first == CrossWoz(tmp_path).digest
    assert first != CrossWoz(tmp_path, "hotel").digest
    split(tmp_path, {"8": {"sys-usr": [1, 20], "messages": DIALOGUE}})
    assert first != CrossWoz(tmp_path).digest


def test_protocol_names_task_and_tie_rule() -> None:
    protocol = CrossWoz(Path("anywhere"), "hotel", "test.json.zip").protocol
    assert "hotel" in protocol.task
    assert "test.json.zip" in protocol.split
    assert "against" in protocol.tie_rule


def test_unknown_domain_lists_the_choices() -> None:
    with pytest.raises(UnknownSetting, match="restaurant, attraction, hotel"):
        CrossWoz(Path(), "taxi")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"restaurant_db.json.gz.*data.root"):
        _ = CrossWoz(tmp_path).catalogue
    release(tmp_path)
    with pytest.raises(DataMissing, match=r"train.json.zip.*data.root"):
        list(CrossWoz(tmp_path, file="train.json.zip").devices())


ROW = gzip.compress('[["x", {"推荐菜": 3, "周边餐馆": 4}]]'.encode(), mtime=0)


@pytest.mark.parametrize("domain", list(DOMAINS))
@pytest.mark.parametrize(
    "raw",
    [b"junk", gzip.compress(b"{", mtime=0), gzip.compress(b"{}", mtime=0), gzip.compress(b"[[1]]", mtime=0), b"", ROW],
)
def test_corrupt_table_is_named(tmp_path: Path, domain: str, raw: bytes) -> None:
    release(tmp_path)
    (tmp_path / "crosswoz" / f"{domain}_db.json.gz").write_bytes(raw)
    with pytest.raises(DataCorrupt, match=f"{domain}_db.json.gz"):
        _ = CrossWoz(tmp_path).catalogue


def test_truncated_files_are_named(tmp_path: Path) -> None:
    release(tmp_path)
    for name in ("hotel_db.json.gz", "val.json.zip"):
        path = tmp_path / "crosswoz" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9])
        with pytest.raises(DataCorrupt, match=name):
            list(CrossWoz(tmp_path).devices())
        path.write_bytes(whole)


@pytest.mark.parametrize("dialogues", ["{", "[]", '{"1": {}}', '{"1": {"sys-usr": [1], "messages": []}}', '{"1": 3}'])
def test_corrupt_split_is_named(tmp_path: Path, dialogues: str) -> None:
    release(tmp_path)
    split(tmp_path, dialogues)
    with pytest.raises(DataCorrupt, match=r"val\.json\.zip"):
        list(CrossWoz(tmp_path).devices())


def test_split_with_two_files_is_refused(tmp_path: Path) -> None:
    release(tmp_path)
    split(tmp_path, "{}", other="{}")
    with pytest.raises(DataCorrupt, match="exactly one"):
        list(CrossWoz(tmp_path).devices())


def test_no_session_left_is_an_empty_population(tmp_path: Path) -> None:
    release(tmp_path)
    with pytest.raises(EmptyPopulation, match="hotel"):
        list(CrossWoz(tmp_path, "hotel").devices())
