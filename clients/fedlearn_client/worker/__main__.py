"""``python -I -m fedlearn_client.worker [--train | --numerics]``: give up rights, import, give up the rest, answer."""

from __future__ import annotations

import os
import sys

from fedlearn_client.light import HASHES, import_without
from fedlearn_client.worker import sandbox

IDLE_S = 30.0


def main(arguments: list[str]) -> int:
    """Run a resident worker; with ``--train`` one that answers once, with ``--numerics`` one for conformance tests."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is loaded
    layers = sandbox.isolate()
    for module, hidden in HASHES.items():
        import_without(module, hidden)
    # only now: a user namespace needs a process with one thread, and what is imported runs isolated
    from fedlearn.proto import worker_pb2 as pb  # noqa: PLC0415
    from fedlearn_client.worker import serve, warm  # noqa: PLC0415
    from fedlearn_client.worker.frames import frame  # noqa: PLC0415
    from fedlearn_client.worker.numerics import Numerics  # noqa: PLC0415

    once = arguments == ["--train"]
    warm.up()
    sink = _own_pipes()
    layers += sandbox.seal(cpu_s=sandbox.TRAINING_CPU_S if once else None)
    serve.write_all(sink, frame(pb.Reply(ready=pb.Ready(layers=layers)).SerializeToString()))

    def on_step() -> None:
        if serve.parent_gone(0):
            os._exit(3)

    numerics = Numerics() if arguments == ["--numerics"] else None
    serve.serve(serve.Worker(on_step, numerics), 0, sink, None if once else IDLE_S)
    return 0


def _own_pipes() -> int:
    """Keep the pipe for replies; whatever a library prints from now on goes nowhere. Returns the pipe."""
    sink = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return sink


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
