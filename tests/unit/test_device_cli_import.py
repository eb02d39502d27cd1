"""``fedlearn-device import``: what is shown is right, and no text of the file is anywhere but in the file."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fedlearn.wire import decode_contribution
from fedlearn_client import cli
from fedlearn_client.imports import FORMATS, OwnLine
from fedlearn_client.imports.signals import signals_of

_spec = importlib.util.spec_from_file_location("device_town_of_import", Path(__file__).with_name("device_town.py"))
assert _spec
assert _spec.loader
town: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = town
_spec.loader.exec_module(town)

NOW = float(int(time.time()))
MINE, THEIRS, NOTED = "zebrawort7153", "quokkamarmalade", "xylofrond"
"""Words that the catalogue does not have: of the owner, of somebody else, and in a message that says nothing."""

CHAT = f"""31/10/2025, 21:40 - Messages and calls are end-to-end encrypted.
31/10/2025, 21:41 - Ana: roast duck? {THEIRS}
31/10/2025, 21:42 - Bo Li: {MINE} 今晚想吃川菜的麻辣火锅, with parking please, not sushi
31/10/2025, 21:43 - Bo Li: {NOTED}
31/10/2025, 21:44 - Bo Li: something cheap, under 80 yuan, near by
"""
SAME_QUERY = CHAT.replace(MINE, "jabberfrumious").replace(f"Bo Li: {NOTED}", "Bo Li: nothing to see")
OTHER_QUERY = CHAT.replace("川菜", "粤菜").replace("麻辣火锅", "早茶")
TELEGRAM = {
    "messages": [
        {"type": "message", "date_unixtime": "1761946920", "from": "Ana", "from_id": "u1", "text": f"duck {THEIRS}"},
        {"type": "message", "date_unixtime": "1761946930", "from": "Bo Li", "from_id": "u2", "forwarded_from": "X",
         "text": f"我想吃烤鸭 {THEIRS}"},
        {"type": "message", "date_unixtime": "1761946940", "from": "Bo Li", "from_id": "u2",
         "text": [{"type": "blockquote", "text": f"roast duck {THEIRS} "},
                  f"{MINE} 今晚想吃川菜的麻辣火锅, with parking please, not sushi. something cheap, ",
                  "under 80 yuan, near by"]},
    ]
}  # fmt: skip

HEAVY = ("torch", "flwr", "hydra", "omegaconf", "onnx", "rich", "yaml", "sqlalchemy", "scipy", "fedlearn.lab", "ray")
"""What a phone has not got."""


@dataclass(frozen=True)
class Files:
    """What the command is given."""

    folder: Path

    def arguments(self, export: str, *more: str, form: str = "whatsapp-txt") -> list[str]:
        path = self.folder / "export"
        path.write_text(export)
        keys = ["--bundle", str(self.folder / "b"), "--catalogue", str(self.folder / "c"), "--root-key"]
        return ["import", str(path), "--format", form, "--me", "Bo Li", *keys, str(self.folder / "root.key.pub"), *more]

    def run(self, export: str, *more: str, form: str = "whatsapp-txt") -> tuple[int, str, str]:
        """Exit status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(self.arguments(export, *more, form=form))
        return status, out.getvalue(), err.getvalue()

    def facts(self, export: str, *more: str, form: str = "whatsapp-txt") -> dict[str, Any]:
        """What ``--json`` says."""
        status, out, err = self.run(export, "--json", *more, form=form)
        assert (status, err) == (0, "")
        return dict(json.loads(out))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("import")
    (folder / "b").write_bytes(town.signed_bundle(now=NOW))
    (folder / "c").write_bytes(town.signed_catalogue(now=NOW))
    (folder / "root.key.pub").write_text(town.root_key().public + "\n")
    return Files(folder)


def item() -> str:
    return str(town.catalogue().items[3].key)


def numbers(upload: dict[str, Any]) -> tuple[bytes, bytes, list[int]]:
    """Task, nonce and numbers of a printed upload."""
    sent = decode_contribution(bytes.fromhex(upload["bytes"]))
    return sent.task_digest, sent.nonce, sent.values.tolist()


def test_what_is_shown_is_what_was_said(files: Files) -> None:
    facts = files.facts(CHAT)
    assert (facts["lines_of_yours"], facts["kept"], facts["kept_days"]) == (3, 2, 30)
    assert facts["query"]["wishes"] == ["price 0 to 80", "cheap", "near by"]
    assert {"川菜", "not sushi"} <= {*facts["query"]["values"], *facts["query"]["words"]}
    assert not any("duck" in word for word in facts["query"]["words"])
    assert facts["upload"] is None
    telegram = files.facts(json.dumps(TELEGRAM), form="telegram-json")
    assert telegram["query"] == facts["query"]
    assert telegram["lines_of_yours"] == 1


def test_equal_queries_give_equal_numbers_and_others_do_not(files: Files) -> None:
    one, again, same, other = (
        files.facts(export, "--chose", item())["upload"] for export in (CHAT, CHAT, SAME_QUERY, OTHER_QUERY)
    )
    (task, nonce, values), (task_again, nonce_again, values_again) = numbers(one), numbers(again)
    assert (task, values) == (task_again, values_again)
    assert nonce != nonce_again
    assert bytes.fromhex(one["bytes"]).replace(nonce, nonce_again) == bytes.fromhex(again["bytes"])
    assert numbers(same)[2] == values
    assert same["values_sha256"] == one["values_sha256"]
    assert numbers(other)[2] != values  # the control
    assert other["values_sha256"] != one["values_sha256"]
    assert any(values)
    assert 0.0 < one["l2_norm"] <= one["l2_bound"]


