"""``fedlearn-device`` as a phone maker's engineer uses it on the first day, against a real daemon."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedlearn.proto import gateway_pb2
from fedlearn.wire import decode_contribution
from fedlearn_client import cli
from fedlearn_client.commands.example_settings import SETTINGS as EXAMPLE


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


worlds = load("device_world_of_commands", Path(__file__).with_name("device_world.py"))
CHAT, READING, SURFACE, MAPS = worlds.CHAT, worlds.READING, worlds.SURFACE, worlds.MAPS
SETTINGS, SYSTEM = worlds.SETTINGS, worlds.SYSTEM
TRAIN, RECOMMEND, OPERATOR = worlds.town.TRAIN, worlds.town.RECOMMEND, worlds.town.OPERATOR
CANARY = "quokka-marmalade-7153"


class Engineer:
    """Runs commands as an app of a phone, and keeps everything that they wrote.

    Args:
        phone: a world.
    """

    def __init__(self, phone: Any) -> None:
        self.phone = phone
        self.heard: list[str] = []

    def run(self, app: str, *arguments: str) -> tuple[int, str, str]:
        """Exit status, output, errors."""
        out, err = io.StringIO(), io.StringIO()
        given = [*arguments, "--device", self.phone.config().sockets[app][0]]
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli.main(given)
        self.heard += [out.getvalue(), err.getvalue()]
        return status, out.getvalue(), err.getvalue()

    def does(self, app: str, *arguments: str) -> str:
        """Run what must be done, and return what it wrote."""
        status, out, err = self.run(app, *arguments)
        assert (status, err) == (0, ""), err
        return out

    def json(self, app: str, *arguments: str) -> dict[str, Any]:
        """The same, for machines."""
        return dict(json.loads(self.does(app, *arguments, "--json")))

    def fails(self, app: str, *arguments: str) -> tuple[int, str]:
        """Run what must fail; return exit status and the one line."""
        status, out, err = self.run(app, *arguments)
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("error FL")
        return status, err.rstrip()


def lines(path: Path, *bodies: object) -> str:
    path.write_text("".join(json.dumps(body, ensure_ascii=False) + "\n" for body in bodies))
    return str(path)


def said(text: str, name: str, before_s: float = 60.0, **changes: object) -> dict[str, object]:
    at = round((time.time() - before_s) * 1000)
    return {"id": name, "time_ms": at, "text": text, "direction": "outgoing", **changes}


@pytest.fixture(scope="module")
def engineer() -> Iterator[Engineer]:
    """Of a phone with everything installed, an adult owner, and one stream."""
    with worlds.world(inside=False) as phone:
        phone.register(CHAT)
        yield Engineer(phone)
    worlds.forget_prepared()


def test_the_first_day(tmp_path: Path) -> None:
    """From an empty phone to a withdrawal, in the order that the commands themselves tell."""
    with worlds.world(installed=False, inside=False) as phone:
        one = Engineer(phone)
        install_in_order(one, tmp_path)
        consent_and_push(one, tmp_path)
        train_and_read_the_log(one)
        withdrawn = one.does(SETTINGS, "consent", "withdraw", CHAT, "message_content", RECOMMEND, SURFACE)
        assert withdrawn.startswith("off; receipt signed by ")
        assert "off before" in one.does(SETTINGS, "consent", "withdraw", CHAT, "message_content", RECOMMEND, SURFACE)
        assert '"withdrawn"' in one.does(SETTINGS, "log", "receipts")
        assert not any(CANARY in text for text in one.heard)


def install_in_order(one: Engineer, tmp_path: Path) -> None:
    files = {
        "task.flb": worlds.bundle(),
        "catalogue.flb": worlds.town.signed_catalogue(now=worlds.NOW),
        "status": worlds.town.signed_status(now=worlds.NOW),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    task, catalogue, status = (str(tmp_path / name) for name in files)
    empty = one.does(SYSTEM, "status")
    assert "next: install the task bundle (*.task.flb)" in empty
    assert "status      none\n" in empty
    assert "no switches" in one.does(SETTINGS, "consent")
    assert one.fails(SETTINGS, "consent", "grant", CHAT, "message_content", RECOMMEND, MAPS)[0] == 3
    for early in (catalogue, status):
        code, line = one.fails(SYSTEM, "install", early)
        assert code == 3
        assert "task bundle" in line
    installed = one.does(SYSTEM, "install", task)
    assert installed.startswith("installed task bundle ")
    assert installed.count("next: ") == 2
    assert one.does(SYSTEM, "install", status).count("next: ") == 1
    assert "next: " not in one.does(SYSTEM, "install", catalogue)
    assert "next: " not in one.does(SYSTEM, "status")


def consent_and_push(one: Engineer, tmp_path: Path) -> None:
    owner = one.does(SETTINGS, "consent", "list")
    assert "nothing can be on" in owner
    status_of, words, line = one.run(SETTINGS, "consent", "grant", CHAT, "message_content", RECOMMEND, SURFACE)
    assert (status_of, words.startswith('"')) == (3, True)  # the words are shown before the switch
    assert "minor or of unknown age" in line
    one.does(SETTINGS, "consent", "owner", "--age", "adult")
    granted = one.does(SETTINGS, "consent", "grant", CHAT, "message_content", RECOMMEND, SURFACE)
    assert granted.endswith("on, but no effect: the app has registered no such stream yet\n")

    wish = lines(tmp_path / "wish", said(f"{CANARY} 今晚想吃川菜的麻辣火锅", "w"))
    assert one.does(CHAT, "push", "messages", "message_content", wish) == "1 signals handed over\n"
    one.does(SETTINGS, "consent", "grant", CHAT, "message_content", TRAIN, OPERATOR)
    one.does(CHAT, "push", "messages", "message_content", lines(tmp_path / "2", said("想吃川菜 cheap", "x", 50.0)))
    key = worlds.items()[3]
    one.does(SETTINGS, "consent", "grant", READING, "choice", TRAIN, OPERATOR)
    item = {"id": "c", "time_ms": round((time.time() - 40) * 1000), "item": key}
    one.does(READING, "push", "chosen", "choice", lines(tmp_path / "3", item))
    ranked = one.does(SURFACE, "recommend", RECOMMEND, "--count", "3")
    assert f"used: message_content of {CHAT}" in ranked
    assert "not told" in one.does(MAPS, "recommend", RECOMMEND, "--count", "3")


def train_and_read_the_log(one: Engineer) -> None:
    assert one.does(SYSTEM, "train-now", TRAIN) == "acknowledged\n"
    code, line = one.fails(SYSTEM, "train-now", TRAIN)
    assert (code, line) == (3, "error FL905: too_soon: this phone took part too short a time ago.")
    assert one.run(SYSTEM, "train-now", TRAIN, "--json")[:2] == (3, '{\n "outcome": "refused: too_soon"\n}\n')
    runs = one.does(SETTINGS, "log")
    assert "acknowledged" in runs
    assert max(map(len, runs.splitlines())) <= 100
    (sent,) = [e for e in one.json(SETTINGS, "log", "egress", "--bytes")["entries"] if e["method"].endswith("load")]
    assert sent["state"] == "acknowledged"
    egress = one.does(SETTINGS, "log", "egress", "--bytes")
    (body,) = one.phone.gateway.uploads()
    assert body.hex() in egress
    assert decode_contribution(gateway_pb2.UploadRequest.FromString(body).contribution).count == 1
    assert "took part 1 times" in one.does(SETTINGS, "log", "budget")


WHO_MAY = {
    "status": ({SYSTEM}, ["status"]),
    "install": ({SYSTEM}, ["install", "FILE"]),
    "pause": ({SYSTEM}, ["pause", "--off"]),
    "train-now": ({SYSTEM}, ["train-now", TRAIN]),
    "consent": ({SETTINGS}, ["consent", "list"]),
    "log runs": ({SETTINGS}, ["log", "runs"]),
    "log egress": ({SETTINGS}, ["log", "egress"]),
    "log budget": ({SETTINGS}, ["log", "budget"]),
    "log receipts": ({SETTINGS}, ["log", "receipts"]),
    "recommend": ({CHAT, SURFACE}, ["recommend", RECOMMEND]),
}


@pytest.mark.parametrize("command", list(WHO_MAY))
def test_the_wrong_caller_is_told_who_may(engineer: Engineer, command: str, tmp_path: Path) -> None:
    allowed, arguments = WHO_MAY[command]
    (tmp_path / "b").write_bytes(worlds.bundle())
    arguments = [str(tmp_path / "b") if one == "FILE" else one for one in arguments]
    for app in {CHAT, SURFACE, SETTINGS, SYSTEM} - allowed:
        for form in ([], ["--json"]):
            status, line = engineer.fails(app, *arguments, *form)
            assert status == 3
            assert "error FL901: " in line
            assert "is for role" in line


def test_only_an_app_pushes(engineer: Engineer, tmp_path: Path) -> None:
    path = lines(tmp_path / "f", said("x", "x"))
    for app in (SURFACE, SETTINGS, SYSTEM):
        status, line = engineer.fails(app, "push", "messages", "message_content", path)
        assert (status, "FL901" in line) == (3, True)


def test_a_refused_line_is_named_by_its_number(engineer: Engineer, tmp_path: Path) -> None:
    many = [said("想吃川菜", f"n{number}") for number in range(1100)]
    late = said(CANARY, "late", before_s=-9999.0)
    path = lines(tmp_path / "f", *many[:700], late, *many[700:])
    status, line = engineer.fails(CHAT, "push", worlds.STREAM, "message_content", path)
    assert status == 2
    assert f"{path}, line 701: time_ms: more than 300 s ahead" in line
    assert "500 signals before it were handed over" in line
    path = lines(tmp_path / "f", *many, {"id": CANARY})
    status, line = engineer.fails(CHAT, "push", worlds.STREAM, "message_content", path)
    assert "line 1101: " in line
    assert "1000 signals before it" in line
    twice = lines(tmp_path / "f", many[0], many[0], many[1])
    assert engineer.json(CHAT, "push", worlds.STREAM, "message_content", twice) == {"received": 3}
    assert engineer.does(CHAT, "push", worlds.STREAM, "message_content", lines(tmp_path / "f")).startswith("0 ")
    for arguments, says in (
        (["Not A Name", "message_content"], "stream: must be"),
        ([worlds.STREAM, "choice"], "registered for message_content"),
    ):
        status, line = engineer.fails(CHAT, "push", *arguments, twice)
        assert (status, says in line) == (2, True)
    assert not any(CANARY in text for text in engineer.heard)


def test_words_that_fit_no_switch_are_named(engineer: Engineer) -> None:
    for words, says in (
        (["nobody", "choice", RECOMMEND, MAPS], f"app: the policy has no such switch; there is {CHAT}"),
        ([CHAT, "choice", RECOMMEND, MAPS], "data_type: the policy has no such switch; there is message_content."),
        ([CHAT, "message_content", "x", MAPS], "purpose: "),
        ([CHAT, "message_content", RECOMMEND, "x"], "recipient: "),
    ):
        for action in ("grant", "withdraw"):
            status, line = engineer.fails(SETTINGS, "consent", action, *words)
            assert status == 3
            assert f"FL902: {says}" in line


def test_json_is_the_contract(engineer: Engineer) -> None:
    """Options stand before or after an action; the fields are those of the contract, empty ones too."""
    grants = engineer.json(SETTINGS, "consent", "list")["grants"]
    given = [SETTINGS, "consent", "--json", "list", "--device", engineer.phone.config().sockets[SETTINGS][0]]
    assert json.loads(engineer.does(*given))["grants"] == grants
    assert {"app", "data_type", "purpose", "recipient", "on", "blocked"} <= set(grants[0])
    switch = [CHAT, "message_content", RECOMMEND, MAPS]
    assert engineer.json(SETTINGS, "consent", "grant", *switch) == {}
    assert "receipt" in engineer.json(SETTINGS, "consent", "withdraw", *switch)
    assert engineer.json(SETTINGS, "consent", "owner", "--age", "adult")["personal_off"] is False
    assert engineer.json(SYSTEM, "status")["paused"] is False
    assert engineer.json(SYSTEM, "pause") == {}
    assert "PAUSED" in engineer.does(SYSTEM, "status")
    status, line = engineer.fails(SYSTEM, "train-now", TRAIN)
    assert (status, line) == (3, "error FL900: refused: paused: training is paused.")
    assert engineer.does(SYSTEM, "pause", "--off").startswith("not paused")


def test_a_ranking_and_what_was_chosen_of_it(engineer: Engineer) -> None:
    table = engineer.does(SURFACE, "recommend", RECOMMEND, "--count", "3").splitlines()
    assert table[0].split() == ["score", "item"]
    assert len(table) == 2 + 3 + 1
    item = engineer.json(SURFACE, "recommend", RECOMMEND, "--count", "1")["items"][0]["item"]
    told = engineer.does(SURFACE, "recommend", RECOMMEND, "--count", "1", "--choose", item)
    assert told.endswith(f"told the runtime: {item} was chosen\n")
    status, out, err = engineer.run(SURFACE, "recommend", RECOMMEND, "--choose", "no:thing")
    assert (status, err) == (2, "error FL903: item: was not in that ranking.\n")
    assert out.count("\n") > 3  # the ranking was shown before
    status, line = engineer.fails(CHAT, "recommend", "nothing")
    assert (status, "FL901" in line) == (3, True)


def test_an_export_is_handed_over_twice_and_counts_once(engineer: Engineer, tmp_path: Path) -> None:
    day = time.strftime("%d/%m/%Y", time.localtime(time.time() - 3 * 86_400))
    if int(day[:2]) <= 12:  # only a day over 12 tells the order of day and month
        day = time.strftime("%Y/%m/%d", time.localtime(time.time() - 3 * 86_400))
    export = tmp_path / "chat.txt"
    export.write_text(
        f"{day}, 21:40 - Ana: 我想吃烤鸭\n{day}, 21:41 - Bo: {CANARY} 想吃川菜\n{day}, 21:41 - Bo: 想吃川菜\n"
        f"{day}, 21:41 - Bo: 想吃川菜\n{day}, 21:42 - Bo: {CANARY}\n"
    )
    engineer.does(SETTINGS, "consent", "grant", CHAT, "message_content", RECOMMEND, SURFACE)
    before = int(engineer.json(SYSTEM, "status")["signals"])
    arguments = ["import", str(export), "--format", "whatsapp-txt", "--me", "Bo", "--push", "imported"]
    assert engineer.does(CHAT, *arguments).startswith("4 lines handed over")
    assert int(engineer.json(SYSTEM, "status")["signals"]) == before + 3  # one says nothing
    assert engineer.json(CHAT, *arguments) == {"received": 4}
    assert int(engineer.json(SYSTEM, "status")["signals"]) == before + 3
    assert engineer.fails(SURFACE, *arguments)[0] == 3
    assert not any(CANARY in text for text in engineer.heard)
    state = engineer.phone.state
    assert not any(CANARY.encode() in path.read_bytes() for path in state.rglob("*") if path.is_file())


# -- with the uids of a phone, and as the service runs it --------------------------------------------------------------

AS_UID = """
import importlib, os, sys
import fedlearn_client.cli as cli, grpc, tabulate
for name in cli.COMMANDS:
    if name not in {"serve", "import", "conformance"}:
        importlib.import_module(f"fedlearn_client.commands.{name.replace('-', '_')}_command")
