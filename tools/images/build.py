"""Builds the four images and looks at what is in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedlearn import __version__
from fedlearn.errors import RunError
from tools.images.daemon import Docker
from tools.release.inventory import Subject, debian_components, write_inventory
from tools.release.packages import bare, site_of

ROOT: Final = Path(__file__).parents[2]
TAG: Final = "test"
BUILD_S: Final = 3600

FORBIDDEN: Final = {
    "server": ("pip",),
    "gateway": ("pip", "fedlearn_client", "hydra"),
    "device": ("pip", "torch", "flwr", "fedlearn_server", "sqlalchemy"),
    "reviewer": ("pip", "torch", "flwr", "fedlearn_server", "fedlearn_client", "hydra"),
}
"""Image -> what must not be installed in it."""
WATCHED: Final = ("server", "gateway", "device")
"""What has a health check: what runs until it is stopped."""


def image(name: str) -> str:
    """Return what an image is called here."""
    return f"fedlearn-{name}:{TAG}"


def build_images(docker: Docker, base: str, secrets: Mapping[str, Path], epoch: int) -> None:
    """Build all four from one base.

    Args:
        docker: of a daemon whose builds reach the package index.
        base: of ARG BASE.
        secrets: pip's settings; none may stay.
        epoch: time in the wheels.

    Raises:
        RunError: a build failed, or an image is not as it should be.
    """
    given = [option for key, path in secrets.items() for option in ("--secret", f"id={key},src={path}")]
    for name in FORBIDDEN:
        docker.run(
            *("docker", "build", "--network=host", "--target", name, "--tag", image(name)),
            *("--build-arg", f"BASE={base}", "--build-arg", f"SOURCE_DATE_EPOCH={epoch}"),
            *(*given, "--file", str(ROOT / "docker" / "Dockerfile"), str(ROOT)),
            timeout_s=BUILD_S,
        )


def check_image(docker: Docker, name: str, secrets: Mapping[str, Path]) -> None:
    """Raise RunError unless an image has a numeric user, its health check, its packages only, and no secret in it."""
    plain: dict[str, Any] = json.loads(docker.run("docker", "inspect", image(name)))[0]
    config = plain["Config"]
    _require(config["User"] == "10001:10001", f"{name}: runs as {config['User']!r}")
    test = (config.get("Healthcheck") or {}).get("Test", [])
    _require((test[:1] == ["CMD"]) == (name in WATCHED), f"{name}: its health check is {test}")
    history = docker.run("docker", "history", "--no-trunc", image(name)) + json.dumps(plain)
    for line in {text for path in secrets.values() for text in path.read_text().split() if len(text) > 8}:
        _require(line not in history, f"{name}: a build secret shows in its history")
    code = f"import importlib.util as u; print([m for m in {FORBIDDEN[name]!r} if u.find_spec(m)])"
    found = run_in(docker, name, "python", "-c", code).strip()
    _require(found == "[]", f"{name}: holds {found}")
    writable = run_in(docker, name, "find", "/app", "/usr/local", "-perm", "/6000", "-o", "-user", "10001").strip()
    _require(not writable, f"{name}: its own user can change {writable[:200]}, or a set-uid file")


def run_in(docker: Docker, name: str, *command: str) -> str:
    """Run a command in an image, fenced as compose.yaml fences it, without a network."""
    fence = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--network=none", "--tmpfs=/tmp")
    return docker.run("docker", "run", "--rm", *fence, "--entrypoint", command[0], image(name), *command[1:])


def write_image_inventory(docker: Docker, name: str, folder: Path, out: Path, epoch: int) -> None:
    """Write SBOM and licences of an image, and which wheels it holds, without running anything of it.

    Args:
        docker: of the daemon that has it.
        name: of the image.
        folder: to work in, new.
        out: where they go.
        epoch: time in the SBOM.
    """
    plain = json.loads(docker.run("docker", "inspect", image(name)))[0]
    python = bare(folder)
    container = docker.run("docker", "create", "--network=none", image(name)).strip()
    try:
        _copy_metadata(docker, container, folder)
        sums = _copied(docker, container, "/app/wheels.sha256", folder).splitlines()
        status = _copied(docker, container, "/var/lib/dpkg/status", folder)
    finally:
        docker.run("docker", "rm", container)
    digest = plain["Id"].removeprefix("sha256:")
    subject = Subject(f"fedlearn-{name}", __version__, "container", digest)
    write_inventory(subject, python, out / name, epoch, debian_components(status))
    facts = {"name": name, "id": digest, "wheels": {file: total for total, file in map(str.split, sums)}}
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    (out / f"{name}.image.json").write_text(text, encoding="utf-8")


def _copy_metadata(docker: Docker, container: str, folder: Path) -> None:
    whole = folder / "packages"
    docker.run("docker", "cp", f"{container}:/app/lib", str(whole))
    for found in whole.glob("python3*/site-packages/*.dist-info"):
        found.rename(site_of(folder) / found.name)


def _copied(docker: Docker, container: str, path: str, folder: Path) -> str:
    target = folder / Path(path).name
    docker.run("docker", "cp", f"{container}:{path}", str(target))
    return target.read_text(encoding="utf-8")


def _require(holds: bool, words: str) -> None:
    if not holds:
        raise RunError(words)
