"""A release: the same bytes from two builds, and nothing of it can change, go or come after it was signed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from fedlearn.errors import MissingDependency, OutOfRange, TrustError
from fedlearn.ledger.signing import SigningKey
from tools.release import manifest
from tools.release.__main__ import main
from tools.release.distributions import build_twice, digests, require_equal
from tools.release.inventory import debian_components
from tools.release.packages import closure
from tools.release.sources import export, read_source

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "1.0"
requires-python = ">=3.11"
[tool.hatch.build.targets.wheel]
packages = ["tiny"]
"""


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.fresh()


@pytest.fixture
def release(tmp_path: Path, key: SigningKey) -> Path:
    folder = tmp_path / "release"
    (folder / "wheels").mkdir(parents=True)
    (folder / "a-1.0-py3-none-any.whl").write_bytes(b"wheel")
    (folder / "wheels" / "a.cdx.json").write_bytes(b"{}")
    manifest.sign(folder, key)
    return folder


def test_a_release_holds(release: Path, key: SigningKey) -> None:
    assert manifest.verify(release, key.public) == ("a-1.0-py3-none-any.whl", "wheels/a.cdx.json")
    manifest.sign(release, key)  # again: neither sums nor signature are among the files
    assert len(manifest.verify(release, key.public)) == 2


def test_every_byte_counts(release: Path, key: SigningKey) -> None:
    """Each byte of every file, one at a time, those of sums and signature too."""
    tried = 0
    for path in sorted(path for path in release.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(TrustError):
                manifest.verify(release, key.public)
            tried += 1
        path.write_bytes(whole)
    assert tried > 200
    manifest.verify(release, key.public)


def _remove(release: Path) -> None:
    (release / "wheels" / "a.cdx.json").unlink()


def _add(release: Path) -> None:
    (release / "wheels" / "b.whl").write_bytes(b"another")


def _link(release: Path) -> None:
    path = release / "a-1.0-py3-none-any.whl"
    path.rename(release.parent / "elsewhere.whl")
    path.symlink_to(release.parent / "elsewhere.whl")


def _unsign(release: Path) -> None:
    (release / manifest.SIGNATURE).unlink()


def _sign_again(release: Path) -> None:
    manifest.sign(release, SigningKey.fresh())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_remove, "is missing"),
        (_add, "not of this release"),
        (_link, "neither a file nor a folder"),
        (_unsign, "unsigned"),
        (_sign_again, "not a signature"),
    ],
    ids=["removed", "added", "linked", "unsigned", "signed by another"],
)
def test_a_changed_release_is_refused(
    release: Path, key: SigningKey, change: Callable[[Path], None], words: str
) -> None:
    change(release)
    with pytest.raises(TrustError, match=words):
        manifest.verify(release, key.public)


def test_sums_that_were_signed_but_are_none_are_refused(release: Path, key: SigningKey) -> None:
    for text in (b"", b"no sums\n", b"0" * 64 + b"  ../up\nrest"):
        (release / manifest.SUMS).write_bytes(text)
        (release / manifest.SIGNATURE).write_text(key.sign(text) + "\n")
        with pytest.raises(TrustError):
            manifest.verify(release, key.public)


def test_others_can_check_it(release: Path, tmp_path: Path, key: SigningKey) -> None:
    """With sha256sum and openssl, as docs/release.md says."""
    subprocess.run(["sha256sum", "--check", "--strict", manifest.SUMS], cwd=release, check=True, capture_output=True)
    der = bytes.fromhex("302a300506032b6570032100" + key.public)  # RFC 8410, section 4
    (tmp_path / "key.der").write_bytes(der)
    (tmp_path / "sig").write_bytes(bytes.fromhex((release / manifest.SIGNATURE).read_text().strip()))
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", tmp_path / "key.der", "-rawin"]
    shown = subprocess.run(
        [*verify, "-in", release / manifest.SUMS, "-sigfile", tmp_path / "sig"], check=True, capture_output=True
    )
    assert b"Verified Successfully" in shown.stdout


def test_the_command_says_which_file(release: Path, key: SigningKey, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(release), "--key", key.public]) == 0
    (release / "a-1.0-py3-none-any.whl").write_bytes(b"Wheel")
    assert main(["verify", str(release), "--key", key.public]) == 3
    assert "a-1.0-py3-none-any.whl: was changed" in capsys.readouterr().err
    assert main(["verify", str(release), "--key", "no key"]) == 2


def tiny(folder: Path) -> None:
    (folder / "tiny").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "tiny" / "__init__.py").write_text("NAME = 'tiny'\n")


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    made = build_twice(tiny, tmp_path, 1_700_000_000, {"tiny": "."})
    assert sorted(digests(made)) == ["tiny-1.0-py3-none-any.whl", "tiny-1.0.tar.gz"]
    other = tmp_path / "other"
    shutil.copytree(made, other)
    (other / "tiny-1.0.tar.gz").write_bytes(b"another")
    with pytest.raises(TrustError, match=r"^tiny-1\.0\.tar\.gz: two builds"):
        require_equal(made, other)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "file").write_text("committed")
    who = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
    for command in (("init", "-q"), ("add", "-A"), (*who, "commit", "-q", "-m", "first")):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder


def test_a_release_is_of_a_commit(checkout: Path, tmp_path: Path) -> None:
    source = read_source(checkout)
    assert len(source.commit) == 40
    assert source.epoch > 1_600_000_000
    (checkout / "file").write_text("changed")
    with pytest.raises(OutOfRange, match="1 files are not as committed"):
        read_source(checkout)
    export(checkout, source, tmp_path / "exported")
    assert (tmp_path / "exported" / "file").read_text() == "committed"
    export(checkout, read_source(checkout, allow_dirty=True), tmp_path / "dirty")
    assert (tmp_path / "dirty" / "file").read_text() == "changed"


def test_no_git_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(OutOfRange, match="use a git checkout"):
        read_source(tmp_path)


def test_a_list_is_whole_or_none() -> None:
    names = closure("fedlearn-client")
    assert {"fedlearn", "fedlearn-client", "numpy", "onnxruntime", "cryptography", "cffi"} <= names
    assert not {"torch", "flwr"} & names
    assert canonicalize_name("SQLAlchemy") in closure("fedlearn[ledger]") - closure("fedlearn")
    with pytest.raises(MissingDependency, match="no-such-package"):
        closure("no-such-package")


def test_packages_of_a_base_image() -> None:
    status = (
        "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9+deb12u14\n"
        "Description: GNU C Library\n Status: not a field\n\n"
        "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n"
    )
    (only,) = debian_components(status)
    assert only["purl"] == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64"
