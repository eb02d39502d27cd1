"""The only file that touches Flower's internals: what changes in another version of Flower is mended here.

Public Flower (``flwr.app``, ``flwr.serverapp``, ``flwr.clientapp``, its commands) is used where it is needed. Written
against flwr 1.41; ``tests/e2e/test_flower_contract.py`` runs every call against a real SuperLink.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import ssl
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, cast

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
)
from flwr.app import Error, Message, RecordDict, UserConfig
from flwr.app.message import make_message, remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import (
    HEARTBEAT_MIN_INTERVAL,
    HEARTBEAT_PATIENCE,
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_TOLERANCE,
    ErrorCode,
)
from flwr.common.serde import fab_to_proto, message_from_proto, message_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node, NodeInfo
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest
from flwr.serverapp import Grid
from flwr.supercore.constant import VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY, NodeStatus, TaskType
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
from flwr.supercore.interceptors.http.utils import add_headers
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufClientInterceptor, ProtobufRequestContext
from flwr.supercore.run import Run, RunNotRunningException
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from google.protobuf.message import DecodeError
from packaging.version import Version

from fedlearn.errors import FedlearnError, SuperLinkRefused, SuperLinkUnreachable
from fedlearn.wire import MAX_MESSAGE_BYTES

__all__ = [
    "OPERATOR_HEADER",
    "ControlLink",
    "FleetLink",
    "FlowerNode",
    "FlowerRun",
    "LaunchLink",
    "NodeInfo",
    "Run",
    "build_bundle",
    "bundle_digest",
    "failure_reply",
    "guard_replies",
    "identify_message",
    "identify_process",
    "limit_retries",
    "load_node_key",
    "lost_superlink",
    "read_operator_token",
    "run_superlink",
    "was_lost",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

NODE_FAILED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
HEARTBEAT_S = float(HEARTBEAT_MIN_INTERVAL)
"""The shortest interval that SuperLink accepts."""
GONE_S = HEARTBEAT_PATIENCE * HEARTBEAT_S
"""Seconds of silence after which SuperLink takes a node for gone."""
CLOCK_AHEAD_S, CLOCK_BEHIND_S = SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
"""How far a node's clock may be ahead of SuperLink's, and behind it: requests carry a signed time."""
OBJECT_CACHE_BYTES = 64 * 2**20
OBJECT_OVERHEAD_BYTES = 400  # of a small one, as each message brings some: a node lives for months
OBJECT_WAIT_S = 0.05
OBJECT_TRIES = 200
MOST_OBJECTS = 8
"""Objects of a reply that are fetched at most; ours has three: the message, its list of records and one record."""
MOST_REPLY_BYTES = MAX_MESSAGE_BYTES + 2**16
READING_S = 1.0
"""Seconds after which a reading of replies begins no other one, so that its caller can look at the clock."""
OPERATOR_HEADER = "x-fedlearn-operator"
OPERATOR_TOKEN_DIGITS = 64
ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
LOST = frozenset(
    {
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
OPENSSH = b"BEGIN OPENSSH PRIVATE KEY"
FLOWER = importlib.metadata.version("flwr")
RETRYABLE = frozenset({408, 429, 500, 502, 503, 504})


# identity


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


def was_lost(reply: Message) -> bool:
    """Whether a reply is SuperLink's word that a node, a question or an answer has gone: worth asking again."""
    return reply.has_error() and reply.error.code in LOST


def limit_retries(grid: Grid, seconds: float) -> None:
    """Let a ServerApp's grid give up on a SuperLink that is silent for ``seconds``; Flower would try for ever.

    A ServerApp whose SuperLink was killed holds the lock of its training; the one that goes on needs it.
    """
    retries = getattr(grid, "_retry_invoker", None)
    if retries is not None:
        retries.max_time = seconds


