"""``fedlearn-device`` without a daemon: one line for every mistake, the right exit status, never a traceback."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

import grpc
import pytest

from fedlearn import errors
from fedlearn.device.archive import write_archive
from fedlearn.errors import ConfigError, FedlearnError, OutOfRange, Refusal, SignalRefused, TaskRefused
from fedlearn_client import cli
from fedlearn_client.commands import consent_command, push_command, status_command
from fedlearn_client.commands.arguments import exit_status
from fedlearn_client.commands.connection import as_error
from fedlearn_client.commands.example_settings import CALLERS, SETTINGS
from fedlearn_client.hooks import Role
from fedlearn_client.linux.callers import CallersFile
from fedlearn_client.relay import private_directory
from fedlearn_client.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "clients" / "systemd" / "fedlearn-device.service"
CANARY = "quokka-marmalade-7153"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit status and the one line that a mistake may write."""
    status, out, err = run(capsys, *arguments)
    assert out == ""
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert err.startswith("error FL")
    return status, err


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    code = "import sys; from fedlearn_client.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *arguments], text=True, timeout=60, check=False, **options)  # type: ignore[call-overload]


# -- the words on the command line -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND: name one"),
        (["--json", "status"], "options after it"),
        (["stauts"], "did you mean status?"),
        (["zzz"], "there are serve, status, install"),
        (["status", "more"], "unrecognized arguments: more"),
        (["pause", "--of"], "unrecognized arguments"),  # an option is never guessed
        (["install"], "required: file"),
        (["consent", "grant", "chat", "texts", "a", "b"], "invalid choice: 'texts'"),
        (["consent", "owner"], "--age"),
        (["log", "egress", "--limit", "-1"], "must be a whole number in 1..1000"),
        (["log", "runs", "--bytes"], "`log egress --bytes`"),
        (["recommend", "restaurants", "--count", "0"], "must be a whole number in 1..100"),
        (["serve"], "serve --example settings"),
        (["serve", "--settings", "/nowhere/device.toml"], "cannot be read"),
        (["serve", "--example", "all"], "invalid choice"),
        (["status", "--device", ""], "no address"),
        (["status", "--device", "device.sock"], "no address"),
    ],
)
def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], says: str) -> None:
    status, line = mistake(capsys, *arguments)
    assert status == 2
    assert says in line


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "conformance"])
def test_every_command_helps(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: fedlearn-device {command}" in capsys.readouterr().out


def test_exit_statuses() -> None:
    statuses = {
        ConfigError: 2,
        OutOfRange: 2,
        SignalRefused: 2,
        errors.TransportFailed: 1,
        errors.WorkerFailed: 1,
        errors.MessageTooLarge: 1,
        errors.BundleRefused: 3,
        errors.CallerRefused: 3,
        errors.ConsentRefused: 3,
        errors.StoreFailed: 3,
        errors.RateLimited: 3,
    }
    assert {kind: exit_status(kind("why")) for kind in statuses} == statuses
    assert exit_status(TaskRefused(Refusal.BUDGET, "why")) == 3


# -- what happens in the middle ----------------------------------------------------------------------------------------


def test_what_nobody_expected_says_where_and_not_what(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(arguments: Sequence[str]) -> int:
        raise ValueError(CANARY)

    monkeypatch.setattr(status_command, "main", fail)
    status, line = mistake(capsys, "status")
    assert status == 1
    assert "FL000" in line
    assert "ValueError at test_device_cli.py" in line
    assert CANARY not in line


def test_a_message_of_two_lines_is_one(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: Sequence[str]) -> int:
        raise ConfigError("field: one\n  two")

    monkeypatch.setattr(status_command, "main", fail)
    assert mistake(capsys, "status")[1] == "error FL100: field: one two\n"


def test_control_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: Sequence[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(status_command, "main", interrupted)
    assert run(capsys, "status") == (130, "", "")


def test_a_reader_that_goes_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    ended = process("serve", "--example", "settings", stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_said() -> None:
    with Path("/dev/full").open("w") as full:
        ended = process("serve", "--example", "settings", stdout=full, stderr=subprocess.PIPE)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "No space left on device" in ended.stderr


def test_a_terminal_without_chinese() -> None:
    code = "import sys; from fedlearn_client import cli; cli._write_whatever_the_terminal_has(); print('面')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "\\u9762\n"


# -- nobody, or somebody else, at the address --------------------------------------------------------------------------


def test_nobody_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dead = tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    (tmp_path / "file").touch()
    for name, says in (("none", "no socket lies there"), ("dead", "nobody serves it"), ("file", "nobody serves it")):
        status, line = mistake(capsys, "status", "--device", str(tmp_path / name))
        assert status == 1
        assert "FL907" in line
        assert says in line


def test_a_server_that_is_no_runtime(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_insecure_port(f"unix:{tmp_path}/s")
        server.start()
        status, line = mistake(capsys, "status", "--device", f"unix:{tmp_path}/s")
        server.stop(None).wait()
    assert status == 1
    assert "no fedlearn runtime of this version" in line


class Failed(grpc.RpcError):
    """What gRPC raises."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__()
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("code", "details", "number", "status"),
    [
        ("PERMISSION_DENIED", "FL901 who", "FL901", 3),
        ("FAILED_PRECONDITION", "FL804 roster: old.", "FL804", 3),
        ("FAILED_PRECONDITION", "FL905 too_soon: wait.", "FL905", 3),
        ("INVALID_ARGUMENT", "FL302 request: large.", "FL302", 1),
        ("INVALID_ARGUMENT", "FL903 signals[0].id: empty.", "FL903", 2),
        ("UNAVAILABLE", "FL906 worker: died.", "FL906", 1),
        ("INTERNAL", "FL000 internal error; the log of the runtime has its kind.", "FL000", 1),
        ("INTERNAL", "FL400 duplicate", "FL000", 1),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (20 vs. 9)", "FL302", 1),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", "FL907", 1),
        ("UNKNOWN", "anything", "FL907", 1),
    ],
)
def test_a_refusal_keeps_its_code(code: str, details: str, number: str, status: int) -> None:
    found = as_error(Failed(grpc.StatusCode[code], details), "unix:/s")
    assert found.code == number
    assert exit_status(found) == status
    assert not str(found).startswith("FL")


# -- files -------------------------------------------------------------------------------------------------------------


def test_what_is_no_bundle_is_not_sent(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def envelope(kind: str) -> bytes:
        return json.dumps(
            {"payloadType": f"application/vnd.fedlearn.{kind}.v1+json", "payload": "", "signatures": []}
        ).encode()

    whole = write_archive({"plan.json": b"{}"})
    files = {
        "empty": (b"", "neither a bundle nor a signed status", 2),
        "text": (CANARY.encode(), "neither a bundle", 2),
        "policy.dsse.json": (envelope("policy"), "a signed policy is not installed by itself", 2),
        "roster.json": (envelope("roster"), "a signed roster is not installed by itself", 2),
        "other.json": (envelope("x"), "of another kind", 2),
        "deep.json": (b"[" * 100_000, "neither a bundle", 2),
        "cut.task.flb": (whole[:-9], "damaged", 3),
        "more.task.flb": (whole + b"\n", "damaged", 3),
        "large.task.flb": (bytes(9 << 20), "at most", 2),
    }
    for name, (data, says, expected) in files.items():
        (tmp_path / name).write_bytes(data)
        status, line = mistake(capsys, "install", str(tmp_path / name), "--device", "/nowhere/s")
        assert (name, status) == (name, expected)
        assert says in line
        assert CANARY not in line
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe", Path("/dev/zero")):
        status, line = mistake(capsys, "install", str(path), "--device", "/nowhere/s")
        assert status == 2
        assert str(path) in line


GOOD = {"id": "a", "time_ms": 5, "text": "面", "direction": "outgoing"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"id": None}, "id: must be a text"),
        ({"id": 7}, "id: must be a text"),
        ({"time_ms": 1.5}, "time_ms"),
        ({"time_ms": True}, "time_ms"),
        ({"time_ms": -1}, "time_ms"),
        ({"time_ms": 10**30}, "time_ms"),
        ({"text": f"{CANARY}\ud800"}, "text: must be a text of valid characters"),
        ({"text": [CANARY]}, "text: must be a text"),
        ({"direction": CANARY}, "direction: must be one of outgoing, incoming"),
        ({"direction": ["outgoing"]}, "direction"),
        ({"direction": None}, "direction"),
        ({"foreign_spans": None}, "foreign_spans"),
        ({"foreign_spans": [[1]]}, "foreign_spans"),
        ({"foreign_spans": [[-1, 2]]}, "foreign_spans"),
        ({"foreign_spans": [[0, 2**32]]}, "foreign_spans"),
        ({"foreign_spans": [[0, True]]}, "foreign_spans"),
        ({"item": "a:b"}, "not both"),
        ({CANARY: 1}, "no fields but"),
    ],
)
def test_a_line_that_is_no_signal(change: dict[str, object], says: str) -> None:
    with pytest.raises(SignalRefused, match=says) as refused:
        push_command.signal_of(GOOD | change)
    assert CANARY not in str(refused.value)


def test_lines_that_are_signals() -> None:
    message = push_command.signal_of(GOOD | {"foreign_spans": [[0, 1], [2, 3]]})
    assert [(span.start, span.end) for span in message.message.foreign_spans] == [(0, 1), (2, 3)]
    assert push_command.signal_of({"id": "c", "time_ms": 0, "item": "a:面"}).choice.item == "a:面"
    for other in (
        None,
        [],
        "text",
        {"id": "c", "time_ms": 0},
        {"id": "c", "time_ms": 0, "item": "a:b", "direction": 1},
    ):
        with pytest.raises(SignalRefused):
            push_command.signal_of(other)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\n\n  \n" + CANARY.encode(), "line 4: not JSON"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'"\xff\xfe"', "line 1: not UTF-8"),
        (json.dumps(GOOD).encode() + b"\n" + b"9" * 300_000, "line 2: longer than 256 KiB"),
    ],
)
def test_a_file_with_a_bad_line(data: bytes, says: str) -> None:
    with pytest.raises(SignalRefused, match=says) as refused:
        list(push_command._lines(io.BytesIO(data), "file"))
    assert CANARY not in str(refused.value)


def test_one_request_has_no_id_twice_and_not_too_many() -> None:
    def line(number: int) -> push_command.Line:
        return push_command.Line(number, push_command.signal_of(GOOD | {"id": str(number % 700)}))

    batches = list(push_command._batches(iter([line(number) for number in range(1500)])))
    assert [len(batch) for batch in batches] == [500, 500, 500]
    assert [one.number for batch in batches for one in batch] == list(range(1500))
    twice = list(push_command._batches(iter([line(1), line(1), line(2)])))
    assert [[one.number for one in batch] for batch in twice] == [[1], [1, 2]]


# -- what the settings screen reads ------------------------------------------------------------------------------------


def test_switches_are_read_at_eighty_columns() -> None:
    from fedlearn.proto import device_pb2 as pb

    def grant(**changes: object) -> pb.Grant:
        fields = {"app": "org.example.messages", "data_type": 1, "purpose": "restaurants-training"}
        return pb.Grant(**{**fields, "recipient": "city-operator", "time_ms": 1_800_000_000_000, **changes})

    grants = [
        grant(on=True),
        grant(on=True, blocked="text_changed", recipient="org.example.surface"),
        grant(app="org.example.notes", blocked="disputed", time_ms=0),
    ]
    lines = list(consent_command._lines(pb.ListReply(grants=grants, age=pb.AGE_CLASS_ADULT)))
    assert lines == [
        "owner: adult; personal on",
        "\norg.example.messages message_content",
        "  on   restaurants-training city-operator  since 2027-01-15 08:00",
        "  on   restaurants-training org.example.surface  since 2027-01-15 08:00",
        "       no effect: the policy has other words now: grant again",
        "\norg.example.notes message_content",
        "  off  restaurants-training city-operator",
        "       cannot be on: somebody claims this data",
    ]
    assert max(map(len, lines)) <= 80
    lines = list(consent_command._lines(pb.ListReply(grants=[grant(blocked="minor")], age=pb.AGE_CLASS_MINOR)))
    assert sum("nothing can be on" in line for line in lines) == 1  # said once, not of each
    assert not any("cannot be on" in line for line in lines)


# -- examples and the unit ---------------------------------------------------------------------------------------------


def filled(tmp_path: Path) -> str:
    return SETTINGS.replace("PUT THE 64 HEXADECIMAL DIGITS OF root.key.pub HERE", "ab" * 32)


def test_the_example_settings_have_every_setting(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "serve", "--example", "settings")
    assert (status, out) == (0, SETTINGS)
    path = tmp_path / "device.toml"
    path.write_text(SETTINGS)
    with pytest.raises(OutOfRange, match=r"root_keys\[0\]"):  # nobody serves with an example's key
        load_settings(path)
    path.write_text(filled(tmp_path))
    load_settings(path)
    # with what stands in comments too, it says every setting once, at its default
    lines = filled(tmp_path).splitlines()
    every = "\n".join(line.removeprefix("# ") for line in lines if " = " in line or not line.startswith("#"))
    path.write_text(every)
    settings = load_settings(path)
    assert set(tomllib.loads(every)) == {field.name for field in dataclasses.fields(Settings)}
    own = {"directory", "socket", "callers", "root_keys", "keys", "unmetered", "log"}
    own |= {"gateway", "gateway_ca", "credential"}
    for field in dataclasses.fields(Settings):
        if field.name not in own:
            assert getattr(settings, field.name) == field.default, field.name
    assert settings.log == settings.directory / "log.jsonl"


def test_the_example_callers_have_every_role(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = run(capsys, "serve", "--example", "callers")
    assert (status, out) == (0, CALLERS)
    path = tmp_path / "callers.toml"
    path.write_text(CALLERS)
    path.chmod(0o600)
    public = tmp_path / "s"
    callers = CallersFile(path, public)
    roles = {callers.caller(f"unix:{private_directory(public)}/{uid}-1-1").role for uid in tomllib.loads(CALLERS)}
    assert roles == set(Role)


def unit_values(name: str) -> list[str]:
    return [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith(f"{name}=")]


def test_the_unit_lets_the_example_write_where_it_must(tmp_path: Path) -> None:
    """ProtectSystem=strict leaves two places to write in."""
    path = tmp_path / "device.toml"
    path.write_text(filled(tmp_path))
    settings = load_settings(path)
    (state,), (runtime,) = unit_values("StateDirectory"), unit_values("RuntimeDirectory")
    assert settings.directory.is_relative_to(f"/var/lib/{state}")
    assert settings.key_directory.is_relative_to(f"/var/lib/{state}")
    assert not settings.key_directory.is_relative_to(settings.directory)
    assert settings.socket.is_relative_to(f"/run/{runtime}")
    (command,) = unit_values("ExecStart")
    assert command.split()[1:3] == ["serve", "--settings"]
    assert Path(command.split()[3]).parent == settings.callers.parent


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    (command,) = unit_values("ExecStart")
    copy = tmp_path / UNIT.name
    text = UNIT.read_text().replace(command.split()[0], shutil.which("true") or "/bin/true")

    def verified(text: str) -> tuple[int, str]:
        copy.write_text(text)
        verify = ["systemd-analyze", "verify", "--man=no", str(copy)]
        ended = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
        return ended.returncode, ended.stdout + ended.stderr

    assert verified(text) == (0, "")
    assert "NoNewPrivilegs" in verified(text.replace("NoNewPrivileges=yes", "NoNewPrivilegs=yes"))[1]  # the control


def test_errors_of_the_tree_have_one_code_each() -> None:
    """``as_error`` finds a class by its code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, FedlearnError)]
    assert len({kind.code for kind in kinds}) == len(kinds)
