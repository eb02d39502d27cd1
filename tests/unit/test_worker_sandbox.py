"""What a confined worker cannot do; each attempt succeeds without the sandbox."""

from __future__ import annotations

import errno
import json
import os
import re
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fedlearn_client.worker import layers, seccomp

ATTEMPTS = """
import ctypes, json, mmap, os, socket, sys, threading
from fedlearn_client.worker import sandbox

confined, folder = sys.argv[1] == "confined", sys.argv[2]
layers = sandbox.isolate() if confined else ()
from fedlearn_client.worker import serve, warm
warm.up()
target = folder + "/written"
libc = ctypes.CDLL(None, use_errno=True)
read, write = os.pipe()
os.write(write, b"x")
if confined:
    layers += sandbox.seal(cpu_s=None)

def call(number, *arguments):
    ctypes.set_errno(0)
    if libc.syscall(ctypes.c_long(number), *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def fork():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)

def thread():
    made = threading.Thread(target=lambda: None)
    made.start()
    made.join()

def listen():
    made = socket.socket(socket.AF_UNIX)
    made.bind(folder + "/socket")

attempts = {
    "inet": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close(),
    "unix": lambda: socket.socket(socket.AF_UNIX).close(),
    "listen": listen,
    "pair": lambda: [end.close() for end in socket.socketpair()],
    "fork": fork,
    "spawn": lambda: os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0),
    "thread": thread,
    "write": lambda: open(target, "w").close(),
    "read": lambda: open("/etc/hostname").close(),
    "list": lambda: os.listdir("/"),
    "remove": lambda: os.unlink(folder + "/victim"),
    "signal": lambda: os.kill(os.getppid(), 0),
    "memfd": lambda: os.close(os.memfd_create("x")),
    "executable": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close(),
    "ptrace": lambda: call(101, 0, 0, 0, 0) if os.uname().machine == "x86_64" else call(117, 0, 0, 0, 0),
    "prctl": lambda: call(157, 4, 1, 0, 0, 0) if os.uname().machine == "x86_64" else call(167, 4, 1, 0, 0, 0),
}
found = {}
for name, attempt in attempts.items():
    try:
        attempt()
        found[name] = "done"
    except (OSError, RuntimeError) as error:
        found[name] = getattr(error, "errno", None) or str(error)
still = {"pipe": os.read(read, 1) == b"x", "random": len(os.urandom(8)) == 8}
os.write(1, json.dumps({"layers": layers, "found": found, "still": still}).encode())
"""


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        timeout=60,
        check=False,
        env={"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
    )


def attempts(how: str, folder: Path) -> dict[str, dict[str, object]]:
    (folder / "victim").write_text("")
    done = run(ATTEMPTS, how, str(folder))
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, dict[str, object]] = json.loads(done.stdout)
    return result


def test_a_confined_worker_can_do_none_of_it(tmp_path: Path) -> None:
    result = attempts("confined", tmp_path)
    if layers.SECCOMP not in result["layers"]:
        pytest.skip("this kernel has no seccomp")
    assert {name: code for name, code in result["found"].items() if name != "thread"} == {
        name: errno.EPERM for name in result["found"] if name != "thread"
    }
    assert "thread" in str(result["found"]["thread"])  # Python's own message for a refused one
    assert result["still"] == {"pipe": True, "random": True}
    assert (tmp_path / "victim").exists()


def test_without_the_sandbox_all_of_it_succeeds(tmp_path: Path) -> None:
    """The negative control."""
    result = attempts("free", tmp_path)
    assert {name: code for name, code in result["found"].items() if code != "done"} == {}
    assert not (tmp_path / "victim").exists()


