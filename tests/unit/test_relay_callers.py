"""The callers file: strict, owned, closed to others; unknown uids are nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedlearn.errors import CallerRefused, ConfigError, OutOfRange, UnknownSetting
from fedlearn_client.hooks import Caller, Role
from fedlearn_client.linux.callers import CallersFile

PUBLIC = Path("/run/x/s")
TABLE = """
[10001]
app = "org.example.chat"
role = "app"

[1000]
app = "org.example.settings"
role = "settings"
"""


def write(folder: Path, text: str, name: str = "callers.toml", mode: int = 0o644) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_listed_uid_is_its_app_and_any_other_is_nobody(tmp_path: Path) -> None:
    callers = CallersFile(write(tmp_path, TABLE), PUBLIC)
    assert callers.caller("unix:/run/x/s.d/10001-7-1") == Caller("org.example.chat", Role.APP)
    assert callers.caller("unix:/run/x/s.d/1000-7-1") == Caller("org.example.settings", Role.SETTINGS)
    for peer in ("unix:/run/x/s.d/0-7-1", "unix:/run/x/s.d/10002-7-1", "unix:", "unix:/run/other/s.d/10001-7-1"):
        with pytest.raises(CallerRefused):
            callers.caller(peer)


def test_json_says_the_same(tmp_path: Path) -> None:
    path = write(tmp_path, '{"10001": {"app": "org.example.chat", "role": "app"}}', "callers.json")
    assert CallersFile(path, PUBLIC).caller("unix:/run/x/s.d/10001-7-1").role is Role.APP


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ('[10001]\napp = "a"\nrole = "root"', OutOfRange, "role must be one of"),
        ('[10001]\napp = "a"', OutOfRange, "role must be one of"),
        ('[10001]\nrole = "app"', OutOfRange, "app must be"),
        ('[10001]\napp = "a b"\nrole = "app"', OutOfRange, "app must be"),
        ('[10001]\napp = 5\nrole = "app"', OutOfRange, "app must be"),
        ('[10001]\napp = "a"\nrole = "app"\nuid = 4', UnknownSetting, "uid is not known"),
        ('[chat]\napp = "a"\nrole = "app"', OutOfRange, "must be a uid"),
        ('[-1]\napp = "a"\nrole = "app"', OutOfRange, "must be a uid"),
        ('[007]\napp = "a"\nrole = "app"', OutOfRange, "must be a uid"),
        ('[4294967295]\napp = "a"\nrole = "app"', OutOfRange, "must be a uid"),
        ('10001 = "a"', OutOfRange, "must hold app and role"),
        ('[10001]\napp = "a"\nrole = "app"\n[10001]\napp = "b"\nrole = "app"', ConfigError, "not TOML"),
        ("no toml", ConfigError, "not TOML"),
    ],
)
def test_a_wrong_table_is_refused_by_name(tmp_path: Path, text: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        CallersFile(write(tmp_path, text), PUBLIC)


def test_the_uid_that_stands_for_all_unmapped_users_is_refused(tmp_path: Path) -> None:
    overflow = Path("/proc/sys/kernel/overflowuid").read_text().strip()
    with pytest.raises(OutOfRange, match="cannot name"):
        CallersFile(write(tmp_path, f'[{overflow}]\napp = "a"\nrole = "app"'), PUBLIC)


def test_json_with_a_name_twice_or_no_table_is_refused(tmp_path: Path) -> None:
    row = '{"app": "a", "role": "app"}'
    for text in (f'{{"1": {row}, "1": {row}}}', '{"1": {"app": "a", "app": "b", "role": "app"}}', "[]", "\xff"):
        with pytest.raises(ConfigError):
            CallersFile(write(tmp_path, text, "callers.json"), PUBLIC)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o622])
def test_a_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ConfigError, match="others cannot write"):
        CallersFile(write(tmp_path, TABLE, mode=mode), PUBLIC)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, TABLE)
    os.chown(path, 12345, 12345)
    with pytest.raises(ConfigError, match="root or the daemon's user"):
        CallersFile(path, PUBLIC)


def test_links_and_missing_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link.toml").symlink_to(write(tmp_path, TABLE))
    for name in ("link.toml", "missing.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            CallersFile(tmp_path / name, PUBLIC)
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(ConfigError):
        CallersFile(tmp_path / "folder.toml", PUBLIC)
