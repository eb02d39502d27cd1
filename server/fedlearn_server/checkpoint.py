"""The published state of a training: one file, replaced whole, from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedlearn.errors import ResumeRefused
from fedlearn.files import write_durably
from fedlearn.models.base import Parameters

CHECKPOINT_FILE = "checkpoint.safetensors"
MODEL_FILE = "model.safetensors"
CHECKPOINT_VERSION = 1

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """State after ``step`` steps.

    Args:
        step: steps taken; the next step's number.
        parameters: the current model.
        optimizer: state of the server's optimizer.
        average: state of the iterate average.
        charge_id: the charge that paid for the last step, or None (no step yet, or privacy off).
        clip: the next step's clip norm, or None where it is fixed.
    """

    step: int
    parameters: Parameters = field(repr=False)
    optimizer: Arrays = field(repr=False)
    average: Arrays = field(repr=False)
    charge_id: int | None
    clip: float | None = None

    def publish(self, directory: Path) -> str:
        """Replace the checkpoint durably (fsync file, rename, fsync directory) and return its digest."""
        data = self.to_bytes()
        write_durably(directory / CHECKPOINT_FILE, data)
        return hashlib.sha256(data).hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file's content; equal states have equal bytes."""
        groups = {"parameters": self.parameters, "optimizer": self.optimizer, "average": self.average}
        tensors = {
            # not ascontiguousarray: it gives a scalar an axis
            f"{group}/{name}": np.asarray(array, order="C")
            for group, arrays in groups.items()
            for name, array in arrays.items()
        }
        # one key: the library writes several in no fixed order
        head = {"version": CHECKPOINT_VERSION, "step": self.step, "charge_id": self.charge_id, "clip": self.clip}
        data: bytes = save(tensors, metadata={"state": json.dumps(head)})
        return data


def load_checkpoint(directory: Path) -> Checkpoint | None:
    """Return the last published state, or None before the first; raise ResumeRefused if it cannot be read."""
    path = directory / CHECKPOINT_FILE
    return read_checkpoint(path) if path.exists() else None


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the state in a file; raise ResumeRefused if it cannot be read."""
    groups: dict[str, dict[str, NDArray[Any]]] = {"parameters": {}, "optimizer": {}, "average": {}}
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            state = json.loads(metadata.get("state", "{}"))
            if state["version"] != CHECKPOINT_VERSION:
                raise ResumeRefused(
                    f"{path}: checkpoint version {state['version']}, this side reads 1; start a new run."
                )
            for key in file.keys():  # noqa: SIM118 - not a mapping
                group, _, name = key.partition("/")
                groups[group][name] = file.get_tensor(key)
            return Checkpoint(
                step=int(state["step"]),
                parameters=groups["parameters"],
                optimizer=groups["optimizer"],
                average=groups["average"],
                charge_id=state["charge_id"],
                clip=state.get("clip"),
            )
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ResumeRefused(f"{path}: not a checkpoint of this version ({error}); start a new run.") from error


def published_digest(directory: Path) -> str:
    """SHA-256 (hex) of the checkpoint's bytes: what a commit entry names as published."""
    return hashlib.sha256((directory / CHECKPOINT_FILE).read_bytes()).hexdigest()


def write_model(directory: Path, parameters: Parameters, metadata: Mapping[str, str]) -> Path:
    """Write ``model.safetensors`` durably and return its path."""
    path = directory / MODEL_FILE
    tensors = {name: np.asarray(array, order="C") for name, array in parameters.items()}
    write_durably(path, save(tensors, metadata=dict(metadata)))
    return path


def load_model(directory: Path) -> Parameters:
    """Return the finished model of a training; raises ResumeRefused if there is none that can be read."""
    path = directory / MODEL_FILE
    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in sorted(file.keys())}
    except (SafetensorError, OSError) as error:
        raise ResumeRefused(f"{path}: no finished model here ({error}); resume or repeat the run.") from error