def test_namespace_and_limits_hold_without_the_filter(tmp_path: Path) -> None:
    code = """
        import json, os, resource, sys
        from fedlearn_client.worker import sandbox, seccomp
        seccomp.install = lambda libc: False
        layers = sandbox.isolate() + sandbox.seal(cpu_s=7)
        found = {"layers": layers, "interfaces": open("/proc/net/dev").read().count(":")}
        for name in ("AS", "CORE", "FSIZE", "NOFILE", "NPROC", "CPU"):
            found[name] = resource.getrlimit(getattr(resource, "RLIMIT_" + name))
        try:
            with open(sys.argv[1], "w") as file:
                file.write("x")
        except OSError as error:
            found["write"] = error.errno
        try:
            bytearray(2 << 30)
        except MemoryError:
            found["memory"] = "refused"
        os.write(1, json.dumps(found).encode())
    """
    done = run(code.replace("\n        ", "\n").strip(), str(tmp_path / "x"))
    assert done.returncode == 0, done.stderr.decode()
    found = json.loads(done.stdout)
    assert layers.SECCOMP not in found["layers"]
    assert layers.LIMITS in found["layers"]
    if layers.NETWORK in found["layers"]:
        assert found["interfaces"] <= 1, "nothing but an own loopback, which is down"
    assert found["AS"] == [1 << 30] * 2
    assert found["CORE"] == found["FSIZE"] == found["NPROC"] == [0, 0]
    assert found["NOFILE"] == [16, 16]
    assert found["CPU"] == [7, 7]
    assert found["write"] == errno.EFBIG
    assert found["memory"] == "refused"


def test_leaves_no_core_dump(tmp_path: Path) -> None:
    code = """
import os
from fedlearn_client.worker import sandbox
sandbox.isolate()
sandbox.seal(cpu_s=None)
os.abort()
"""
    child = os.posix_spawn(sys.executable, [sys.executable, "-I", "-c", code], {})
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)


def test_what_a_daemon_must_not_do_without() -> None:
    everything = frozenset(layers.LAYERS)
    assert layers.missing(everything) == ()
    assert layers.missing(everything - {layers.SECCOMP}) == ()
    assert layers.missing(everything - {layers.NETWORK}) == ()
    assert layers.missing(everything - {layers.LIMITS}) == (layers.LIMITS,)
    assert len(layers.missing(frozenset())) == 2


def judge(program: bytes, architecture: int, number: int, arguments: tuple[int, ...]) -> int:
    """Run a filter as the kernel would (``seccomp_data``: number, architecture, instruction pointer, arguments)."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *arguments)
    lines = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at, value = 0, 0
    while True:
        code, yes, no, k = lines[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            (value,) = struct.unpack_from("=I", data, k)
        elif code == 0x15:
            at += yes if value == k else no
        else:
            assert code == 0x45
            at += yes if value & k else no


TABLES = {
    "x86_64": (0xC000003E, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": (0xC00000B7, "/usr/include/asm-generic/unistd.h"),
}
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


@pytest.mark.parametrize("machine", TABLES)
def test_the_filter_allows_what_is_listed_and_refuses_all_else(machine: str) -> None:
    architecture, _ = TABLES[machine]
    column = list(TABLES).index(machine)
    program = seccomp.program(machine, 4242)
    listed = {numbers[column] for numbers in seccomp._ALLOWED.values()} - {None}
    mapping = {numbers[column] for numbers in seccomp._MAPPING.values()}
    signal = seccomp._TGKILL[column]
    for number in range(700):
        plain = judge(program, architecture, number, (4242, 0, 3, 0, 0, 0))
        assert plain == (ALLOW if number in listed | mapping | {signal} else REFUSE), number
        other = judge(program, architecture, number, (1, 0, 7, 0, 0, 0))
        assert other == (ALLOW if number in listed else REFUSE), number
    assert judge(program, architecture, 0x40000000, (0,) * 6) == REFUSE, "the x32 table"
    wrong = next(code for name, (code, _) in TABLES.items() if name != machine)
    assert judge(program, wrong, 0, (0,) * 6) == KILL


@pytest.mark.parametrize("machine", TABLES)
def test_numbers_are_the_kernels(machine: str) -> None:
    header = Path(TABLES[machine][1])
    if not header.exists():
        pytest.skip(f"{header} is not installed")
    official = {
        name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())
    }
    column = list(TABLES).index(machine)
    table = {**seccomp._ALLOWED, **seccomp._MAPPING, "tgkill": seccomp._TGKILL, "seccomp": seccomp._SECCOMP}
    assert {name: official.get(name) for name in table} == {name: numbers[column] for name, numbers in table.items()}
