"""What is submitted: the whole of a training as canonical JSON, and a bundle without code that names who does it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fedlearn import __version__
from fedlearn.errors import CodeMismatch, MalformedMessage
from fedlearn.lab.code import code_digest
from fedlearn.lab.config import CrossWozData, ExperimentConfig, to_plain
from fedlearn.lab.door import from_plain
from fedlearn_server.app import ORDER

if TYPE_CHECKING:
    from fedlearn.lab.study import Arm, Study
    from fedlearn.lab.training import Training

BUNDLE_NAME = "fedlearn-order"


@dataclass(frozen=True, slots=True)
class Order:
    """One training, for a ServerApp on any machine that sees the run directory.

    Args:
        config: the study's resolved config; its paths are absolute.
        directory: the run directory, absolute.
        training: the training's directory, relative to ``directory``.
        run_id: of the study; the run directory says the same.
        headline: whether the training is what the study is about, not a control.
        fold: which split.
        seed: of the simulation.
        code: digest of the submitter's installed code.
        submission: which attempt to have the training done this is; "" before it is submitted. Only the one that the
            training's directory names may be at work.
    """

    config: ExperimentConfig
    directory: Path
    training: str
    run_id: str
    headline: bool
    fold: int
    seed: int
    code: str
    submission: str = ""

    @property
    def training_directory(self) -> Path:
        """Where the training's files are."""
        return self.directory / self.training

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is to be done, whichever submission it is."""
        return hashlib.sha256(replace(self, submission="").to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """Return canonical JSON."""
        plain = {
            "code": self.code,
            "config": to_plain(self.config),
            "directory": str(self.directory),
            "fold": self.fold,
            "headline": self.headline,
            "run_id": self.run_id,
            "seed": self.seed,
            "submission": self.submission,
            "training": self.training,
        }
        return json.dumps(plain, sort_keys=True, separators=(",", ":"))


def make_order(study: Study, arm: Arm, training: Training) -> Order:
    """Return the order for one training of a study, with every path absolute: a ServerApp works in another directory.

    Paths in a plugin's ``data.options`` are unknown here and stay as they are.
    """
    return Order(
        config=_absolute(study.config, study.directory),
        directory=study.directory.absolute(),
        training=training.directory.relative_to(study.directory).as_posix(),
        run_id=study.run_id,
        headline=arm.headline,
        fold=training.split.fold,
        seed=training.seed,
        code=code_digest(),
    )


def read_order(text: str) -> Order:
    """Return the order in a run config.

    Raises:
        MalformedMessage: not an order.
        CodeMismatch: it was submitted by other code than this side runs.
        ConfigError: its config is not acceptable here.
    """
    try:
        plain: dict[str, Any] = json.loads(text)
        code = str(plain["code"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedMessage(f"{ORDER}: not an order ({error}).") from error
    if code != code_digest():
        raise CodeMismatch(
            f"the run was submitted by code {code[:12]}, this ServerApp runs {code_digest()[:12]}: install the same "
            "version on both sides and submit again."
        )
    try:
        order = Order(
            config=from_plain(plain["config"]),
            directory=Path(plain["directory"]),
            training=str(plain["training"]),
            run_id=str(plain["run_id"]),
            headline=bool(plain["headline"]),
            fold=int(plain["fold"]),
            seed=int(plain["seed"]),
            code=code,
            submission=str(plain["submission"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise MalformedMessage(f"{ORDER}: not an order ({type(error).__name__}: {error}).") from error
    part = PurePosixPath(order.training)
    if not order.directory.is_absolute() or part.is_absolute() or ".." in part.parts:
        raise MalformedMessage(f"{ORDER}: {order.directory}, {order.training}: not a training in a run directory.")
    return order


def bundle_files() -> dict[str, bytes]:
    """Return the files of a bundle that holds no code: it names what is installed, and declares the one key."""
    project = f"""\
[project]
name = "{BUNDLE_NAME}"
version = "{__version__}"
description = "Names the installed fedlearn apps; holds no code."
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedlearn"

[tool.flwr.app.components]
serverapp = "fedlearn_server.app:app"
clientapp = "fedlearn_server.app:client_app"

[tool.flwr.app.config]
{ORDER} = ""
"""
    return {"pyproject.toml": project.encode()}


def _absolute(config: ExperimentConfig, directory: Path) -> ExperimentConfig:
    """Return the config with absolute paths; they decide no result, so that its digest stays."""
    data, where = config.data, config.ledger.where
    if isinstance(data, CrossWozData):
        data = replace(data, root=str(Path(data.root).absolute()))
    if where is not None and "://" not in where:
        where = str(Path(where).absolute())
    return replace(
        config,
        data=data,
        ledger=replace(config.ledger, where=where),
        run=replace(config.run, dir=str(directory.absolute())),
    )
