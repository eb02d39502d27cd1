from fedlearn.proto import device_pb2 as _device_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Case(_message.Message):
    __slots__ = ("load_catalogue", "make_query", "match_rows", "local_update", "contribute", "verdict", "rank")
    LOAD_CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    MAKE_QUERY_FIELD_NUMBER: _ClassVar[int]
    MATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    LOCAL_UPDATE_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    load_catalogue: bytes
    make_query: MakeQuery
    match_rows: MatchRows
    local_update: LocalUpdate
    contribute: Contribute
    verdict: Verdict
    rank: Rank
    def __init__(self, load_catalogue: _Optional[bytes] = ..., make_query: _Optional[_Union[MakeQuery, _Mapping]] = ..., match_rows: _Optional[_Union[MatchRows, _Mapping]] = ..., local_update: _Optional[_Union[LocalUpdate, _Mapping]] = ..., contribute: _Optional[_Union[Contribute, _Mapping]] = ..., verdict: _Optional[_Union[Verdict, _Mapping]] = ..., rank: _Optional[_Union[Rank, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("index_digest", "query", "rows", "delta", "grid", "verdict", "ranking")
    INDEX_DIGEST_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RANKING_FIELD_NUMBER: _ClassVar[int]
    index_digest: str
    query: Numbers
    rows: Floats
    delta: Floats
    grid: Grid
    verdict: VerdictReply
    ranking: Ranking
    def __init__(self, index_digest: _Optional[str] = ..., query: _Optional[_Union[Numbers, _Mapping]] = ..., rows: _Optional[_Union[Floats, _Mapping]] = ..., delta: _Optional[_Union[Floats, _Mapping]] = ..., grid: _Optional[_Union[Grid, _Mapping]] = ..., verdict: _Optional[_Union[VerdictReply, _Mapping]] = ..., ranking: _Optional[_Union[Ranking, _Mapping]] = ...) -> None: ...

class MakeQuery(_message.Message):
    __slots__ = ("messages", "earlier")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_device_pb2.MessageSignal]
    earlier: _containers.RepeatedCompositeFieldContainer[Choice]
    def __init__(self, messages: _Optional[_Iterable[_Union[_device_pb2.MessageSignal, _Mapping]]] = ..., earlier: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("item", "app")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    item: str
    app: str
    def __init__(self, item: _Optional[str] = ..., app: _Optional[str] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, values: _Optional[_Iterable[int]] = ...) -> None: ...

class MatchRows(_message.Message):
    __slots__ = ("query", "candidates")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    query: _containers.RepeatedScalarFieldContainer[int]
    candidates: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, query: _Optional[_Iterable[int]] = ..., candidates: _Optional[_Iterable[int]] = ...) -> None: ...

class Floats(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class LocalUpdate(_message.Message):
    __slots__ = ("plan", "step", "weights", "columns", "shuffle_seed", "mechanism_step")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_SEED_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_STEP_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    step: bytes
    weights: bytes
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    shuffle_seed: int
    mechanism_step: int
    def __init__(self, plan: _Optional[bytes] = ..., step: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., shuffle_seed: _Optional[int] = ..., mechanism_step: _Optional[int] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Contribute(_message.Message):
    __slots__ = ("delta", "l2_clip_norm", "grid_step")
    DELTA_FIELD_NUMBER: _ClassVar[int]
    L2_CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    GRID_STEP_FIELD_NUMBER: _ClassVar[int]
    delta: _containers.RepeatedScalarFieldContainer[float]
    l2_clip_norm: float
    grid_step: float
    def __init__(self, delta: _Optional[_Iterable[float]] = ..., l2_clip_norm: _Optional[float] = ..., grid_step: _Optional[float] = ...) -> None: ...

class Grid(_message.Message):
    __slots__ = ("values", "refusal")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[int]
    refusal: str
    def __init__(self, values: _Optional[_Iterable[int]] = ..., refusal: _Optional[str] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("situation",)
    SITUATION_FIELD_NUMBER: _ClassVar[int]
    situation: str
    def __init__(self, situation: _Optional[str] = ...) -> None: ...

class VerdictReply(_message.Message):
    __slots__ = ("verdict", "rho")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RHO_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    rho: float
    def __init__(self, verdict: _Optional[str] = ..., rho: _Optional[float] = ...) -> None: ...

class Rank(_message.Message):
    __slots__ = ("plan", "infer", "weights", "occasion", "sources", "count")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    OCCASION_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    infer: bytes
    weights: bytes
    occasion: MakeQuery
    sources: _containers.RepeatedScalarFieldContainer[str]
    count: int
    def __init__(self, plan: _Optional[bytes] = ..., infer: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., occasion: _Optional[_Union[MakeQuery, _Mapping]] = ..., sources: _Optional[_Iterable[str]] = ..., count: _Optional[int] = ...) -> None: ...

class Ranking(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, items: _Optional[_Iterable[str]] = ...) -> None: ...
