"""What pip is told here reaches a build as secrets, and local folders over loopback only."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tools.images.pip_settings import build_secrets


def options(conf: Path) -> dict[str, str]:
    lines = conf.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "[global]"
    return dict(line.split(" = ", 1) for line in lines[1:])


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index in a folder: pages in ``simple``, files beside it."""
    (tmp_path / "index" / "simple" / "thing").mkdir(parents=True)
    (tmp_path / "index" / "simple" / "thing" / "index.html").write_text("the page")
    (tmp_path / "index" / "files").mkdir()
    (tmp_path / "index" / "files" / "thing.whl").write_text("the wheel")
    return tmp_path / "index" / "simple"


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def test_local_folders_are_served_while_it_lasts(tmp_path: Path, index: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "torch.whl").write_text("torch")
    (tmp_path / "ca").write_text("PEM")
    out = tmp_path / "secrets"
    out.mkdir()
    settings = {
        "index-url": "https://index.example.org/simple",
        "extra-index-url": f"file://{index} https://more.example.org/simple",
        "find-links": str(wheels),
        "cert": str(tmp_path / "ca"),
        "cache-dir": "/nowhere",
    }
    with build_secrets(out, settings) as secrets:
        assert secrets["ca"].read_text() == "PEM"
        given = options(secrets["pip"])
        assert given["cert"] == "/run/secrets/ca"
        assert given["index-url"] == settings["index-url"]
        assert "cache-dir" not in given, "a folder of this machine"
        local, more = given["extra-index-url"].split()
        assert more == "https://more.example.org/simple"
        assert {urlsplit(url).hostname for url in (local, given["find-links"])} == {"127.0.0.1"}
        assert read(f"{local}thing/") == "the page"
        assert read(f"{local}../files/thing.whl".replace("simple/../", "")) == "the wheel"
        assert read(f"{given['find-links']}torch.whl") == "torch"
        with pytest.raises(urllib.error.HTTPError):
            read(f"{given['find-links']}../ca")
    with pytest.raises(urllib.error.URLError):
        read(f"{local}thing/")


def test_nothing_set_is_nothing_given(tmp_path: Path) -> None:
    with build_secrets(tmp_path, {}) as secrets:
        assert set(secrets) == {"pip"}
        assert options(secrets["pip"]) == {}