# links


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Return a node's private key (NIST curve; PEM, or OpenSSH's own form, which is the one a stock SuperNode reads).

    Raises:
        SuperLinkRefused: the file holds none, or others can read it.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
        read = load_ssh_private_key if OPENSSH in content else load_pem_private_key
        key = read(content, password=None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SuperLinkRefused(f"{path}: not a private key that can be read ({error}).") from error
    if mode & 0o077:
        raise SuperLinkRefused(
            f"{path}: others can read this node's key: `chmod 600 {path}`; if somebody may have, give the node another "
            "one (`fedlearn nodes rotate`)."
        )
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SuperLinkRefused(
            f"{path}: not an elliptic-curve key; make one with `fedlearn up` or ssh-keygen -t ecdsa -b 384."
        )
    return key


class FleetLink:
    """A node's connection to SuperLink. Never asks for an app: only what is installed runs.

    Args:
        address: ``host:port``.
        ca: the certificate authority's PEM, or None: plain HTTP, for tests on loopback only.
        key: the node's private key.
        tap: called with (method, request bytes, response bytes) of each call, e.g. to count or to check them; from
            the thread that makes the call.

    Raises:
        SuperLinkRefused: ``ca`` cannot be read or holds no certificate.
    """

    def __init__(
        self,
        address: str,
        ca: Path | None,
        key: ec.EllipticCurvePrivateKey,
        tap: Callable[[str, bytes, bytes], None] | None = None,
    ) -> None:
        self._public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        interceptors = [_Versions("fedlearn node"), NodeAuthHttpInterceptor(key, key.public_key())]
        if tap is not None:
            interceptors.append(_Tap(tap))
        self._client = _connected(FleetHttpClient, address, ca, interceptors)
        self._address = address
        self._node = Node()
        self._objects: OrderedDict[str, bytes] = OrderedDict()
        self._object_bytes = 0

    def activate(self, known_as: int | None) -> int:
        """Go online and return the node's id.

        Args:
            known_as: the id an earlier activation returned, if any. SuperLink takes a node that was killed for online
                until its heartbeats are missed, and would refuse it: with the id, it is taken offline first.
        """
        with _translated(self._address):
            if known_as is not None:
                try:
                    self._client.DeactivateNode(DeactivateNodeRequest(node_id=known_as))
                except httpx.HTTPStatusError as error:
                    logger.debug("not online before: %s", error.response.status_code)
            reply = self._client.ActivateNode(
                ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
            )
        self._node = Node(node_id=reply.node_id)
        return int(reply.node_id)

    def deactivate(self) -> None:
        """Go offline: SuperLink answers for this node at once instead of waiting for its heartbeats."""
        with _translated(self._address):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def heartbeat(self) -> None:
        """Stay online for another two intervals; raise SuperLinkRefused if SuperLink does not know the node."""
        with _translated(self._address):
            request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
            if not self._client.SendNodeHeartbeat(request).success:
                raise SuperLinkRefused(f"SuperLink at {self._address} does not know this node any more.")

    def pull(self) -> Message | None:
        """Return the next message for this node, or None. Parts that came before are not fetched again.

        SuperLink hands out a message once: one that is lost on the way is asked again by its sender. A message whose
        run is over is dropped; one that cannot be read comes with no record in it, so that it gets an error reply.
        """
        with _translated(self._address):
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not response.messages_list:
                return None
            head = message_from_proto(response.messages_list[0])
            try:
                contents = self._fetch(head, response.message_object_trees[0])
            except httpx.HTTPStatusError as error:
                if not _run_is_over(error):
                    raise
                return None
            except _PartLost:
                logger.warning("SuperLink has lost a part of a message; its sender asks again")
                return None
        return _inflated(head, contents)

    def push(self, reply: Message) -> bool:
        """Send a reply; False: its run is over and nobody wants it."""
        try:
            with _translated(self._address):
                self._send(reply)
        except SuperLinkRefused as error:
            if isinstance(error.__cause__, httpx.HTTPStatusError) and _run_is_over(error.__cause__):
                return False
            raise
        return True

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _fetch(self, head: Message, tree: ObjectTree) -> dict[str, bytes]:
        run_id, message_id = head.metadata.run_id, head.metadata.message_id
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = run_id, 1, self._node.node_id
        contents = self._contents(run_id, tree)
        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self._node, run_id=run_id, message_object_id=message_id)
        )
        return contents

    def _send(self, reply: Message) -> None:
        run_id = reply.metadata.run_id
        with no_object_id_recompute():
            identify_message(reply, reply.object_id)
            tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
            request = PushMessagesRequest(
                node=self._node,
                messages_list=[message_to_proto(remove_content_from_message(reply) if reply.has_content() else reply)],
                message_object_trees=[tree],
                clientapp_runtime_list=[0.0],
            )
            response = self._client.PushMessages(request)
            for object_id in response.objects_to_push:
                self._client.PushObject(
                    PushObjectRequest(
                        node=self._node,
                        run_id=run_id,
                        session_id=response.session_id,
                        object_id=object_id,
                        object_content=objects[object_id].deflate(),
                    )
                )

    def _contents(self, run_id: int, tree: ObjectTree) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        for leaf in iterate_object_tree(tree):
            object_id = leaf.object_id
            if object_id not in contents:
                known = self._objects.get(object_id)
                contents[object_id] = self._pull_object(run_id, object_id) if known is None else known
                self._keep(object_id, contents[object_id])
        return contents

    def _pull_object(self, run_id: int, object_id: str) -> bytes:
        for _ in range(OBJECT_TRIES):
            request = PullObjectRequest(node=self._node, run_id=run_id, object_id=object_id)
            found = self._client.PullObject(request)
            if not found.object_found:
                break
            if found.object_available:
                return bytes(found.object_content)
            time.sleep(OBJECT_WAIT_S)  # its sender is still sending it
        raise _PartLost

    def _keep(self, object_id: str, content: bytes) -> None:
        if object_id in self._objects:
            self._objects.move_to_end(object_id)
            return
        self._objects[object_id] = content
        self._object_bytes += len(content) + OBJECT_OVERHEAD_BYTES
        while self._object_bytes > OBJECT_CACHE_BYTES:
            self._object_bytes -= len(self._objects.popitem(last=False)[1]) + OBJECT_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True)
