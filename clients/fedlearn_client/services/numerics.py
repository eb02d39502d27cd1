"""``fedlearn.conformance.v1.Numerics``: a daemon's numbers, for the conformance kit. In test builds only.

It takes text and weights from whoever reaches the socket, so it has no place on a phone that somebody owns. Its worker
is another process than those of the device contract: no case sees anything of the owner.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from fedlearn.proto import conformance_pb2 as pb
from fedlearn_client.services.refusals import refusal_of
from fedlearn_client.workers import Workers

PATH: Final = "/fedlearn.conformance.v1.Numerics/Answer"
OF_A_WORKER: Final = frozenset({"load_catalogue", "make_query", "match_rows", "local_update", "contribute", "rank"})
VERDICT: Final = "verdict"


class NumericsHandler(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers cases: verdicts by the daemon's guard, everything else by a worker.

    Args:
        workers: started with ``numerics``.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="numerics")

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the one method."""
        if handler_call_details.method != PATH:
            return None
        return grpc.unary_unary_rpc_method_handler(self._answer)

    def close(self) -> None:
        """Wait for the case that runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    async def _answer(self, data: bytes, context: aio.ServicerContext[bytes, bytes]) -> bytes:
        try:
            case = pb.Case.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "FL301 Answer: the bytes are no Case.")
        kind = case.WhichOneof("body") or ""
        if kind not in OF_A_WORKER | {VERDICT}:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not a case that this runtime answers")
        loop: Any = asyncio.get_running_loop()
        try:
            return bytes(await loop.run_in_executor(self._pool, self._answered, kind, case, data))
        except Exception as error:
            refusal = refusal_of(error)
            await context.abort(refusal.status, refusal.details)
            raise

    def _answered(self, kind: str, case: pb.Case, data: bytes) -> bytes:
        if kind != VERDICT:
            return self._workers.numerics(data)
        from fedlearn_client.conformance.judge import judge  # noqa: PLC0415 - nothing of it in other builds

        return pb.Reply(verdict=judge(case.verdict.situation)).SerializeToString()
