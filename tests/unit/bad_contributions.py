"""Every kind of bad contribution, with the reason it must be rejected for: one table for all runtimes.

In step ``s`` of a training, part ``CULPRIT`` answers as the ``s``-th kind says, and every other part answers well: one
training, hence one start of a runtime, covers the whole table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import round_town as town
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from fedlearn.errors import Reason
from fedlearn.fold import COHORT_NORM_SLACK
from fedlearn.proto import wire_pb2 as pb
from fedlearn.task import CohortReply, RoundTask
from fedlearn.types import Level
from fedlearn.wire import decode_task, encode_contribution, encode_reply, encode_task, task_digest
from fedlearn_server.app import make_client_app
from fedlearn_server.collect import Asking
from fedlearn_server.hosting import NodeFunction
from fedlearn_server.message import REPLY, Question, pack_answer, unpack_question
from fedlearn_server.round import RoundOutcome
from fedlearn_server.training import run_training

PARTS = 4
CULPRIT = 1
RESERVED = town.POPULATION // PARTS
SECRET = "zebra-quince-7731: the phone's own words"

Said = CohortReply | bytes | RecordDict
Spoil = Callable[[Question, RoundTask, CohortReply], Said]


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to be bad.

    Args:
        reason: what it must be counted as.
        spoil: (question, task, good reply) -> what is said instead.
        modes: with or without privacy.
        delivery: ``once``; ``twice``; ``held``: not before the next step's answer; ``after_held``: once, in that step;
            over a SuperLink only, ``half``: begun and never ended; ``unreadable``: of parts that Flower cannot read.
        lost: whether the phones of the part are missing from the sum.
        only: the one runtime that it exists on, or "".
    """

    reason: Reason
    spoil: Spoil
    modes: tuple[str, ...] = ("none", "private")
    delivery: str = "once"
    lost: bool = True
    only: str = ""


KINDS: dict[str, Kind] = {}


def kind(reason: Reason, **options: Any) -> Callable[[Spoil], Spoil]:
    """Enter a function in the table under its name."""

    def enter(spoil: Spoil) -> Spoil:
        KINDS[spoil.__name__] = Kind(reason, spoil, **options)
        return spoil

    return enter


def edited(
    name: str, reason: Reason, change: Callable[[RoundTask, CohortReply], Mapping[str, Any]], **options: Any
) -> None:
    """Enter a kind whose contribution differs from a good one in some fields."""

    def spoil(question: Question, task: RoundTask, reply: CohortReply) -> Said:
        return replace(reply, contribution=replace(reply.contribution, **change(task, reply)))

    KINDS[name] = Kind(reason, spoil, **options)


def rewritten(name: str, reason: Reason, edit: Callable[[pb.Envelope], object], **options: Any) -> None:
    """Enter a kind whose bytes our own encoder would not make."""

    def spoil(question: Question, task: RoundTask, reply: CohortReply) -> Said:
        envelope = pb.Envelope.FromString(encode_reply(reply))
        edit(envelope)
        return envelope.SerializeToString()

    KINDS[name] = Kind(reason, spoil, **options)


# --- another task ----------------------------------------------------------------------------------------------------

edited("another_digest", Reason.WRONG_TASK, lambda task, reply: {"task_digest": bytes(32)})
edited(
    "another_step",
    Reason.WRONG_TASK,
    lambda task, reply: {"task_digest": task_digest(replace(task, step=task.step + 1))},
)
edited(
    "another_attempt", Reason.WRONG_TASK, lambda task, reply: {"task_digest": task_digest(replace(task, attempt=99))}
)
edited(
    "another_run", Reason.WRONG_TASK, lambda task, reply: {"task_digest": task_digest(replace(task, run_id="other"))}
)
edited("another_model", Reason.WRONG_TASK, lambda task, reply: {"task_digest": task_digest(_other_model(task))})


def _other_model(task: RoundTask) -> RoundTask:
    return replace(task, parameters={name: array + 1 for name, array in task.parameters.items()})