class FlowerNode:
    """A node as SuperLink knows it; ``status`` is registered, online, offline or unregistered."""

    node_id: int
    name: str
    status: str
    online_until: float
    public_key: bytes = b""


@dataclass(frozen=True, slots=True)
class FlowerRun:
    """A run as SuperLink knows it.

    Args:
        run_id: Flower's.
        status: pending, starting, running or finished.
        sub_status: completed, failed or stopped once it is finished; else "".
        details: why it failed.
        submitted: ISO time.
    """

    run_id: int
    status: str
    sub_status: str
    details: str
    submitted: str = ""

    @property
    def is_over(self) -> bool:
        """Whether its ServerApp will do nothing more."""
        return self.status == "finished"


def read_operator_token(path: Path) -> str:
    """Return an operator's token; raise SuperLinkRefused if the file holds none or others can read it."""
    try:
        if path.stat().st_mode & 0o077:
            raise SuperLinkRefused(
                f"{path}: others can read the operator's token: `chmod 600 {path}`; if somebody may have, remove it "
                "where SuperLink runs, then `fedlearn down` and `fedlearn up`, which makes a new one."
            )
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise SuperLinkRefused(f"{path}: no operator's token can be read ({error}).") from error
    if len(token) != OPERATOR_TOKEN_DIGITS or not all(letter in "0123456789abcdef" for letter in token):
        raise SuperLinkRefused(f"{path}: not an operator's token of {OPERATOR_TOKEN_DIGITS} hex digits.")
    return token


