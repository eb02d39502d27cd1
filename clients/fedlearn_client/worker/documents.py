"""Reads what a request brings into objects: plan, parameters, columns. Everything is checked against the plan."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedlearn.device.plan import ColumnSpec, DevicePlan, ParameterSpec
from fedlearn.device.plan_codec import plan_from_bytes
from fedlearn.errors import BundleRefused
from fedlearn.proto import conformance_pb2 as cases
from fedlearn.proto import worker_pb2 as pb

F32 = NDArray[np.float32]
GivenColumn = pb.Column | cases.Column
Columns = dict[str, NDArray[Any]]


def read_plan(data: bytes) -> tuple[DevicePlan, str]:
    """Return a plan and its digest: SHA-256 (hex) of its bytes."""
    return plan_from_bytes(data), hashlib.sha256(data).hexdigest()


def read_parameters(specs: Sequence[ParameterSpec], data: bytes, what: str) -> dict[str, F32]:
    """Return parameters by name from their flat little-endian f32 bytes.

    Args:
        specs: in flat order.
        data: exactly four bytes a value.
        what: what it is called in a message.

    Raises:
        BundleRefused: another length, or a value that is not finite.
    """
    sizes = [math.prod(spec.shape) for spec in specs]
    if len(data) != 4 * sum(sizes):
        raise BundleRefused(f"{what}: {len(data)} bytes, the plan's parameters need {4 * sum(sizes)}.")
    flat = np.frombuffer(data, dtype="<f4").astype(np.float32)
    if not np.isfinite(flat).all():
        raise BundleRefused(f"{what}: holds NaN or infinity.")
    ends = np.cumsum(sizes)
    return {
        spec.name: flat[end - size : end].reshape(spec.shape)
        for spec, size, end in zip(specs, sizes, ends, strict=True)
    }


def read_columns(specs: Sequence[ColumnSpec], given: Iterable[GivenColumn]) -> Columns:
    """Return columns that came ready-made; conformance vectors bring them.

    Raises:
        BundleRefused: not the plan's columns, or of different lengths.
    """
    wanted = {spec.name: spec for spec in specs}
    found: Columns = {}
    for column in given:
        spec = wanted.get(column.name)
        shape = tuple(column.shape)
        if spec is None or column.name in found or column.dtype != spec.dtype or shape[1:] != spec.shape:
            raise BundleRefused(f"columns.{column.name}: not a column of the plan, or of another dtype or shape.")
        dtype = np.dtype(spec.dtype)
        if len(column.data) != dtype.itemsize * math.prod(shape):
            raise BundleRefused(f"columns.{column.name}: its data does not fill its shape.")
        found[column.name] = np.frombuffer(column.data, dtype).reshape(shape)
    if found.keys() != wanted.keys() or len({len(column) for column in found.values()}) != 1:
        raise BundleRefused(f"columns: need {sorted(wanted)}, all of one length.")
    return found
