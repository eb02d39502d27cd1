"""Where configs lie, which folder is searched first, and Hydra's errors in our words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf.errors import OmegaConfBaseException

import fedlearn
from fedlearn.errors import ConfigError, DataMissing, FedlearnError, UnknownSetting
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.door import from_hydra, setting_paths
from fedlearn.lab.schemas import register_schemas


def packaged_configs() -> Path:
    """Return the built-in configs: inside the wheel, or beside the package in a checkout."""
    package = Path(fedlearn.__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


@contextmanager
def searching_first(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Take ``--config-dir DIR`` out of the arguments; inside the block, Hydra searches DIR before everything else.

    Raises:
        DataMissing: DIR is not a folder.
    """
    rest: list[str] = []
    folder: str | None = None
    pending = iter(arguments)
    for argument in pending:
        if argument in {"--config-dir", "-cd"}:
            folder = next(pending, "")
        elif argument.startswith("--config-dir="):
            folder = argument.partition("=")[2]
        else:
            rest.append(argument)
    with _searched(folder):
        yield rest


def at_root(overrides: Sequence[str]) -> list[str]:
    """Spell ``experiment=NAME`` as Hydra wants it, and refuse to delete what a schema would silently put back.

    A preset is merged at the root of the config. Hydra takes that from a ``@package`` header, which would have to be
    the preset's first line; ours is the command to run.
    """
    for override in overrides:
        if override.startswith("~") and ".options." not in override:
            raise ConfigError(f"{override}: cannot be taken away; set another value instead, e.g. {override[1:]}=...")
    return [re.sub(r"^(\+?)experiment=", r"\1experiment@_global_=", override) for override in overrides]


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> ExperimentConfig:
    """Return the experiment that ``fedlearn train`` would run with these overrides.

    Args:
        overrides: as on the command line, e.g. ``["experiment=city_quick", "privacy.epsilon=1"]``.
        config_dir: a folder searched before the built-in configs.

    Raises:
        ConfigError: a key or value that does not exist or is out of range.
    """
    register_schemas()
    folder = None if config_dir is None else str(config_dir)
    GlobalHydra.instance().clear()
    try:
        with _searched(folder), initialize_config_dir(str(packaged_configs()), version_base="1.3"):
            return from_hydra(hydra_compose("config", overrides=at_root(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if isinstance(error, FedlearnError):
            raise
        raise translated(error) from error


def translated(error: Exception) -> ConfigError:
    """Return Hydra's complaint as one that names the field and the fix."""
    text = str(error)
    if match := re.search(r"Could not override '((?:\w+\.)*options\.\w+)'", text):
        return UnknownSetting(f"{match[1]} is not set yet: add it with +{match[1]}=VALUE.")
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(match[1])
    if match := re.search(r"Could not find '([^']+)'(?s:.*)Available options in '([^']+)':\n((?:\t\S+\n?)+)", text):
        name, group, options = match[1].rpartition("/")[2], match[2], match[3].split()
        known = [option for option in options if not option.endswith("_schema")]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return UnknownSetting(f"{group}={name} does not exist: {hint}Choose from {', '.join(known)}.")
    if match := re.search(r"Error merging override (\S+?)=(.*)", text):
        reason = str(error.__cause__).splitlines()[0] if error.__cause__ else "wrong type"
        return ConfigError(
            f"{match[1]}={match[2]}: {reason}; `fedlearn train --cfg job` shows values of the right type."
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ else ""
    return ConfigError(" ".join([lines[0] if lines else type(error).__name__, cause]).strip())


def _unknown_key(key: str) -> UnknownSetting:
    known = setting_paths()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    group = key.partition(".")[0]
    siblings = [path for path in known if path.partition(".")[0] == group] or sorted({k.split(".")[0] for k in known})
    hint = f"did you mean {near[0]}? " if near else ""
    return UnknownSetting(f"{key} does not exist: {hint}Known here: {', '.join(siblings)}.")


class SearchFirst(SearchPathPlugin):
    """Puts the user's folder before everything else."""

    folder: ClassVar[Path | None] = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra for every composition."""
        if self.folder is not None:
            search_path.prepend(provider="config-dir", path=f"file://{self.folder}")


@contextmanager
def _searched(folder: str | None) -> Iterator[None]:
    if folder is not None and not (folder and Path(folder).is_dir()):
        raise DataMissing(f"--config-dir {folder}: no such folder; make one with: fedlearn init {folder or 'DIR'}")
    Plugins.instance().register(SearchFirst)
    before, SearchFirst.folder = SearchFirst.folder, None if folder is None else Path(folder).resolve()
    try:
        yield
    finally:
        SearchFirst.folder = before


def experiments(folder: Path | None = None) -> dict[str, str]:
    """Return experiment preset -> its first line, which is its command."""
    found = sorted(((folder or packaged_configs()) / "experiment").glob("*.yaml"))
    return {path.stem: path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in found}


def groups() -> dict[str, list[str]]:
    """Return config group -> its choices."""
    root = packaged_configs()
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(root.iterdir())
        if folder.is_dir()
    }