class ControlLink:
    """The operator's connection to SuperLink: nodes and runs. Whoever reaches it may start code; keep it private.

    Args:
        address: ``host:port``.
        ca: the certificate authority's PEM, or None: plain HTTP, for tests on loopback only.
        token: the operator's token, for a SuperLink that `fedlearn up` started; None where something else guards it.
    """

    def __init__(self, address: str, ca: Path | None, token: str | None = None) -> None:
        self._address = address
        self._headers = {} if token is None else {OPERATOR_HEADER: token}
        interceptors: list[ProtobufClientInterceptor] = [_Versions("fedlearn"), _Headers(self._headers)]
        self._client = _connected(ControlHttpClient, address, ca, interceptors)

    def register_node(self, public_key: bytes, name: str) -> int:
        """Let the holder of a key be a node, and return the node's id."""
        with _translated(self._address):
            return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister_node(self, node_id: int) -> None:
        """Let a node be one no longer: its key is refused from now on."""
        with _translated(self._address):
            self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def nodes(self) -> tuple[FlowerNode, ...]:
        """Return every node that was not unregistered."""
        with _translated(self._address):
            found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return tuple(
            FlowerNode(node.node_id, node.name, node.status, node.online_until, node.public_key)
            for node in found
            if node.status != NodeStatus.UNREGISTERED  # Flower lists those for an hour more
        )

    def start_run(self, bundle: bytes, config: UserConfig) -> int:
        """Submit a bundle with its run config and return Flower's run id."""
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle_digest(bundle), bundle, {})), override_config=user_config_to_proto(config)
        )
        self._require_version()
        with _translated(self._address):
            reply = self._client.StartRun(request)
        if not reply.HasField("run_id"):
            raise SuperLinkRefused(f"SuperLink at {self._address} did not start the run: {reply.note}")
        return int(reply.run_id)

    def run(self, run_id: int) -> FlowerRun | None:
        """Return a run, or None: a SuperLink that lost its database does not know it."""
        try:
            with _translated(self._address):
                found = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        except SuperLinkRefused as error:
            logger.debug("no run %s: %s", run_id, error)
            return None
        return _run(run_id, found[run_id]) if run_id in found else None

    def runs(self, limit: int = 100) -> tuple[FlowerRun, ...]:
        """Return the newest runs, newest first."""
        with _translated(self._address):
            found = self._client.ListRuns(ListRunsRequest(limit=limit)).run_dict
        runs = (_run(run_id, found[run_id]) for run_id in found)
        return tuple(sorted(runs, key=lambda run: run.submitted, reverse=True))

    def stop_run(self, run_id: int) -> bool:
        """Ask a run's ServerApp to stop; False if it is over."""
        with _translated(self._address):
            try:
                return bool(self._client.StopRun(StopRunRequest(run_id=run_id)).success)
            except httpx.HTTPStatusError as error:
                if not _says(error.response, ApiErrorCode.RUN_ALREADY_FINISHED):
                    raise
                return False

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _require_version(self) -> None:
        """Refuse a SuperLink that says it is of another version; behind a proxy it may say nothing."""
        with _translated(self._address):
            answer = self._client._client.get(f"{self._client._base_url}/openapi.json", headers=self._headers)
            version = answer.json()["info"]["version"] if answer.is_success else FLOWER
        if Version(version).release[:2] != Version(FLOWER).release[:2]:
            raise SuperLinkRefused(
                f"SuperLink at {self._address} is of version {version}, this side runs flwr {FLOWER}: install the same."
            )


def _run(run_id: int, run: Any) -> FlowerRun:
    return FlowerRun(run_id, run.status.status, run.status.sub_status, run.status.details, run.pending_at)


# bundle


