"""What a phone would make of the owner's lines: the same worker, the same sandbox, nothing stored.

The catalogue's words come back as words here, so this needs numpy; the daemon never imports it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from fedlearn.device.bundle import Bundle
from fedlearn.device.catalogue_file import catalogue_from_bytes
from fedlearn.device.task import TOKEN_BYTES, DeviceTask
from fedlearn.device.task_codec import task_bytes, with_digest
from fedlearn.errors import ConfigError
from fedlearn.features import CatalogueIndex
from fedlearn.features.ingest import make_query_from
from fedlearn.features.said import said_from_bytes
from fedlearn.policy.document import DataType
from fedlearn.proto import worker_pb2
from fedlearn.wire import decode_contribution
from fedlearn_client import limits
from fedlearn_client.hooks import ClockAndRng
from fedlearn_client.imports.line import OwnLine
from fedlearn_client.imports.signals import signal_of
from fedlearn_client.workers import Workers

WINDOW_S: Final = 24 * 3600
REHEARSAL_S: Final = 60.0
_SIGN: Final = {-1: "not ", 0: "no longer ", 1: ""}


@dataclass(frozen=True, slots=True)
class Upload:
    """One contribution, taken apart.

    Args:
        data: the exact bytes.
        numbers: how many the update has.
        l2_norm: its length, in units of the model.
        l2_bound: at most so long.
        values_sha256: SHA-256 of the update's integers. Equal Queries and choices give equal ones, while the bytes
            differ in a nonce of 16 random bytes.
    """

    data: bytes = field(repr=False)
    numbers: int
    l2_norm: float = field(repr=False)
    l2_bound: float
    values_sha256: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a phone would have made of the lines.

    Args:
        lines: of the owner, in the file.
        kept: that said anything about the catalogue.
        kept_bytes: of all that would be stored.
        retention_days: it would be stored so long at most.
        query: what the last day's lines ask for, in words of the catalogue.
        upload: of one round with one choice; None where nothing was chosen, since then nothing would leave.
    """

    lines: int
    kept: int
    kept_bytes: int
    retention_days: int
    query: Mapping[str, Sequence[str]] = field(repr=False)
    upload: Upload | None


def rehearse(
    lines: Sequence[OwnLine], bundle: Bundle, catalogue: bytes, chosen: str | None, clock: ClockAndRng
) -> Rehearsal:
    """Do what a phone does, in the same sandboxed worker, and store nothing.

    Args:
        lines: the owner's.
        bundle: a checked task bundle.
        catalogue: ``catalogue.json`` of a checked catalogue bundle.
        chosen: catalogue key that the owner is taken to have chosen after the last line; None for no choice.
        clock: time.

    Raises:
        ConfigError: ``chosen`` is nothing that the bundle's plan ranks.
        WorkerFailed: the worker died.
    """
    spec = bundle.plan.catalogue
    index = CatalogueIndex.build(catalogue_from_bytes(catalogue, spec.max_bytes))
    if chosen is not None:
        _require_item(chosen, index, spec.domain)
    workers = Workers(clock)
    try:
        workers.load_catalogue(catalogue)
        bodies = _derived(workers, lines)
        latest = max((line.time for line in lines), default=0.0)
        present = [b for line, b in zip(lines, bodies, strict=True) if b and line.time > latest - WINDOW_S]
        upload = None if chosen is None else _train(workers, bundle, catalogue, present, chosen)
    finally:
        workers.close()
    kept = [body for body in bodies if body]
    return Rehearsal(
        lines=len(lines),
        kept=len(kept),
        kept_bytes=sum(map(len, kept)),
        retention_days=max(
            (s.retention_days for s in bundle.verified.policy.sources if s.data_type is DataType.MESSAGE_CONTENT),
            default=0,
        ),
        query=_words(present, index),
        upload=upload,
    )


def _derived(workers: Workers, lines: Sequence[OwnLine]) -> list[bytes]:
    rest, bodies = iter(enumerate(lines)), list[bytes]()
    while batch := [signal_of(line, str(number)) for number, line in islice(rest, limits.SIGNALS_PER_PUSH)]:
        bodies += workers.ingest(batch)
    return bodies


def _train(workers: Workers, bundle: Bundle, catalogue: bytes, present: Sequence[bytes], chosen: str) -> Upload:
    reply = workers.train(
        worker_pb2.TrainRequest(
            plan=bundle.files["plan.json"],
            step=bundle.step,
            weights=bundle.files["weights.bin"],
            private_parameters=bundle.files.get("private.bin", b""),
            occasions=[worker_pb2.Occasion(said=present, chosen=chosen)],
            sources=["catalogue", "chat"],
            task=task_bytes(_task(bundle)),
            catalogue=catalogue,
        ),
        REHEARSAL_S,
    )
    sent = decode_contribution(reply.contribution)
    integers = sent.values.tolist()
    return Upload(
        data=reply.contribution,
        numbers=len(integers),
        l2_norm=math.hypot(*integers) * sent.scale,
        l2_bound=sent.l2_bound,
        values_sha256=hashlib.sha256(sent.values.astype("<i8").tobytes()).hexdigest(),
    )


def _task(bundle: Bundle) -> DeviceTask:
    """Return a task that nobody signed: the worker trains on it here, and no phone or gateway would accept it.

    It has no time of its own, so that a rehearsal comes out the same tomorrow.
    """
    plan = bundle.plan
    return with_digest(
        DeviceTask(
            run_id="rehearsal",
            population=plan.population,
            purpose=plan.purpose,
            recipient=plan.recipient,
            step=0,
            attempt=0,
            plan_digest=bundle.plan_digest,
            weights_digest=hashlib.sha256(bundle.files["weights.bin"]).hexdigest(),
            token=bytes(TOKEN_BYTES),
            issued=1.0,
            expires=2.0,
            round_size=bundle.verified.policy.mechanism.min_round_size,
            mechanism=plan.mechanism,
            shuffle_seed=0,
            digest=b"",
        )
    )


def _require_item(chosen: str, index: CatalogueIndex, domain: str) -> None:
    ranked = [key for key in index.keys if key.startswith(f"{domain}:")]
    if chosen not in ranked:
        example = f", such as {ranked[0]!r}" if ranked else ""
        raise ConfigError(f"--chose: must be an item of this catalogue as `{domain}:NAME`{example}.")


def _words(bodies: Sequence[bytes], index: CatalogueIndex) -> dict[str, list[str]]:
    """Say in words of the catalogue what the lines ask for: the Query, made readable."""
    query = make_query_from([said_from_bytes(body) for body in bodies], (), index)
    terms = {number: term for term, number in index.terms.items()}
    values = {number: value for value, number in index.values.ids.items()}
    names = {number: name for name, number in index.names.ids.items()}
    return {
        "values": [f"{_SIGN[polarity]}{values[value]}" for value, polarity, _ in query.values.tolist()],
        "words": [f"{_SIGN[polarity]}{terms[term]}" for term, _, polarity, _ in query.terms.tolist()],
        "names": [names[name] for name, _ in query.names.tolist()],
        "wishes": _wishes(query.wishes.tolist()),
    }


def _wishes(row: Sequence[float]) -> list[str]:
    """Return the wishes that were said; NaN stands for those that were not (docs/features.md)."""
    low, high, level, free, rating, shortest, longest, near = row
    said = {
        f"price {low:g} to {high:g}": low,
        "cheap" if level < 0 else "expensive": level,
        "free": free,
        f"rated {rating:g} or better": rating,
        f"{shortest:g} to {longest:g} hours": shortest,
        "near by": near,
    }
    return [words for words, number in said.items() if not math.isnan(number)]
