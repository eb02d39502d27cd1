"""Keys in files: durable, private, destroyed for good, and refused where somebody else could read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedlearn.errors import StoreFailed
from fedlearn_client.linux.keystore import MAX_ANCHOR_BYTES, FileKeyStore

SECRET = b"the raw key of the store, 32 by."


@pytest.fixture
def keys(tmp_path: Path) -> FileKeyStore:
    return FileKeyStore(tmp_path / "keys")


def _files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_wraps_and_unwraps_across_restarts(keys: FileKeyStore, tmp_path: Path) -> None:
    wrapped = keys.wrap("store", SECRET)
    assert SECRET not in wrapped
    assert keys.wrap("store", SECRET) != wrapped
    assert FileKeyStore(tmp_path / "keys").unwrap("store", wrapped) == SECRET


def test_every_alias_has_a_key_of_its_own(keys: FileKeyStore) -> None:
    wrapped = keys.wrap("one", SECRET)
    keys.wrap("two", SECRET)
    with pytest.raises(StoreFailed, match="does not fit"):
        keys.unwrap("two", wrapped)


def test_the_alias_is_authenticated(keys: FileKeyStore, tmp_path: Path) -> None:
    wrapped = keys.wrap("one", SECRET)
    before = set(_files(tmp_path / "keys"))
    keys.wrap("two", SECRET)
    (one,), (two,) = before, set(_files(tmp_path / "keys")) - before
    (tmp_path / "keys" / two).write_bytes((tmp_path / "keys" / one).read_bytes())  # the same key under another name
    assert keys.unwrap("one", wrapped) == SECRET
    with pytest.raises(StoreFailed, match="does not fit"):
        keys.unwrap("two", wrapped)


@pytest.mark.parametrize("change", [lambda w: b"", lambda w: w[:20], lambda w: w[:-1] + bytes([w[-1] ^ 1])])
def test_changed_bytes_do_not_unwrap(keys: FileKeyStore, change) -> None:
    wrapped = keys.wrap("one", SECRET)
    with pytest.raises(StoreFailed, match="does not fit"):
        keys.unwrap("one", change(wrapped))


def test_destroyed_is_gone_and_others_stay(keys: FileKeyStore, tmp_path: Path) -> None:
    wrapped, other = keys.wrap("one", SECRET), keys.wrap("two", SECRET)
    before = _files(tmp_path / "keys")
    keys.destroy("one")
    keys.destroy("one")
    keys.destroy("never made")
    after = _files(tmp_path / "keys")
    assert len(before) == len(after) + 1
    with pytest.raises(StoreFailed, match="gone"):
        keys.unwrap("one", wrapped)
    keys.wrap("one", SECRET)  # a new key
    with pytest.raises(StoreFailed, match="does not fit"):
        keys.unwrap("one", wrapped)
    assert keys.unwrap("two", other) == SECRET


def test_destroy_overwrites_the_file_itself(keys: FileKeyStore, tmp_path: Path) -> None:
    keys.wrap("one", SECRET)
    (path,) = (tmp_path / "keys").iterdir()
    with path.open("rb") as still_open:
        key = still_open.read()
        keys.destroy("one")
        still_open.seek(0)
        assert still_open.read() == bytes(len(key)) != key


@pytest.mark.parametrize("step", ["rename", "unlink"])
def test_killed_inside_destroy_leaves_no_damaged_key(
    keys: FileKeyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    wrapped = keys.wrap("one", SECRET)

    def killed(self: Path, *args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, step, killed)
        with pytest.raises(KeyboardInterrupt):
            keys.destroy("one")
    reopened = FileKeyStore(tmp_path / "keys")
    if step == "rename":  # nothing had happened
        assert reopened.unwrap("one", wrapped) == SECRET
    else:
        assert not list((tmp_path / "keys").iterdir()), "what was left was not cleared at the next start"
        with pytest.raises(StoreFailed, match="gone"):
            reopened.unwrap("one", wrapped)


def test_signs_with_one_key_for_life(keys: FileKeyStore, tmp_path: Path) -> None:
    signature = keys.sign(b"message")
    assert len(signature) == 64
    public = FileKeyStore(tmp_path / "keys").public_key()
    assert public == keys.public_key()
    Ed25519PublicKey.from_public_bytes(public).verify(signature, b"message")
    keys.destroy("signing.key")  # an alias, not a file name
    assert keys.public_key() == public


def test_anchor_is_replaced_as_a_whole(keys: FileKeyStore, tmp_path: Path) -> None:
    assert keys.read_anchor() is None
    keys.write_anchor(b"first")
    keys.write_anchor(b"")
    assert FileKeyStore(tmp_path / "keys").read_anchor() == b""
    keys.write_anchor(b"x" * MAX_ANCHOR_BYTES)
    with pytest.raises(StoreFailed, match="anchor"):
        keys.write_anchor(b"x" * (MAX_ANCHOR_BYTES + 1))
    assert keys.read_anchor() == b"x" * MAX_ANCHOR_BYTES


def test_nobody_else_can_read(keys: FileKeyStore, tmp_path: Path) -> None:
    keys.wrap("one", SECRET)
    keys.sign(b"")
    keys.write_anchor(b"a")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").iterdir()} == {0o600}


def _use(keys: FileKeyStore, wrapped: bytes) -> None:
    keys.unwrap("one", wrapped)


@pytest.mark.parametrize("fault", ["mode", "link", "owner", "short", "fifo"])
def test_a_key_that_others_may_know_is_refused(keys: FileKeyStore, tmp_path: Path, fault: str) -> None:
    wrapped = keys.wrap("one", SECRET)
    (path,) = (tmp_path / "keys").iterdir()
    if fault == "mode":
        path.chmod(0o640)
    elif fault == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif fault == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(path, 12345, 12345)
    elif fault == "fifo":
        path.unlink()
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes(path.read_bytes()[:-1])
    key = b"" if fault == "fifo" else path.read_bytes()
    for use in (lambda: keys.unwrap("one", wrapped), lambda: keys.wrap("one", SECRET)):
        with pytest.raises(StoreFailed) as caught:
            use()
        assert str(path) in str(caught.value)
        assert not key or key.hex() not in repr(caught.value)


@pytest.mark.parametrize("fault", ["mode", "link", "file", "owner"])
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path, fault: str) -> None:
    path = tmp_path / "keys"
    if fault == "file":
        path.write_bytes(b"")
    elif fault == "link":
        (tmp_path / "real").mkdir(mode=0o700)
        path.symlink_to(tmp_path / "real")
    else:
        path.mkdir(mode=0o700)
        if fault == "mode":
            path.chmod(0o750)
        elif os.geteuid() != 0:
            pytest.skip("only root can give a directory away")
        else:
            os.chown(path, 12345, 12345)
    with pytest.raises(StoreFailed, match=str(path)):
        FileKeyStore(path)


def test_no_key_shows(keys: FileKeyStore, tmp_path: Path) -> None:
    keys.wrap("one", SECRET)
    (path,) = (tmp_path / "keys").iterdir()
    shown = f"{keys!r} {keys}"
    assert path.read_bytes().hex() not in shown
    assert SECRET.decode() not in shown
