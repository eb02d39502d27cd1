"""The encrypted file: opened by one daemon with the right key, whole after any fault, and clear about what is wrong."""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest
from sqlcipher3 import dbapi2

from fedlearn.errors import StoreFailed
from fedlearn_client.fakes import FakeClock
from fedlearn_client.linux.keystore import FileKeyStore
from fedlearn_client.store import opening
from fedlearn_client.store.database import Database
from fedlearn_client.store.facts import Facts


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


world = _load("store_world")
CLOCK = FakeClock()


def _open(base: Path, **options) -> Database:
    return Database.open(base / "store", FileKeyStore(base / "keys"), CLOCK, **options)


def _filled(base: Path) -> None:
    database = _open(base)
    Facts(database).set("word", b"kept")
    database.close()


def _crash(base: Path, name: str = "word", value: bytes = b"kept") -> None:
    """What a killed daemon leaves: a committed row in the log, and no orderly end."""
    script = (
        "import os, sys; from pathlib import Path\n"
        "from fedlearn_client.fakes import FakeClock; from fedlearn_client.linux.keystore import FileKeyStore\n"
        "from fedlearn_client.store.database import Database; from fedlearn_client.store.facts import Facts\n"
        "base = Path(sys.argv[1]); d = Database.open(base / 'store', FileKeyStore(base / 'keys'), FakeClock())\n"
        "Facts(d).set(sys.argv[2], sys.argv[3].encode()); os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(base), name, value.decode()], check=False)
    assert done.returncode == -signal.SIGKILL


def test_keeps_what_was_set(tmp_path: Path) -> None:
    _filled(tmp_path)
    database = _open(tmp_path)
    assert Facts(database).get("word") == b"kept"
    assert Facts(database).get("other") is None
    database.close()
    database.close()


def test_settings_are_the_safe_ones(tmp_path: Path) -> None:
    database = _open(tmp_path)
    found = {
        name: database.rows(f"PRAGMA {name}")[0][0]
        for name in ("journal_mode", "synchronous", "secure_delete", "foreign_keys", "temp_store", "user_version")
    }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "secure_delete": 1,
        "foreign_keys": 1,
        "temp_store": 2,
        "user_version": 1,
    }
    assert database.rows("PRAGMA cipher_memory_security")[0][0] == "1"
    assert database.rows("PRAGMA cipher_provider_version")
    with pytest.raises(StoreFailed), database.transaction() as connection:
        connection.execute(
            "INSERT INTO signals (stream, mark, time, expires, catalogue, body) VALUES (9, x'', 0, 0, '', x'')"
        )
    database.close()


