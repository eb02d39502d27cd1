"""What a stranger reads holds together: links, pins, targets, the licence; and no file names a machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PICTURE_BYTES = 150_000


def shipped() -> Iterator[Path]:
    """Text files of the repository, made ones left out."""
    made = {".venv", ".git", "build", "dist", "site", "runs", "outputs", "multirun", "__pycache__"}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if path.is_file() and not made & set(parts) and not any(p.startswith(".") and p != ".ci" for p in parts[:-1]):
            yield path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"install", "demo", "test", "test-long", "check", "bench", "docs", "clean", "help"} <= targets
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.M))
        assert named <= targets, f"{page.name}: {named - targets}"


def test_make_knows_its_rules() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "make demo" in shown.stdout


def test_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "img").iterdir())
    assert pictures
    assert all(path.stat().st_size < PICTURE_BYTES for path in pictures)


def test_pins_are_exact_and_complete() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0].startswith("torch==")
    pins = dict(re.fullmatch(r"([A-Za-z0-9_.-]+)==([0-9][^\s+]*)", line).groups() for line in lines)  # type: ignore[union-attr]
    pinned = {canonicalize_name(name) for name in pins}
    assert len(pinned) == len(lines)
    declared: list[Requirement] = []
    for folder in (ROOT, ROOT / "clients", ROOT / "server"):
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for lines in (project["dependencies"], *project.get("optional-dependencies", {}).values()):
            declared += map(Requirement, lines)
    ours = {"fedlearn", "fedlearn-client", "fedlearn-server"}
    assert {canonicalize_name(need.name) for need in declared} - ours <= pinned


def test_what_is_installed_is_what_is_pinned() -> None:
    """Also the control that this environment was made with the constraints: a test of other versions proves little."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonicalize_name(n): v for n, v in (line.split("==") for line in lines if "==" in line and line[0] != "#")}
    found = {canonicalize_name(d.name): d.version.split("+")[0] for d in distributions() if d.name}
    differing = {name: (found[name], pin) for name, pin in pins.items() if name in found and found[name] != pin}
    assert not differing


def test_no_file_names_a_machine_or_an_index() -> None:
    private = re.compile(
        r"/(?:home|root|Users|work|mnt|opt)/[\w.-]+/|(?:--|_)(?:extra-)?index[-_]url[ =]+\w+:|--find-links[ =]+[/\w]+/"
    )
    for path in shipped():
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".j2", ".css", ""}
            and path.name != Path(__file__).name
        ):
            found = private.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "9. Accepting Warranty or Additional Liability." in text
    assert "END OF TERMS AND CONDITIONS" in text
