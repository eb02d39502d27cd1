"""A run directory: who it belongs to, and whether it may be gone on with.

::

    RUN/run.json            identity: digests of config, data and code; written first
    RUN/config.yaml         the resolved config
    RUN/metrics.jsonl       one line a round        (of every training, where there are several)
    RUN/model.safetensors   the model               (one training; else trainings/foldF-seedS/model.safetensors)
    RUN/ledger.sqlite       what was spent          (likewise; with privacy on)
    RUN/checkpoint.safetensors                      (likewise)
    RUN/summary.json, report.html                   written last: a directory with a summary is finished
    RUN/controls/...        trainings that are controls

With ``runtime=superlink`` a training's directory also holds what ``fedlearn.lab.superlink.marks`` lists, and the log of
its ServerApps.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from fedlearn.clock import Clock, system_clock
from fedlearn.errors import ConfigError, ResumeRefused, RunDirectoryInUse
from fedlearn.files import write_durably
from fedlearn.lab.code import code_digest
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.door import load_yaml, save_yaml
from fedlearn.report.summary import SUMMARY_FILE

IDENTITY_FILE = "run.json"
CONFIG_FILE = "config.yaml"
LOCK_FILE = ".lock"
BEFORE_IDENTITY = {LOCK_FILE, CONFIG_FILE, f"{IDENTITY_FILE}.part"}
"""What a run that was killed while it claimed its directory leaves behind: nothing was trained, so it may begin."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """What a run directory was made for.

    Args:
        run_id: unique name of the run; names its secret state.
        created: UTC, ISO 8601.
        command: what was typed.
        config_digest: of the resolved config.
        data_digest: of the data set.
        code_digest: of the installed packages' sources.
    """

    run_id: str
    created: str
    command: str
    config_digest: str
    data_digest: str
    code_digest: str


def default_directory(config: ExperimentConfig, clock: Clock = system_clock) -> Path:
    """Return ``runs/NAME-TIME-DIGEST`` below the working directory."""
    stamp = datetime.fromtimestamp(clock(), UTC).strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{config.run.name}-{stamp}-{config.digest[:6]}"


def check_free(directory: Path, config: ExperimentConfig) -> None:
    """Refuse, before any work and writing nothing, a directory that cannot become a run of this config.

    Raises:
        RunDirectoryInUse: a file, a folder that is no run, or a run of another config.
    """
    if (directory / IDENTITY_FILE).exists():
        identity = read_identity(directory)
        if identity.config_digest != config.digest:
            raise RunDirectoryInUse(
                f"run.dir={directory}: holds a run of another config (digest {identity.config_digest[:12]}, "
                f"this one is {config.digest[:12]}); choose another, or go on with it: fedlearn resume {directory}"
            )
        return
    if directory.exists() and not directory.is_dir():
        raise RunDirectoryInUse(f"run.dir={directory}: a file; choose a directory.")
    if directory.exists() and any(entry.name not in BEFORE_IDENTITY for entry in directory.iterdir()):
        raise RunDirectoryInUse(f"run.dir={directory}: not empty and not a run; choose a new directory.")


def claim(directory: Path, config: ExperimentConfig, data_digest: str, command: str) -> RunIdentity:
    """Make the directory a run of this config, or recognise it as one that may be gone on with.

    Raises:
        RunDirectoryInUse: it holds a run of another config, or files that are no run.
        ResumeRefused: same config, but data or code changed since.
    """
    check_free(directory, config)
    path = directory / IDENTITY_FILE
    if path.exists():
        identity = read_identity(directory)
        _check_unchanged(directory, identity, data_digest)
        return identity
    identity = RunIdentity(
        run_id=f"{config.run.name}-{config.digest[:8]}-{secrets.token_hex(4)}",
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=command,
        config_digest=config.digest,
        data_digest=data_digest,
        code_digest=code_digest(),
    )
    save_yaml(config, directory / CONFIG_FILE)
    write_durably(path, (json.dumps(asdict(identity), indent=1) + "\n").encode())
    return identity


def reopen(directory: Path) -> ExperimentConfig:
    """Return the config of a run to resume.

    Raises:
        ResumeRefused: no run is there, or its ``config.yaml`` was changed after it began.
    """
    if not (directory / IDENTITY_FILE).exists():
        raise ResumeRefused(f"{directory}: no run here (no {IDENTITY_FILE}); name a run directory, or train anew.")
    identity = read_identity(directory)
    try:
        config = load_yaml(directory / CONFIG_FILE)
    except (OSError, ConfigError) as error:
        raise ResumeRefused(f"{directory / CONFIG_FILE}: absent or damaged ({error}); train anew elsewhere.") from error
    if config.digest != identity.config_digest:
        raise ResumeRefused(
            f"{directory / CONFIG_FILE} was changed after the run began (digest {config.digest[:12]}, expected "
            f"{identity.config_digest[:12]}); restore it, or train anew in another directory."
        )
    return config


def read_identity(directory: Path) -> RunIdentity:
    """Read ``run.json``; raise ResumeRefused if it is damaged."""
    path = directory / IDENTITY_FILE
    try:
        return RunIdentity(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ResumeRefused(f"{path}: damaged ({error}); train anew in another directory.") from error


def is_finished(directory: Path) -> bool:
    """Whether the run wrote its summary."""
    return (directory / SUMMARY_FILE).exists()


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the directory for one process; raise RunDirectoryInUse if another one does."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryInUse(f"run.dir={directory}: cannot be made ({error.strerror}); choose another.") from error
    with (directory / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunDirectoryInUse(f"{directory}: another process is running it; wait or choose another.") from error
        yield


def _check_unchanged(directory: Path, identity: RunIdentity, data_digest: str) -> None:
    if is_finished(directory):
        return
    if identity.data_digest != data_digest:
        raise ResumeRefused(f"{directory}: the data changed since the run began; train anew in another directory.")
    if identity.code_digest != code_digest():
        raise ResumeRefused(f"{directory}: fedlearn's code changed since the run began; train anew, or reinstall it.")


def placed(config: ExperimentConfig, directory: Path) -> ExperimentConfig:
    """Return the config with its run in ``directory``, wherever it was first."""
    return replace(config, run=replace(config.run, dir=str(directory)))
