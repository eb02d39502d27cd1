from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_MESSAGE_CONTENT: _ClassVar[DataType]
    DATA_TYPE_CHOICE: _ClassVar[DataType]

class Direction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTION_UNSPECIFIED: _ClassVar[Direction]
    DIRECTION_OUTGOING: _ClassVar[Direction]
    DIRECTION_INCOMING: _ClassVar[Direction]

class AgeClass(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGE_CLASS_UNKNOWN: _ClassVar[AgeClass]
    AGE_CLASS_MINOR: _ClassVar[AgeClass]
    AGE_CLASS_ADULT: _ClassVar[AgeClass]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_MESSAGE_CONTENT: DataType
DATA_TYPE_CHOICE: DataType
DIRECTION_UNSPECIFIED: Direction
DIRECTION_OUTGOING: Direction
DIRECTION_INCOMING: Direction
AGE_CLASS_UNKNOWN: AgeClass
AGE_CLASS_MINOR: AgeClass
AGE_CLASS_ADULT: AgeClass

class RegisterRequest(_message.Message):
    __slots__ = ("stream", "data_type")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    stream: str
    data_type: DataType
    def __init__(self, stream: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ...) -> None: ...

class RegisterReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Span(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class MessageSignal(_message.Message):
    __slots__ = ("text", "direction", "foreign_spans")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    DIRECTION_FIELD_NUMBER: _ClassVar[int]
    FOREIGN_SPANS_FIELD_NUMBER: _ClassVar[int]
    text: str
    direction: Direction
    foreign_spans: _containers.RepeatedCompositeFieldContainer[Span]
    def __init__(self, text: _Optional[str] = ..., direction: _Optional[_Union[Direction, str]] = ..., foreign_spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ...) -> None: ...

class ChoiceSignal(_message.Message):
    __slots__ = ("item",)
    ITEM_FIELD_NUMBER: _ClassVar[int]
    item: str
    def __init__(self, item: _Optional[str] = ...) -> None: ...

class Signal(_message.Message):
    __slots__ = ("id", "time_ms", "message", "choice")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    id: str
    time_ms: int
    message: MessageSignal
    choice: ChoiceSignal
    def __init__(self, id: _Optional[str] = ..., time_ms: _Optional[int] = ..., message: _Optional[_Union[MessageSignal, _Mapping]] = ..., choice: _Optional[_Union[ChoiceSignal, _Mapping]] = ...) -> None: ...

class PushRequest(_message.Message):
    __slots__ = ("stream", "signals")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    stream: str
    signals: _containers.RepeatedCompositeFieldContainer[Signal]
    def __init__(self, stream: _Optional[str] = ..., signals: _Optional[_Iterable[_Union[Signal, _Mapping]]] = ...) -> None: ...

class PushReply(_message.Message):
    __slots__ = ("received",)
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    received: int
    def __init__(self, received: _Optional[int] = ...) -> None: ...

class RestrictRequest(_message.Message):
    __slots__ = ("stream", "purposes")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    PURPOSES_FIELD_NUMBER: _ClassVar[int]
    stream: str
    purposes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, stream: _Optional[str] = ..., purposes: _Optional[_Iterable[str]] = ...) -> None: ...

class RestrictReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PurgeRequest(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: str
    def __init__(self, stream: _Optional[str] = ...) -> None: ...

class PurgeReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class GetRequest(_message.Message):
    __slots__ = ("purpose", "count")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    purpose: str
    count: int
    def __init__(self, purpose: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class RankedItem(_message.Message):
    __slots__ = ("item", "score")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    item: str
    score: float
    def __init__(self, item: _Optional[str] = ..., score: _Optional[float] = ...) -> None: ...

class GetReply(_message.Message):
    __slots__ = ("ranking_id", "items", "used")
    RANKING_ID_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    ranking_id: bytes
    items: _containers.RepeatedCompositeFieldContainer[RankedItem]
    used: _containers.RepeatedCompositeFieldContainer[UsedSource]
    def __init__(self, ranking_id: _Optional[bytes] = ..., items: _Optional[_Iterable[_Union[RankedItem, _Mapping]]] = ..., used: _Optional[_Iterable[_Union[UsedSource, _Mapping]]] = ...) -> None: ...

class UsedSource(_message.Message):
    __slots__ = ("app", "data_type")
    APP_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    app: str
    data_type: DataType
    def __init__(self, app: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("ranking_id", "item")
    RANKING_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    ranking_id: bytes
    item: str
    def __init__(self, ranking_id: _Optional[bytes] = ..., item: _Optional[str] = ...) -> None: ...

class FeedbackReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Grant(_message.Message):
    __slots__ = ("app", "data_type", "purpose", "recipient", "on", "text_version", "time_ms", "text", "current_text_version", "blocked")
    APP_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    TEXT_VERSION_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_TEXT_VERSION_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_FIELD_NUMBER: _ClassVar[int]
    app: str
    data_type: DataType
    purpose: str
    recipient: str
    on: bool
    text_version: int
    time_ms: int
    text: str
    current_text_version: int
    blocked: str
    def __init__(self, app: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., purpose: _Optional[str] = ..., recipient: _Optional[str] = ..., on: _Optional[bool] = ..., text_version: _Optional[int] = ..., time_ms: _Optional[int] = ..., text: _Optional[str] = ..., current_text_version: _Optional[int] = ..., blocked: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("grants", "age", "personal_off")
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    PERSONAL_OFF_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    age: AgeClass
    personal_off: bool
    def __init__(self, grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ..., age: _Optional[_Union[AgeClass, str]] = ..., personal_off: _Optional[bool] = ...) -> None: ...

class SetRequest(_message.Message):
    __slots__ = ("app", "data_type", "purpose", "recipient", "on", "text_version")
    APP_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    ON_FIELD_NUMBER: _ClassVar[int]
    TEXT_VERSION_FIELD_NUMBER: _ClassVar[int]
    app: str
    data_type: DataType
    purpose: str
    recipient: str
    on: bool
    text_version: int
    def __init__(self, app: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., purpose: _Optional[str] = ..., recipient: _Optional[str] = ..., on: _Optional[bool] = ..., text_version: _Optional[int] = ...) -> None: ...

class SetReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: Receipt
    def __init__(self, receipt: _Optional[_Union[Receipt, _Mapping]] = ...) -> None: ...

class SetOwnerRequest(_message.Message):
    __slots__ = ("age", "personal_off")
    AGE_FIELD_NUMBER: _ClassVar[int]
    PERSONAL_OFF_FIELD_NUMBER: _ClassVar[int]
    age: AgeClass
    personal_off: bool
    def __init__(self, age: _Optional[_Union[AgeClass, str]] = ..., personal_off: _Optional[bool] = ...) -> None: ...

class SetOwnerReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("statement", "signature", "public_key")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    statement: bytes
    signature: bytes
    public_key: bytes
    def __init__(self, statement: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class RunsRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class LocalRun(_message.Message):
    __slots__ = ("time_ms", "purpose", "recipient", "run_id", "step", "outcome", "examples")
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    time_ms: int
    purpose: str
    recipient: str
    run_id: str
    step: int
    outcome: str
    examples: int
    def __init__(self, time_ms: _Optional[int] = ..., purpose: _Optional[str] = ..., recipient: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., outcome: _Optional[str] = ..., examples: _Optional[int] = ...) -> None: ...

class RunsReply(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[LocalRun]
    def __init__(self, runs: _Optional[_Iterable[_Union[LocalRun, _Mapping]]] = ...) -> None: ...

class BudgetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BudgetReply(_message.Message):
    __slots__ = ("rho", "epsilon", "delta", "epsilon_cap", "participations", "history_lost")
    RHO_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    EPSILON_CAP_FIELD_NUMBER: _ClassVar[int]
    PARTICIPATIONS_FIELD_NUMBER: _ClassVar[int]
    HISTORY_LOST_FIELD_NUMBER: _ClassVar[int]
    rho: float
    epsilon: float
    delta: float
    epsilon_cap: float
    participations: int
    history_lost: bool
    def __init__(self, rho: _Optional[float] = ..., epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., epsilon_cap: _Optional[float] = ..., participations: _Optional[int] = ..., history_lost: _Optional[bool] = ...) -> None: ...

class EgressRequest(_message.Message):
    __slots__ = ("limit", "with_bytes")
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WITH_BYTES_FIELD_NUMBER: _ClassVar[int]
    limit: int
    with_bytes: bool
    def __init__(self, limit: _Optional[int] = ..., with_bytes: _Optional[bool] = ...) -> None: ...

class EgressEntry(_message.Message):
    __slots__ = ("id", "time_ms", "method", "purpose", "recipient", "run_id", "step", "size", "sha256", "state", "body")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    id: int
    time_ms: int
    method: str
    purpose: str
    recipient: str
    run_id: str
    step: int
    size: int
    sha256: bytes
    state: str
    body: bytes
    def __init__(self, id: _Optional[int] = ..., time_ms: _Optional[int] = ..., method: _Optional[str] = ..., purpose: _Optional[str] = ..., recipient: _Optional[str] = ..., run_id: _Optional[str] = ..., step: _Optional[int] = ..., size: _Optional[int] = ..., sha256: _Optional[bytes] = ..., state: _Optional[str] = ..., body: _Optional[bytes] = ...) -> None: ...

class EgressReply(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[EgressEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[EgressEntry, _Mapping]]] = ...) -> None: ...

class ReceiptsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReceiptsReply(_message.Message):
    __slots__ = ("receipts",)
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipts: _containers.RepeatedCompositeFieldContainer[Receipt]
    def __init__(self, receipts: _Optional[_Iterable[_Union[Receipt, _Mapping]]] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InstalledBundle(_message.Message):
    __slots__ = ("purpose", "digest", "expires_ms", "population", "model")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    purpose: str
    digest: str
    expires_ms: int
    population: str
    model: str
    def __init__(self, purpose: _Optional[str] = ..., digest: _Optional[str] = ..., expires_ms: _Optional[int] = ..., population: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("version", "paused", "bundles", "catalogue", "status_version", "status_time_ms", "status_fresh", "next_round", "signals", "last_round_ms")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    BUNDLES_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    STATUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FRESH_FIELD_NUMBER: _ClassVar[int]
    NEXT_ROUND_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_MS_FIELD_NUMBER: _ClassVar[int]
    version: str
    paused: bool
    bundles: _containers.RepeatedCompositeFieldContainer[InstalledBundle]
    catalogue: str
    status_version: int
    status_time_ms: int
    status_fresh: bool
    next_round: str
    signals: int
    last_round_ms: int
    def __init__(self, version: _Optional[str] = ..., paused: _Optional[bool] = ..., bundles: _Optional[_Iterable[_Union[InstalledBundle, _Mapping]]] = ..., catalogue: _Optional[str] = ..., status_version: _Optional[int] = ..., status_time_ms: _Optional[int] = ..., status_fresh: _Optional[bool] = ..., next_round: _Optional[str] = ..., signals: _Optional[int] = ..., last_round_ms: _Optional[int] = ...) -> None: ...

class ConditionsRequest(_message.Message):
    __slots__ = ("clear", "charging", "idle", "unmetered", "battery", "thermal")
    CLEAR_FIELD_NUMBER: _ClassVar[int]
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    UNMETERED_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    THERMAL_FIELD_NUMBER: _ClassVar[int]
    clear: bool
    charging: bool
    idle: bool
    unmetered: bool
    battery: float
    thermal: str
    def __init__(self, clear: _Optional[bool] = ..., charging: _Optional[bool] = ..., idle: _Optional[bool] = ..., unmetered: _Optional[bool] = ..., battery: _Optional[float] = ..., thermal: _Optional[str] = ...) -> None: ...

class ConditionsReply(_message.Message):
    __slots__ = ("charging", "idle", "unmetered", "battery", "thermal")
    CHARGING_FIELD_NUMBER: _ClassVar[int]
    IDLE_FIELD_NUMBER: _ClassVar[int]
    UNMETERED_FIELD_NUMBER: _ClassVar[int]
    BATTERY_FIELD_NUMBER: _ClassVar[int]
    THERMAL_FIELD_NUMBER: _ClassVar[int]
    charging: bool
    idle: bool
    unmetered: bool
    battery: float
    thermal: str
    def __init__(self, charging: _Optional[bool] = ..., idle: _Optional[bool] = ..., unmetered: _Optional[bool] = ..., battery: _Optional[float] = ..., thermal: _Optional[str] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ("paused",)
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    paused: bool
    def __init__(self, paused: _Optional[bool] = ...) -> None: ...

class PauseReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainNowRequest(_message.Message):
    __slots__ = ("purpose",)
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    purpose: str
    def __init__(self, purpose: _Optional[str] = ...) -> None: ...

class TrainNowReply(_message.Message):
    __slots__ = ("outcome",)
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    outcome: str
    def __init__(self, outcome: _Optional[str] = ...) -> None: ...

class InstallRequest(_message.Message):
    __slots__ = ("task_bundle", "catalogue_bundle")
    TASK_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_BUNDLE_FIELD_NUMBER: _ClassVar[int]
    task_bundle: bytes
    catalogue_bundle: bytes
    def __init__(self, task_bundle: _Optional[bytes] = ..., catalogue_bundle: _Optional[bytes] = ...) -> None: ...

class InstallReply(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: str
    def __init__(self, digest: _Optional[str] = ...) -> None: ...

class UpdateStatusRequest(_message.Message):
    __slots__ = ("envelope",)
    ENVELOPE_FIELD_NUMBER: _ClassVar[int]
    envelope: bytes
    def __init__(self, envelope: _Optional[bytes] = ...) -> None: ...

class UpdateStatusReply(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: int
    def __init__(self, version: _Optional[int] = ...) -> None: ...
