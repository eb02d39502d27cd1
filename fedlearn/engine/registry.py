"""The engines by name."""

from __future__ import annotations

import torch

from fedlearn.engine.base import Engine
from fedlearn.engine.example_privacy import PrivateSgd
from fedlearn.engine.loop import LoopEngine
from fedlearn.engine.schedule import check_learning_rate
from fedlearn.engine.vmap import VmapEngine
from fedlearn.errors import UnknownSetting
from fedlearn.models.base import Model

ENGINES = ("loop", "vmap")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def make_engine(
    name: str, model: Model, *, learning_rate: float, dtype: str = "float32", private: PrivateSgd | None = None
) -> Engine:
    """Return the engine called ``name``.

    Args:
        name: ``"vmap"`` (fast) or ``"loop"`` (the one-by-one oracle).
        model: what the phones train.
        learning_rate: of the local SGD, > 0.
        dtype: ``"float32"``, or ``"float64"`` for tests.
        private: clip and noise of the phones' steps, or None: plain SGD.

    Raises:
        UnknownSetting: no such engine or dtype.
        OutOfRange: learning rate not positive.
    """
    if name not in ENGINES:
        raise UnknownSetting(f"client.engine={name!r}: choose one of {', '.join(ENGINES)}.")
    if dtype not in DTYPES:
        raise UnknownSetting(f"client.dtype={dtype!r}: choose one of {', '.join(DTYPES)}.")
    check_learning_rate(learning_rate)
    engine = LoopEngine if name == "loop" else VmapEngine
    return engine(model, learning_rate, DTYPES[dtype], private=private)