# --- another vector --------------------------------------------------------------------------------------------------

edited("too_short", Reason.WRONG_SHAPE, lambda task, reply: {"values": reply.contribution.values[:-1]})
edited(
    "too_long", Reason.WRONG_SHAPE, lambda task, reply: {"values": np.resize(reply.contribution.values, town.WIDTH + 1)}
)
edited("no_values", Reason.WRONG_SHAPE, lambda task, reply: {"values": reply.contribution.values[:0]})
edited("other_codec", Reason.WRONG_DTYPE, lambda task, reply: _other_codec(task))
edited("scale_doubled", Reason.WRONG_DTYPE, lambda task, reply: {"scale": 2 * reply.contribution.scale})
edited("scale_zero", Reason.WRONG_DTYPE, lambda task, reply: {"scale": 0.0})
edited("scale_nan", Reason.WRONG_DTYPE, lambda task, reply: {"scale": float("nan")})
edited("scale_negative", Reason.WRONG_DTYPE, lambda task, reply: {"scale": -reply.contribution.scale})
edited("scale_infinite", Reason.WRONG_DTYPE, lambda task, reply: {"scale": float("inf")})
edited("nan", Reason.NOT_FINITE, lambda task, reply: {"values": np.array([0.0, np.nan, 0.0])}, modes=("none",))
edited("infinity", Reason.NOT_FINITE, lambda task, reply: {"values": np.array([np.inf, 0.0, 0.0])}, modes=("none",))
edited(
    "minus_infinity", Reason.NOT_FINITE, lambda task, reply: {"values": np.array([0.0, 0.0, -np.inf])}, modes=("none",)
)
rewritten("codec_unknown", Reason.WRONG_DTYPE, lambda sent: setattr(sent.reply.contribution, "codec", "f16"))
rewritten("codec_reserved", Reason.WRONG_DTYPE, lambda sent: setattr(sent.reply.contribution, "codec", "ring64"))
rewritten("codec_absent", Reason.WRONG_DTYPE, lambda sent: sent.reply.contribution.ClearField("codec"))
rewritten("values_cut", Reason.MALFORMED, lambda sent: _cut_values(sent.reply.contribution))
rewritten("dimension_huge", Reason.MALFORMED, lambda sent: setattr(sent.reply.contribution, "dimension", 2**61))


def _other_codec(task: RoundTask) -> Mapping[str, Any]:
    if task.grid_step is None:
        return {"codec": "grid64", "scale": 2.0**-30, "values": np.ones(town.WIDTH, "<i8")}
    return {"codec": "f64", "scale": 1.0, "values": np.ones(town.WIDTH, "<f8") / 8}


def _cut_values(contribution: pb.Contribution) -> None:
    contribution.values = contribution.values[:-1]


# --- too much --------------------------------------------------------------------------------------------------------


def one_number(task: RoundTask, length: float) -> Mapping[str, Any]:
    """A vector of one coordinate, in the encoding of the task."""
    if task.grid_step is None:
        return {"values": np.array([length, 0.0, 0.0])}
    return {"values": np.array([round(length / task.grid_step), 0, 0], "<i8")}


def barely(task: RoundTask) -> float:
    """The shortest norm that is over the bound of a good node's cohort."""
    bound = town.PHONES * task.l2_clip_norm
    return bound * (1.0 + 1.001 * COHORT_NORM_SLACK) if task.grid_step is None else bound + task.grid_step


edited("norm_huge", Reason.OVER_NORM, lambda task, reply: one_number(task, 2.0**20))
edited("norm_barely_over", Reason.OVER_NORM, lambda task, reply: one_number(task, barely(task)))
edited("norm_overflows", Reason.OVER_NORM, lambda task, reply: {"values": np.full(3, 1e300)}, modes=("none",))
edited("norm_wraps", Reason.OVER_NORM, lambda task, reply: {"values": np.full(3, -(2**63), "<i8")}, modes=("private",))
edited("bound_claimed", Reason.OVER_NORM, lambda task, reply: {"l2_bound": 1e9})
edited("count_over_part", Reason.OVER_COUNT, lambda task, reply: {"count": RESERVED + 1})
edited("count_population", Reason.OVER_COUNT, lambda task, reply: {"count": town.POPULATION})
edited("count_huge", Reason.OVER_COUNT, lambda task, reply: {"count": 2**64 - 1})  # -1 as well: the same bytes


