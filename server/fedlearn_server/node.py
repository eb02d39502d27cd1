"""The node side: a plain function ``RoundTask -> CohortReply`` behind Flower's stock ``ClientApp``.

This is the only file that touches Flower's internals (``flwr.supercore``, private message fields); a change in Flower
is mended here.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache

from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedlearn.errors import FedlearnError
from fedlearn.task import CohortReply, RoundTask
from fedlearn.wire import decode_task, encode_reply

__all__ = [
    "CohortFactory",
    "NodeFunction",
    "NodeInfo",
    "Run",
    "failure_reply",
    "identify_message",
    "identify_process",
    "make_client_app",
    "pack",
    "unpack",
]

NodeFunction = Callable[[RoundTask], CohortReply]
CohortFactory = Callable[[int, int], NodeFunction]
"""(partition, partitions) -> node function. Hashable and picklable: a runtime may build the node in another process."""

logger = logging.getLogger(__name__)

RECORD = "fedlearn"
PAYLOAD = "payload"
NODE_FAILED = 1


def pack(payload: bytes) -> RecordDict:
    """Return a Flower record that carries our bytes."""
    return RecordDict({RECORD: ConfigRecord({PAYLOAD: payload})})


def unpack(content: RecordDict) -> bytes:
    """Return our bytes, or empty bytes (which no decoder accepts) when the record is not ours."""
    record = content.get(RECORD)
    payload = record.get(PAYLOAD) if isinstance(record, ConfigRecord) else None
    return payload if isinstance(payload, bytes) else b""


def make_client_app(factory: CohortFactory) -> ClientApp:
    """Return the stock Flower ClientApp that hosts one partition of a population.

    Args:
        factory: builds the node function from ``partition-id`` and ``num-partitions`` of the node's config; built
            once per process.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        node = _node(factory, partition, int(context.node_config["num-partitions"]))
        reply = node(decode_task(unpack(message.content)))
        return Message(pack(encode_reply(reply)), reply_to=message)

    return app


@lru_cache(maxsize=64)
def _node(factory: CohortFactory, partition: int, partitions: int) -> NodeFunction:
    return factory(partition, partitions)


def identify_process(run_id: int) -> None:
    """Tell Flower who this process is; a Message cannot be made before."""
    TaskIdentity.run_id = run_id
    TaskIdentity.task_id = 1
    TaskIdentity.node_id = 1


def identify_message(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would have given it, so that a reply can refer to it."""
    message.metadata.__dict__["_message_id"] = message_id


def failure_reply(message: Message, problem: Exception) -> Message:
    """Return the error reply that Flower's own runtimes send when a ClientApp raises.

    It names the kind of error and its code only: the words of an exception may quote a phone's data.
    """
    logger.debug("node failed", exc_info=problem)
    code = f" {problem.code}" if isinstance(problem, FedlearnError) else ""
    return Message(Error(code=NODE_FAILED, reason=f"{type(problem).__name__}{code}"), reply_to=message)