def build_bundle(files: Mapping[str, bytes]) -> bytes:
    """Return a Flower App Bundle: path -> content, ``pyproject.toml`` among them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a name in pathspec that Flower still uses
        return bytes(build_fab_from_files(dict(files))[0])


def bundle_digest(bundle: bytes) -> str:
    """SHA-256 (hex) of a bundle."""
    return hashlib.sha256(bundle).hexdigest()


# what all links share


def _connected(client: type[T], address: str, ca: Path | None, interceptors: list[Any]) -> T:
    """Return a client; nothing is sent yet."""
    make: Callable[..., T] = client.from_server_address  # type: ignore[attr-defined]
    try:
        return make(address, ca is None, None if ca is None else ca.read_bytes(), interceptors)
    except (OSError, ValueError) as error:
        raise SuperLinkRefused(f"{ca}: no certificate of an authority that can be read ({error}).") from error


class _PartLost(Exception):
    """SuperLink does not have an object of a message that it handed out."""


def _run_is_over(error: httpx.HTTPStatusError) -> bool:
    return _says(error.response, ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED)


def _says(response: httpx.Response, code: ApiErrorCode) -> bool:
    known = FlowerError.from_json(response.text)
    return known is not None and known.code == code


def _inflated(head: Message, contents: dict[str, bytes]) -> Message:
    """Return a message with its content, or without if SuperLink sent what is none."""
    message_id = head.metadata.message_id
    try:
        message = cast(Message, inflate_object_from_contents(message_id, contents))
    except Exception as problem:  # noqa: BLE001 - another app's message must not stop a node
        logger.warning("a message cannot be read: %s", type(problem).__name__)
        return head
    identify_message(message, message_id)
    return message


class _Versions:
    """Tells SuperLink our Flower version and refuses a SuperLink that says it does not fit."""

    def __init__(self, component: str) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component(component).as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, self._headers)
        response = call_next(context)
        if problem := response.headers.get(VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY):
            raise SuperLinkRefused(f"SuperLink is of another version, install the same: {problem}")
        return response


class _Tap:
    """Shows each call's bytes to somebody."""

    def __init__(self, tap: Callable[[str, bytes, bytes], None]) -> None:
        self._tap = tap

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        response = call_next(context)
        self._tap(context.rpc_method, bytes(context.request.content), bytes(response.content))
        return response


class _Headers:
    """Adds headers to every call."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = dict(headers)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        add_headers(context.request, self._headers)
        return call_next(context)


@contextmanager
def _translated(address: str) -> Iterator[None]:
    """Turn what HTTP and TLS raise into our errors, with the way out."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        status, words = error.response.status_code, _words(error.response)
        if status in RETRYABLE:
            raise SuperLinkUnreachable(f"SuperLink at {address} cannot answer now ({status}): {words}.") from error
        raise SuperLinkRefused(
            f"SuperLink at {address} refuses ({status}): {words}.{_way_out(error.response)}"
        ) from error
    except (ssl.SSLError, httpx.TransportError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise SuperLinkRefused(
                f"the certificate of SuperLink at {address} is not accepted: {error}. Expired: make new ones. Of "
                "another authority: use the ca.crt of that SuperLink."
            ) from error
        raise SuperLinkUnreachable(
            f"SuperLink at {address} does not answer: {str(error).rstrip('.') or type(error).__name__}."
        ) from error
    except OSError as error:
        raise SuperLinkUnreachable(f"SuperLink at {address}: {str(error).rstrip('.')}.") from error
    except (DecodeError, ValueError, LookupError, httpx.InvalidURL) as error:
        raise SuperLinkRefused(
            f"what answers at {address} is no SuperLink of this version, or a proxy that changes answers: {error}"
        ) from error


def _way_out(response: httpx.Response) -> str:
    """What an operator should look at; SuperLink itself says little on purpose."""
    if response.status_code == httpx.codes.UNAUTHORIZED:
        return (
            " The node is not registered there (any more), or this machine's clock is wrong: it may be at most "
            f"{CLOCK_AHEAD_S:g} s ahead of SuperLink's and {CLOCK_BEHIND_S:g} s behind."
        )
    if _says(response, ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED):
        return (
            " The node's key is not registered or was revoked; or another process is online with it, or was until "
            f"it was killed less than {GONE_S:g} s ago."
        )
    if response.status_code == httpx.codes.FORBIDDEN:
        return " For `fedlearn train`, runtime.token names the file with it: operator.token of that SuperLink."
    return ""


def _words(response: httpx.Response) -> str:
    known = FlowerError.from_json(response.text)
    if known is not None:
        return " ".join(filter(None, (known.message, known.public_details))).rstrip(".")
    try:
        return str(json.loads(response.text)["detail"]).rstrip(".")
    except (ValueError, KeyError, TypeError):
        return (response.text[:200] or response.reason_phrase).rstrip(".")


# what a ServerApp's grid raises


def lost_superlink(problem: BaseException) -> bool:
    """Whether an exception of a ServerApp's grid says that SuperLink went away, or ended the run: not a run's fault."""
    return isinstance(problem, (httpx.HTTPError, RunNotRunningException, SuperLinkUnreachable))


# a SuperLink of our own


def run_superlink(guard: Callable[[Any], Any]) -> None:
    """Run Flower's ``flower-superlink`` in this process, with ``sys.argv``, behind an ASGI middleware.

    Flower's control API has no authentication of its own in this distribution: whoever reaches the port may start code,
    register nodes and so read sums. On a machine with several users loopback is no wall.

    Args:
        guard: app -> app; sees every request first.
    """
    # late: a node and a submitter need none of it
    from flwr.superlink import extensions  # noqa: PLC0415
    from flwr.superlink.cli.flower_superlink import flower_superlink  # noqa: PLC0415
    from starlette.middleware import Middleware  # noqa: PLC0415

    extensions.get_middleware = lambda: (Middleware(guard), Middleware(TellsVersion))
    flower_superlink()


class TellsVersion:
    """An ASGI middleware that tells a caller of another Flower version so; Flower's own answers and keeps silent.

    Args:
        app: what it stands before.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._version = RuntimeVersionMetadata.from_local_component("SuperLink")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, and mark its answer if need be."""
        headers = tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope.get("headers", ()))
        peer, problem = RuntimeVersionMetadata.from_metadata(headers)
        problem = problem or self._version.check_compatibility(peer)
        if problem is None:
            await self._app(scope, receive, send)
            return
        mark = (VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY.encode(), problem.encode("latin-1", "replace"))

        async def marked(event: Any) -> None:
            if event["type"] == "http.response.start":
                event = {**event, "headers": [*event.get("headers", ()), mark]}
            await send(event)

        await self._app(scope, receive, marked)


