"""One line of ``metrics.jsonl``: what one round of one training did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fedlearn.errors import Reason
from fedlearn.files import write_durably
from fedlearn.report.schema import decode, dumps, parse, read_bytes


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A metric of the model after a round.

    Args:
        name: e.g. ``HR@10``.
        value: the metric, 0..1 for ranking metrics.
    """

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What one round of one training did.

    Args:
        model: name of the model's row in the summary.
        seed: seed of the training.
        fold: index of the test fold.
        round: round of this training, from 0.
        step: mechanism step; grows only when a sum (or noise alone) is released.
        loss: mean training loss over the cohort, in nats; null for an empty cohort.
        cohort: devices whose contribution was accepted; null where the devices are not simulated.
        clipped_fraction: share of them whose update was longer than the clip norm, 0..1; null for an empty cohort.
        signal_to_noise: norm of the clean mean over the expected norm of its noise; null without noise.
        clip: L2 bound on one device's update in this round; where it is adapted, a function of what earlier rounds
            released.
        update_norm: L2 norm of the released mean update, in model units.
        epsilon: spent by this training up to and with this round; null without privacy.
        rejected: rejected contributions by reason; reasons that did not occur are absent.
        evaluation: metrics of the model after this round; may be empty.
        seconds: wall seconds of the round.
        protected: derived. The fields that are figures of the devices, and whether noise protects them.
    """

    DERIVED: ClassVar[tuple[str, ...]] = ("protected",)
    UNPROTECTED: ClassVar[tuple[str, ...]] = (
        "loss",
        "cohort",
        "clipped_fraction",
        "signal_to_noise",
        "rejected",
        "evaluation",
        "seconds",
    )
    """Fields that are released without noise: fine in a simulation, absent or charged in a deployment."""

    model: str
    seed: int
    fold: int
    round: int
    step: int
    loss: float | None
    cohort: int | None
    clipped_fraction: float | None
    signal_to_noise: float | None
    clip: float
    update_norm: float
    epsilon: float | None
    rejected: Mapping[Reason, int]
    evaluation: tuple[Evaluation, ...]
    seconds: float

    @property
    def protected(self) -> Mapping[str, bool]:
        """Field -> whether noise protects it: what is a function of released figures is, if there was noise."""
        noisy = self.epsilon is not None
        return {**dict.fromkeys(self.UNPROTECTED, False), "clip": noisy, "update_norm": noisy}


def round_line(record: RoundRecord) -> str:
    """Serialise one round as one line of JSON with its newline: append it in one write."""
    return dumps(record) + "\n"


def write_rounds(path: Path, records: Sequence[RoundRecord]) -> None:
    """Write ``metrics.jsonl`` anew; a crash leaves the old one or the new one, whole."""
    write_durably(path, "".join(round_line(r) for r in records).encode())


def read_rounds(path: Path) -> tuple[RoundRecord, ...]:
    """Read ``metrics.jsonl``.

    A crash can tear the line that was being written: a last line without its newline is dropped. Any other damage is an
    error.

    Raises:
        DataMissing: no such file.
        DataCorrupt: a whole line is not a round; the message names file and line.
    """
    lines = read_bytes(path, "round log", "a run writes it after its first round.").split(b"\n")
    sources = (f"{path}:{i}" for i in range(1, len(lines)))
    return tuple(decode(RoundRecord, parse(line, at), at) for line, at in zip(lines[:-1], sources, strict=True))