@kind(Reason.WRONG_LEVEL)
def level_phone(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """One phone's contribution, which no gateway has summed."""
    contribution = replace(reply.contribution, level=Level.PHONE, count=1)
    return replace(reply, contribution=contribution, trained=1, clipped=0)


@kind(Reason.OVER_NORM)
def count_zero(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """No phones, and yet a sum of something."""
    contribution = replace(reply.contribution, count=0, l2_bound=0.0, **one_number(task, 0.5))
    return replace(reply, contribution=contribution, trained=0, clipped=0, loss_sum=0.0)


@kind(Reason.MALFORMED)
def trained_over_count(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """More phones trained than took part."""
    return replace(reply, trained=town.PHONES + 1)


@kind(Reason.MALFORMED)
def clipped_over_count(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """More phones clipped than took part."""
    return replace(reply, clipped=2**63)


@kind(Reason.MALFORMED)
def loss_nan(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """A loss that would spoil the record."""
    return replace(reply, loss_sum=float("nan"))


@kind(Reason.OVERSIZE)
def oversize(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """A thousand times the longest message that the task allows."""
    return replace(reply, contribution=replace(reply.contribution, values=np.zeros(500_000, "<i8"), codec="grid64"))


# --- said twice, late, or by another ---------------------------------------------------------------------------------


@kind(Reason.DUPLICATE)
def nonce_of_another_part(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """What part 0 said, said again: ``good_reply`` gives part 0 a nonce that can be guessed."""
    return replace(reply, contribution=replace(reply.contribution, nonce=public_nonce(task)))


@kind(Reason.DUPLICATE, delivery="twice", lost=False)
def answers_twice(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """A good answer, and again."""
    return reply


@kind(Reason.FAILED, delivery="held")
def silent(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """No answer until the deadline."""
    return reply


@kind(Reason.LATE, delivery="after_held", lost=False)
def late(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """What was kept silent arrives in the next round, with that round's own answer."""
    return reply


@kind(Reason.FAILED, delivery="half", only="superlink")
def half_sent(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """Killed while it sent its answer, of which SuperLink knows but has no byte."""
    return reply


@kind(Reason.MALFORMED, delivery="unreadable", only="superlink")
def unreadable(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """Parts that have their digest and no meaning."""
    return reply


@kind(Reason.MALFORMED)
def challenge_wrong(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """Sent by somebody who never saw the question."""
    return pack_answer(encode_reply(reply), bytes(len(question.challenge)))


@kind(Reason.MALFORMED)
def challenge_short(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """A part of the challenge."""
    return pack_answer(encode_reply(reply), question.challenge[:-1])


@kind(Reason.MALFORMED)
def challenge_absent(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """No challenge."""
    return RecordDict({REPLY: ConfigRecord({"payload": encode_reply(reply)})})


# --- not one of our messages -----------------------------------------------------------------------------------------


@kind(Reason.MALFORMED)
def garbage(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """Bytes of nothing."""
    return b"\xff\x00garbage" * 9


@kind(Reason.MALFORMED)
def truncated(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """The end is missing."""
    return encode_reply(reply)[:-3]


@kind(Reason.MALFORMED)
def empty(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """No bytes."""
    return b""


@kind(Reason.MALFORMED)
def a_task(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """The question itself."""
    return encode_task(task)


@kind(Reason.MALFORMED)
def a_bare_contribution(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """What a gateway's phone would send."""
    return encode_contribution(reply.contribution)


@kind(Reason.MALFORMED)
def no_record(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """A Flower message without our record."""
    return RecordDict({"other": ConfigRecord({"payload": encode_reply(reply), "challenge": question.challenge})})


@kind(Reason.MALFORMED)
def arrays_for_bytes(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """What a stock Flower client answers."""
    return RecordDict({REPLY: ArrayRecord({"payload": Array(np.zeros(3))})})


@kind(Reason.MALFORMED)
def text_for_bytes(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """The right record with a field of another type."""
    return RecordDict({REPLY: ConfigRecord({"payload": "text", "challenge": question.challenge})})


rewritten("version_next", Reason.MALFORMED, lambda sent: setattr(sent, "version", 2))
rewritten("version_absent", Reason.MALFORMED, lambda sent: sent.ClearField("version"))
rewritten("contribution_absent", Reason.MALFORMED, lambda sent: sent.reply.ClearField("contribution"))
rewritten("level_absent", Reason.MALFORMED, lambda sent: sent.reply.contribution.ClearField("level"))
rewritten("digest_short", Reason.MALFORMED, lambda sent: setattr(sent.reply.contribution, "task_digest", b"short"))
rewritten("nonce_absent", Reason.MALFORMED, lambda sent: sent.reply.contribution.ClearField("nonce"))
rewritten("bound_nan", Reason.MALFORMED, lambda sent: setattr(sent.reply.contribution, "l2_bound", float("nan")))
rewritten("bound_negative", Reason.MALFORMED, lambda sent: setattr(sent.reply.contribution, "l2_bound", -1.0))
rewritten("reason_unknown", Reason.MALFORMED, lambda sent: sent.reply.rejected.update({SECRET: 1}))
rewritten("rejected_huge", Reason.OVER_COUNT, lambda sent: sent.reply.rejected.update({"failed": 2**63}))


# --- failures --------------------------------------------------------------------------------------------------------


@kind(Reason.FAILED)
def raises(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """A bug in the node; its words quote what no server may see."""
    raise RuntimeError(SECRET)


@kind(Reason.FAILED)
def out_of_memory(question: Question, task: RoundTask, reply: CohortReply) -> Said:
    """No room for this cohort."""
    raise MemoryError(SECRET)


# --- who says it -----------------------------------------------------------------------------------------------------


def public_nonce(task: RoundTask) -> bytes:
    """A nonce that everybody can compute."""
    return hashlib.sha256(b"%d %d" % (task.step, task.attempt)).digest()[:16]


def good_reply(task: RoundTask, partition: int) -> CohortReply:
    """Answer well, with the same vector in every step."""
    reply = town.good(task)
    nonce = public_nonce(task) if partition == 0 else reply.contribution.nonce
    values = town.vector(replace(task, step=0))
    return replace(reply, contribution=replace(reply.contribution, nonce=nonce, values=values))


@dataclass(frozen=True)
class BadApp:
    """A ClientApp whose nodes answer well but for one part. Picklable: a runtime may use it in another process.

    Args:
        names: the kind of each step, in turn.
    """

    names: tuple[str, ...]

    def host(self, description: str, partition: int, partitions: int) -> NodeFunction:
        """Host a part (``fedlearn_server.hosting.CohortHost``)."""

        def node(task: RoundTask) -> CohortReply:
            reply = good_reply(task, partition)
            if partition != CULPRIT:
                return reply
            said = KINDS[self.names[task.step]].spoil(_no_question(task, partition, partitions), task, reply)
            return said if isinstance(said, CohortReply) else reply

        return node

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as our own ClientApp does; what it could not send is put in place of its answer."""
        question = unpack_question(message.content)
        made = make_client_app(lambda: self.host)(message, context)
        if question.partition != CULPRIT or made.has_error():
            return made
        task = decode_task(question.task)
        said = KINDS[self.names[task.step]].spoil(question, task, good_reply(task, question.partition))
        if isinstance(said, bytes):
            made.content = pack_answer(said, question.challenge)
        elif isinstance(said, RecordDict):
            made.content = said
        return made


def _no_question(task: RoundTask, partition: int, partitions: int) -> Question:
    return Question("{}", encode_task(task), partition, partitions, bytes(16))


@dataclass(eq=False)
class UnrulyGrid:
    """A grid over which the culprit's answers come twice or in the next step, as the kind of the step says.

    Args:
        grid: any runtime's, which could not lose or double a message by itself.
        names: the kind of each step, in turn.
    """

    grid: Grid
    names: tuple[str, ...]
    _culprits: dict[str, Kind] = field(default_factory=dict)
    _held: list[Message] = field(default_factory=list)
    _waiting: list[Message] = field(default_factory=list)
    _taken: set[str] = field(default_factory=set)
    _now: Kind | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.grid, name)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Remember which message is the culprit's."""
        messages = list(messages)
        ids = list(self.grid.push_messages(messages))
        for message, message_id in zip(messages, ids, strict=True):
            if unpack_question(message.content).partition == CULPRIT:
                self._now = KINDS[self.names[int(message.metadata.group_id)]]
                self._culprits[message_id] = self._now
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Let the culprit's answer be the first of its step, so that the step cannot end before all of it is seen."""
        delivered: list[Message] = []
        # a runtime that is asked again for a reply it has given away says that it is lost
        for reply in self.grid.pull_messages([one for one in message_ids if one not in self._taken]):
            self._taken.add(reply.metadata.reply_to_message_id)
            culprit = self._culprits.pop(reply.metadata.reply_to_message_id, None)
            if culprit is None:
                self._waiting.append(reply)
                continue
            self._now = None
            match culprit.delivery:
                case "twice":
                    delivered += [reply, reply]
                case "held":
                    self._held.append(reply)
                case "after_held":
                    delivered += [*self._held, reply]
                    self._held = []
                case _:
                    delivered.append(reply)
        if self._now is None:
            delivered += self._waiting
            self._waiting = []
        return delivered


# --- one training over all of them -----------------------------------------------------------------------------------


def names_in(mode: str, runtime: str) -> tuple[str, ...]:
    """Return the kinds that exist with (``private``) or without (``none``) privacy on a runtime."""
    return tuple(name for name, found in KINDS.items() if mode in found.modes and found.only in {"", runtime})


def run_all(
    grid: Grid, directory: Path, mode: str, names: Sequence[str], deadline_s: float
) -> Iterator[dict[str, Any]]:
    """Train one step for each kind and return what each step's record says."""
    job = town.make_job(directory, private=mode == "private", rounds=len(names), shards=PARTS)
    job = replace(job, asking=Asking(deadline_s))
    seen: list[dict[str, Any]] = []

    def observe(outcome: RoundOutcome) -> None:
        found = outcome.unprotected
        seen.append(
            {
                "kind": names[outcome.step],
                "rejected": {reason.value: count for reason, count in found.rejected.items()},
                "cohort": found.cohort,
                "loss": found.loss,
                "failures": list(found.failures),
            }
        )

    run_training(job, grid, observe)
    return iter(seen)


def problems(records: Iterable[Mapping[str, Any]], names: Sequence[str], unseen: Sequence[str] = ()) -> list[str]:
    """Return what was not rejected as it must be, or had an effect on the rest.

    Args:
        records: of ``run_all``.
        names: the kinds that were tried.
        unseen: kinds that this runtime itself keeps from the server, so that nothing is counted.
    """
    wrong, left = [], list(names)
    for record in records:
        name = left.pop(0)
        found = KINDS[name]
        expected = {} if name in unseen else {found.reason.value: 1}
        cohort = (PARTS - (found.lost and name not in unseen)) * town.PHONES
        if (record["kind"], record["rejected"], record["cohort"], record["loss"]) != (name, expected, cohort, 2.0):
            wrong.append(f"{name}: expected {expected} and a cohort of {cohort}, found {dict(record)}")
        if SECRET in json.dumps(record):
            wrong.append(f"{name}: its words are in the record: {dict(record)}")
    return [*wrong, *(f"{name}: its step is missing" for name in left)]