class LaunchLink:
    """What starts ServerApps: asks SuperLink for a run that waits, with the secret that SuperLink was started with."""

    def __init__(self, address: str, ca: Path, secret: bytes) -> None:
        self._address = address
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=[ACQUIRE])
        self._client = _connected(RuntimeHttpClient, address, ca, [_Versions("fedlearn launcher"), signed])

    def acquire(self) -> str | None:
        """Return the token of a ServerApp that is to be started now, or None."""
        with _translated(self._address):
            reply = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
        return str(reply.token) if reply.HasField("task") and reply.token else None


# replies, as a ServerApp reads them


def guard_replies(grid: Grid) -> None:
    """Let a ServerApp's grid read replies one by one, so that no node can hold up or end the round of the others.

    Flower's own grid over SuperLink waits up to three minutes for the parts of a reply whose sender was killed while it
    sent them, a second at least for one that is just being sent, fetches as many parts of any size as a sender names,
    and lets pass through whatever a malformed part raises. From here on a reply that is not whole yet is left for the
    next reading, one that cannot be read or is larger than any of ours is an empty one, and a reading ends with the
    reply at which ``READING_S`` seconds have passed. Other grids stay as they are.
    """
    # late: a node and a submitter need none of it
    from flwr.superlink.grid.http_grid import HttpGrid  # noqa: PLC0415

    if isinstance(grid, HttpGrid):
        grid.pull_messages = _ReplyReader(grid).read  # type: ignore[method-assign]


class _TooLarge(Exception):
    """A reply has more objects or bytes than any of ours."""


class _Bound:
    """Refuses an answer of SuperLink by the length that it announces, before any of it is held; None: takes all."""

    def __init__(self) -> None:
        self.bytes: int | None = None

    def __call__(self, response: httpx.Response) -> None:
        if self.bytes is not None and int(response.headers.get("content-length", 0)) > self.bytes:
            raise _TooLarge


@dataclass(slots=True)
class _Incoming:
    """A reply of which SuperLink may not have every part yet."""

    head: Message
    tree: ObjectTree
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.contents.values()))