uid = int(sys.argv[1])
os.setgroups([]); os.setgid(uid); os.setuid(uid)
sys.exit(cli.main(sys.argv[2:]))
"""
SERVE = "import sys; from fedlearn_client.cli import main; sys.exit(main())"


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter, with a short name."""
    with tempfile.TemporaryDirectory(prefix="fedlearn-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def served(folder: Path, callers: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Start ``fedlearn-device serve`` with the example settings, moved into a folder."""
    text = EXAMPLE.replace("PUT THE 64 HEXADECIMAL DIGITS OF root.key.pub HERE", worlds.town.root_key().public)
    for place, name in (("/var/lib/fedlearn", "var"), ("/run/fedlearn", "run"), ("/etc/fedlearn", "etc")):
        text = text.replace(place, str(folder / name))
        (folder / name).mkdir(exist_ok=True)
    (folder / "device.toml").write_text(text)
    (folder / "etc" / "callers.toml").write_text(callers)
    (folder / "etc" / "callers.toml").chmod(0o644)
    command = [*before, sys.executable, "-c", SERVE, "serve", "--settings", str(folder / "device.toml")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_serve_says_one_line_and_stops_when_told(folder: Path) -> None:
    callers = f'[{os.geteuid()}]\napp = "org.city.system"\nrole = "system"\n'
    with served(folder, callers) as daemon:
        assert daemon.stdout is not None
        line = daemon.stdout.readline()
        assert line == f"serving unix:{folder}/run/device.sock, store in {folder}/var/store\n"
        status = subprocess.run(
            [sys.executable, "-c", SERVE, "status", "--device", f"{folder}/run/device.sock"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (status.returncode, status.stderr) == (0, "")
        with served(folder, callers) as second:  # while the first one serves
            assert second.wait(60) == 2
            assert second.stderr is not None
            error = second.stderr.read()
        assert error.count("\n") == 1
        assert "another daemon serves it" in error
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(60) == 0
        assert daemon.stderr is not None
        assert (daemon.stdout.read(), daemon.stderr.read()) == ("", "")


@pytest.mark.skipif(os.geteuid() != 0, reason="apps are other users: only root can start them")
def test_a_phone_of_several_users(folder: Path) -> None:
    """Each with its own uid; the uid alone says who it is."""
    roles = {21001: (CHAT, "app"), 21005: (SURFACE, "surface"), 21006: (SETTINGS, "settings"), 0: (SYSTEM, "system")}
    callers = "".join(f'[{uid}]\napp = "{app}"\nrole = "{role}"\n' for uid, (app, role) in roles.items())

    def run(uid: int, *arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-c", AS_UID, str(uid), *arguments, "--device", f"unix:{folder}/run/device.sock"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in ended.stderr
        return ended.returncode, ended.stdout + ended.stderr

    with served(folder, callers) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        try:
            assert run(0, "status")[0] == 0
            assert run(21006, "consent")[0] == 0
            for uid, command in ((21001, "status"), (21005, "consent")):
                status, line = run(uid, command)
                assert (status, "is for role" in line) == (3, True)
            status, line = run(21999, "status")
            assert (status, line) == (
                3,
                "error FL901: uid 21999 is not a known caller; the phone maker's callers file must list it.\n",
            )
            # the server behind the relay is out of reach
            behind = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    AS_UID,
                    "21001",
                    "recommend",
                    "x",
                    "--device",
                    f"{folder}/run/device.sock.d/grpc",
                ],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert (behind.returncode, "may not reach it" in behind.stderr) == (1, True)
        finally:
            daemon.terminate()
        assert daemon.wait(60) == 0


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv to take capabilities away"
)
def test_the_service_without_privileges_can_confine_its_worker(folder: Path, tmp_path: Path) -> None:
    """NoNewPrivileges and an empty bounding set, as the unit has them: a bundle's golden vectors run in the sandbox."""
    (tmp_path / "task.flb").write_bytes(worlds.bundle())
    callers = '[0]\napp = "org.city.system"\nrole = "system"\n'
    hardened = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
    with served(folder, callers, hardened) as daemon:
        assert daemon.stdout is not None
        daemon.stdout.readline()
        held = Path(f"/proc/{daemon.pid}/status").read_text()
        assert "NoNewPrivs:\t1" in held
        assert "CapBnd:\t0000000000000000" in held
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            done = cli.main(["install", str(tmp_path / "task.flb"), "--device", f"{folder}/run/device.sock"])
        daemon.terminate()
        assert daemon.wait(60) == 0
    assert done == 0
    assert out.getvalue().startswith("installed task bundle ")