def test_the_file_written_is_what_is_shown(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    facts = files.facts(CHAT, "--chose", item(), "--bytes", str(path))
    assert path.read_bytes().hex() == facts["upload"]["bytes"]
    assert path.stat().st_mode & 0o077 == 0


def test_no_text_of_the_file_is_anywhere_else(files: Files, tmp_path: Path) -> None:
    """Output, temporary files, process list; and none of what a phone has not got is needed."""
    code = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.startswith({HEAVY!r}):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from fedlearn_client.cli import main
sys.exit(main())
"""
    arguments = files.arguments(CHAT, "--chose", item(), "--bytes", str(tmp_path / "upload"))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=environment,
    ) as child:
        seen = b"".join(_watched(child))
        out, err = child.stdout.read(), child.stderr.read()  # type: ignore[union-attr]
    assert child.returncode == 0, err.decode()
    assert err == b""
    assert b"fedlearn_client.worker" in seen  # the control: it was running while it was looked at
    left = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert set(left) == {"upload"}
    for word in (MINE, THEIRS, NOTED):
        for where, data in {"output": out, "processes": seen, **left}.items():
            for form in (word.encode(), word.encode().hex().encode(), word.encode("utf-16-le")):
                assert form not in data, where
    assert max(map(len, out.decode().splitlines())) <= 110
    assert "川菜".encode() in out  # the control: words of the catalogue are shown


def _watched(child: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What the process list shows of it and its children while it runs."""
    while child.poll() is None:
        listed = Path("/proc").glob("[0-9]*")
        for process in listed:
            with contextlib.suppress(OSError):
                stat = (process / "stat").read_text().rpartition(")")[2].split()
                if int(process.name) == child.pid or int(stat[1]) == child.pid:
                    yield (process / "cmdline").read_bytes() + (process / "comm").read_bytes()
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("more", "says", "status"),
    [
        (["--chose", "nothing"], "--chose: must be an item of this catalogue", 2),
        (["--bytes", "x"], "add --chose ITEM", 2),
        (["--push", "messages"], "leave out one or the other", 2),
        (["--root-key", "zz"], "--root-key=zz: must be 64", 2),
        (["--bundle", "/nowhere"], "--bundle=/nowhere: cannot be read", 2),
        (["--format", "x"], "invalid choice", 2),
    ],
)
def test_mistakes_are_one_line(files: Files, more: Sequence[str], says: str, status: int) -> None:
    ended, out, err = files.run(CHAT, *more)
    assert (ended, out, err.count("\n")) == (status, "", 1)
    assert says in err
    assert MINE not in err


def test_documents_that_may_not_be_used_name_their_argument(files: Files) -> None:
    bundle, catalogue = str(files.folder / "b"), str(files.folder / "c")
    (files.folder / "other.pub").write_text(town.status_key().public)
    for more, says in (
        (["--bundle", catalogue], f"--bundle={catalogue}: "),
        (["--catalogue", bundle], f"--catalogue={bundle}: "),
        (["--bundle", str(files.folder / "export")], "--bundle="),
    ):
        ended, _, err = files.run(CHAT, *more)
        assert (ended, err.count("\n")) == (3, 1)
        assert says in err
    arguments = files.arguments(CHAT)
    arguments[arguments.index("--root-key") + 1] = str(files.folder / "other.pub")
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        assert cli.main(arguments) == 3
    assert "signed by 0" in err.getvalue()


@pytest.mark.parametrize(
    ("export", "form", "says"),
    [
        ("", "whatsapp-txt", "no WhatsApp export"),
        (MINE, "whatsapp-txt", "no WhatsApp export"),
        (CHAT.replace("Bo Li", "Cy"), "whatsapp-txt", "--me"),
        (MINE, "telegram-json", "no JSON"),
        ("[" * 99_999, "telegram-json", "no JSON"),
    ],
)
def test_files_that_are_no_export(files: Files, export: str, form: str, says: str) -> None:
    status, out, err = files.run(export, form=form)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert MINE not in err


def test_lines_that_a_phone_would_refuse_are_left_out_and_counted(files: Files) -> None:
    later = "31/10/2099, 21:45 - Bo Li: 早茶\n31/10/2099, 21:46 - Bo Li: " + "面" * 6000 + "\n"
    status, out, _ = files.run(CHAT + later)
    assert status == 0
    assert out.startswith("3 lines are yours. 2 say ")
    assert out.count("Left out: 1 ") == 2


def test_a_file_that_is_too_large_is_not_read(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedlearn_client.commands import import_command

    monkeypatch.setattr(import_command, "LARGEST_EXPORT", 100)
    status, _, err = files.run(CHAT)
    assert status == 2
    assert "at most 100" in err


def test_ids_are_the_same_again_and_never_twice() -> None:
    lines = [OwnLine("ok", 60.0), OwnLine("ok", 60.0), OwnLine("ok", 120.0)]
    ids = [signal.id for signal in signals_of(lines)]
    assert len(set(ids)) == 3
    assert [signal.id for signal in signals_of([*lines, OwnLine("more", 130.0)])][:3] == ids
    assert not any("ok" in one for one in ids)


def test_half_days_in_chinese() -> None:
    text = (
        "2023/12/31 下午9:41 - 李波: 想吃川菜\n[2023/12/31 上午12:05:06] 李波: 面\n2023/12/13 下午12:00 - 李波: 早茶\n"
    )
    lines = list(FORMATS["whatsapp-txt"](io.BytesIO(text.encode()), "李波"))
    told = [time.strftime("%H:%M:%S", time.localtime(line.time)) for line in lines]
    assert told == ["21:41:00", "00:05:06", "12:00:00"]