class _ReplyReader:
    def __init__(self, grid: Any, most_bytes: int = MOST_REPLY_BYTES) -> None:
        self._grid = grid
        self._most_bytes = most_bytes
        self._bound = _Bound()
        self._incoming: dict[str, _Incoming] = {}

    def read(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yield the replies that are there. What is not taken from the iterator comes with the next reading.

        Args:
            message_ids: of the messages that were sent and not answered yet; replies to others are forgotten.
        """
        grid, client, wanted = self._grid, self._grid._runtime_client, dict.fromkeys(message_ids)
        began = time.monotonic()
        self._incoming = {sent: reply for sent, reply in self._incoming.items() if sent in wanted}
        if new := [sent for sent in wanted if sent not in self._incoming]:
            found = client.PullMessages(PullAppMessagesRequest(message_ids=new))
            for proto, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                self._incoming[proto.metadata.reply_to_message_id] = _Incoming(message_from_proto(proto), tree)
        for sent, reply in list(self._incoming.items()):
            message = self._finished(grid, client, reply)
            del self._incoming[sent]
            if message is not None:
                yield message
            else:
                self._put_last(sent, reply)
            if time.monotonic() - began >= READING_S:
                return

    def _put_last(self, sent: str, reply: _Incoming) -> None:
        """Let the others go first next time; what would be held of all of them over the bound is fetched again."""
        if reply.size + sum(other.size for other in self._incoming.values()) > self._most_bytes:
            reply.contents.clear()
        self._incoming[sent] = reply

    def _finished(self, grid: Any, client: RuntimeHttpClient, reply: _Incoming) -> Message | None:
        head, run_id = reply.head, grid.run.run_id
        try:
            if not head.has_error() and not self._fetched(grid, client, reply):
                return None
        except LookupError:
            gone = Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "a part of the reply is gone")
            return make_message(head.metadata, error=gone)
        except _TooLarge:
            logger.debug("a reply is larger than any may be")
            reply.contents.clear()
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=grid.node, run_id=run_id, message_object_id=head.metadata.message_id)
        )
        # what is inside is the sender's word: only the head was checked by SuperLink
        return head if head.has_error() else make_message(head.metadata, content=_content(reply))

    def _fetched(self, grid: Any, client: RuntimeHttpClient, reply: _Incoming) -> bool:
        """Fetch what is there of a reply; False: not all of it is.

        Raises:
            LookupError: a part will never be there.
            _TooLarge: it has too many parts or bytes.
        """
        leaves = list(islice(iterate_object_tree(reply.tree), MOST_OBJECTS + 1))
        if len(leaves) > MOST_OBJECTS:
            raise _TooLarge
        for leaf in leaves:
            if leaf.object_id in reply.contents:
                continue
            request = PullObjectRequest(node=grid.node, run_id=grid.run.run_id, object_id=leaf.object_id)
            with self._bounded(client, self._most_bytes - reply.size):
                found = client.PullObject(request)
            if not found.object_found:
                raise LookupError(leaf.object_id)
            if not found.object_available:
                return False
            reply.contents[leaf.object_id] = found.object_content
            if reply.size > self._most_bytes:
                raise _TooLarge
        return True

    @contextmanager
    def _bounded(self, client: RuntimeHttpClient, most_bytes: int) -> Iterator[None]:
        """Let no answer pass that is longer than an object of so many bytes makes it."""
        hooks = client._client.event_hooks["response"]
        if self._bound not in hooks:  # Flower makes a new client when it connects anew
            hooks.append(self._bound)
        self._bound.bytes = most_bytes + OBJECT_OVERHEAD_BYTES
        try:
            yield
        finally:
            self._bound.bytes = None


def _content(reply: _Incoming) -> RecordDict:
    try:
        message = inflate_object_from_contents(reply.head.metadata.message_id, reply.contents)
        if isinstance(message, Message) and message.has_content():
            return message.content
    except Exception as problem:  # Flower raises whatever a malformed part leads it to
        logger.debug("a reply cannot be read", exc_info=problem)
    return RecordDict()