def test_nothing_is_readable_without_the_key(tmp_path: Path) -> None:
    database = _open(tmp_path)
    Facts(database).set("canary-name", b"canary-value")
    for path in (tmp_path / "store").iterdir():
        assert b"canary" not in path.read_bytes(), path
    assert (tmp_path / "store" / "store.db-wal").stat().st_size > 0
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(tmp_path / "store" / "store.db").execute("SELECT * FROM facts")
    assert {oct(path.stat().st_mode & 0o077) for path in (tmp_path / "store").iterdir()} == {"0o0"}
    database.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    database = _open(tmp_path)
    facts = Facts(database)

    def spoiled(how: str) -> None:
        with database.transaction() as connection:
            facts.set("word", b"lost", connection)
            assert facts.get("word") == b"lost"
            if how == "raised":
                raise KeyError("the caller changed its mind")
            if how == "nested":
                facts.set("word", b"lost too")
            connection.execute("SELECT no_such_column FROM facts")

    for how, error, words in (
        ("raised", KeyError, "changed its mind"),
        ("nested", StoreFailed, "hand its connection on"),
        ("broken", StoreFailed, "restart"),
    ):
        with pytest.raises(error, match=words):
            spoiled(how)
        assert facts.get("word") is None
    facts.set("word", b"kept")
    database.close()
    with pytest.raises(StoreFailed, match="closed"):
        facts.get("word")
    with pytest.raises(StoreFailed, match="closed"), database.transaction():
        pass


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    database = _open(tmp_path)
    Facts(database).set("count", b"0")

    def raise_it() -> None:
        for _ in range(20):
            with database.transaction() as connection:
                value = int(Facts(database).get("count"))
                Facts(database).set("count", str(value + 1).encode(), connection)

    threads = [threading.Thread(target=raise_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Facts(database).get("count") == b"80"
    database.close()


def test_one_daemon_at_a_time(tmp_path: Path) -> None:
    database = _open(tmp_path)
    with pytest.raises(StoreFailed, match="another daemon"):
        _open(tmp_path)
    database.close()
    _open(tmp_path).close()


def test_a_committed_row_survives_kill(tmp_path: Path) -> None:
    _crash(tmp_path)
    database = _open(tmp_path)
    assert Facts(database).get("word") == b"kept"
    database.close()


def test_pages_are_checked_after_a_kill_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    whole = opening.require_whole
    monkeypatch.setattr(opening, "require_whole", lambda connection: (checked.append(1), whole(connection)))
    _filled(tmp_path)
    _filled(tmp_path)
    assert not checked
    _crash(tmp_path)
    _filled(tmp_path)
    assert checked == [1]


def test_damage_is_found_after_a_kill(tmp_path: Path) -> None:
    _crash(tmp_path)
    _open(tmp_path).close()
    _crash(tmp_path)
    path = tmp_path / "store" / "store.db"
    (tmp_path / "store" / "store.db-wal").unlink()
    content = bytearray(path.read_bytes())
    content[-2_000] ^= 1  # in a page that opening alone does not read
    path.write_bytes(content)
    with pytest.raises(StoreFailed, match=r"damaged|wrong key"):
        _open(tmp_path)


@pytest.mark.parametrize(
    "fault", ["other keystore", "no keystore", "no key file", "another's key file", "short key file"]
)
def test_a_wrong_key_says_what_to_do(tmp_path: Path, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    _filled(tmp_path)
    key = tmp_path / "store" / "store.key"
    if fault in {"other keystore", "no keystore"}:
        shutil.rmtree(tmp_path / "keys")
    if fault == "other keystore":
        FileKeyStore(tmp_path / "keys").wrap("store", b"something else")
    elif fault == "no key file":
        key.unlink()
    elif fault == "short key file":
        key.write_bytes(key.read_bytes()[:7])
    elif fault == "another's key file":  # right KeyStore, a key of another store
        key.write_bytes(FileKeyStore(tmp_path / "keys").wrap("store", bytes(32)))
    with pytest.raises(StoreFailed) as caught:
        _open(tmp_path)
    assert any(word in str(caught.value) for word in ("restore", "remove", "same phone", "gone")), caught.value
    assert capfd.readouterr() == ("", ""), "the driver talks to stderr"
    with pytest.raises(StoreFailed) as again:  # and the lock was given back
        _open(tmp_path)
    assert "another daemon" not in str(again.value)


@pytest.mark.parametrize("content", [b"x" * 5_000, b"SQLite format 3\x00" + bytes(4_080), None])
def test_another_programs_file_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    _filled(tmp_path)
    path = tmp_path / "store" / "store.db"
    if content is None:
        path.unlink()
        with sqlite3.connect(path) as plain:
            plain.execute("CREATE TABLE theirs (a)")
        plain.close()
        content = path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(StoreFailed, match="another program"):
        _open(tmp_path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["store.db", "store.key", "store.lock"])
def test_links_are_refused(tmp_path: Path, name: str) -> None:
    _filled(tmp_path)
    path = tmp_path / "store" / name
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFailed):
        _open(tmp_path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    database = _open(tmp_path)
    database.rows("PRAGMA user_version = 2")
    database.close()
    with pytest.raises(StoreFailed, match="newer"):
        _open(tmp_path)


def test_a_migration_runs_once_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _filled(tmp_path)
    monkeypatch.setattr(opening, "VERSION", 2)
    monkeypatch.setitem(
        opening._MIGRATIONS, 1, "CREATE TABLE more (a); SELECT broken FROM nowhere; PRAGMA user_version = 2;"
    )
    with pytest.raises(StoreFailed):
        _open(tmp_path)
    monkeypatch.setitem(opening._MIGRATIONS, 1, "CREATE TABLE more (a); PRAGMA user_version = 2;")
    database = _open(tmp_path)
    assert database.rows("SELECT count(*) FROM more") == [(0,)]
    assert Facts(database).get("word") == b"kept"
    database.close()
    _open(tmp_path).close()


def test_a_full_store_keeps_what_it_has(tmp_path: Path) -> None:
    database = _open(tmp_path, max_bytes=256 * 1024)
    facts = Facts(database)
    facts.set("word", b"kept")

    def fill() -> None:
        for number in range(100):
            facts.set(f"big-{number}", os.urandom(8_192))

    with pytest.raises(StoreFailed, match="free space"):
        fill()
    written = sum(name.startswith("big-") for (name,) in database.rows("SELECT name FROM facts"))
    assert 0 < written < 100
    assert facts.get("word") == b"kept"
    facts.set("word", b"still writable")  # replaces in place
    database.close()
    database = _open(tmp_path)
    assert Facts(database).get("word") == b"still writable"
    database.close()


def test_a_full_disk_keeps_what_it_has(tmp_path: Path) -> None:
    """A file system that takes no more bytes, as the process sees it: writes past a size fail."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from fedlearn.errors import StoreFailed\n"
        "from fedlearn_client.fakes import FakeClock; from fedlearn_client.linux.keystore import FileKeyStore\n"
        "from fedlearn_client.store.database import Database; from fedlearn_client.store.facts import Facts\n"
        "base = Path(sys.argv[1]); d = Database.open(base / 'store', FileKeyStore(base / 'keys'), FakeClock())\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))\n"
        "for number in range(200):\n"
        "    try: Facts(d).set(f'fact-{number}', bytes(8_192))\n"
        "    except StoreFailed as error: print(error); break\n"
        "    print(number)\n"
        "try: d.close()\n"
        "except StoreFailed: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True, preexec_fn=_ignore
    )
    *kept, message = done.stdout.splitlines()
    assert 5 < len(kept) < 199
    assert "free space" in message
    database = _open(tmp_path)
    names = {name for (name,) in database.rows("SELECT name FROM facts")}
    assert {f"fact-{number}" for number in kept} <= names, "an acknowledged fact is lost"
    assert f"fact-{len(kept)}" not in names, "a refused fact was kept"
    database.close()


def _ignore() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("database or disk is full", "free space"),
        ("attempt to write a readonly database", "mount"),
        ("file is not a database", "wrong key"),
        ("database disk image is malformed", "damaged"),
        ("database is locked", "another process"),
        ("unable to open database file", "directory"),
        ("disk I/O error", "repair"),
        ("UNIQUE constraint failed: tokens.token", "contradicts"),
        ("something with 'a value of the owner' in it", "restart"),
    ],
)
def test_faults_name_the_fix_and_no_value(words: str, advice: str) -> None:
    message = str(opening.failed(dbapi2.OperationalError(words)))
    assert advice in message
    assert "owner' in" not in message


def test_a_read_only_mount_is_refused(tmp_path: Path) -> None:
    _filled(tmp_path)
    mount = ["mount", "--bind", "-o", "ro", str(tmp_path / "store"), str(tmp_path / "store")]
    if (
        os.geteuid() != 0
        or not shutil.which("mount")
        or subprocess.run(mount, check=False, capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(StoreFailed, match=r"[Rr]ead-only|mount"):
            _open(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path / "store")], check=True)
    _open(tmp_path).close()
