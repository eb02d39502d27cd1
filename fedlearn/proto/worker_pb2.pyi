from fedlearn.proto import device_pb2 as _device_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Request(_message.Message):
    __slots__ = ("load_catalogue", "ingest", "load_ranker", "rank", "train", "golden", "numerics")
    LOAD_CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    INGEST_FIELD_NUMBER: _ClassVar[int]
    LOAD_RANKER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    load_catalogue: bytes
    ingest: IngestRequest
    load_ranker: LoadRanker
    rank: RankRequest
    train: TrainRequest
    golden: GoldenRequest
    numerics: bytes
    def __init__(self, load_catalogue: _Optional[bytes] = ..., ingest: _Optional[_Union[IngestRequest, _Mapping]] = ..., load_ranker: _Optional[_Union[LoadRanker, _Mapping]] = ..., rank: _Optional[_Union[RankRequest, _Mapping]] = ..., train: _Optional[_Union[TrainRequest, _Mapping]] = ..., golden: _Optional[_Union[GoldenRequest, _Mapping]] = ..., numerics: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("failure", "loaded_catalogue", "ingest", "loaded_ranker", "rank", "train", "golden", "numerics", "ready")
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    LOADED_CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    INGEST_FIELD_NUMBER: _ClassVar[int]
    LOADED_RANKER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    GOLDEN_FIELD_NUMBER: _ClassVar[int]
    NUMERICS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    failure: Failure
    loaded_catalogue: LoadedCatalogue
    ingest: IngestReply
    loaded_ranker: LoadedRanker
    rank: RankReply
    train: TrainReply
    golden: GoldenReply
    numerics: bytes
    ready: Ready
    def __init__(self, failure: _Optional[_Union[Failure, _Mapping]] = ..., loaded_catalogue: _Optional[_Union[LoadedCatalogue, _Mapping]] = ..., ingest: _Optional[_Union[IngestReply, _Mapping]] = ..., loaded_ranker: _Optional[_Union[LoadedRanker, _Mapping]] = ..., rank: _Optional[_Union[RankReply, _Mapping]] = ..., train: _Optional[_Union[TrainReply, _Mapping]] = ..., golden: _Optional[_Union[GoldenReply, _Mapping]] = ..., numerics: _Optional[bytes] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, layers: _Optional[_Iterable[str]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("code", "kind", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    kind: str
    message: str
    def __init__(self, code: _Optional[str] = ..., kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class LoadedCatalogue(_message.Message):
    __slots__ = ("index_digest", "items")
    INDEX_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    index_digest: str
    items: int
    def __init__(self, index_digest: _Optional[str] = ..., items: _Optional[int] = ...) -> None: ...

class IngestRequest(_message.Message):
    __slots__ = ("signals",)
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    signals: _containers.RepeatedCompositeFieldContainer[_device_pb2.Signal]
    def __init__(self, signals: _Optional[_Iterable[_Union[_device_pb2.Signal, _Mapping]]] = ...) -> None: ...

class Derived(_message.Message):
    __slots__ = ("body",)
    BODY_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    def __init__(self, body: _Optional[bytes] = ...) -> None: ...

class IngestReply(_message.Message):
    __slots__ = ("derived",)
    DERIVED_FIELD_NUMBER: _ClassVar[int]
    derived: _containers.RepeatedCompositeFieldContainer[Derived]
    def __init__(self, derived: _Optional[_Iterable[_Union[Derived, _Mapping]]] = ...) -> None: ...

class Occasion(_message.Message):
    __slots__ = ("said", "earlier", "chosen")
    SAID_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    said: _containers.RepeatedScalarFieldContainer[bytes]
    earlier: _containers.RepeatedCompositeFieldContainer[EarlierChoice]
    chosen: str
    def __init__(self, said: _Optional[_Iterable[bytes]] = ..., earlier: _Optional[_Iterable[_Union[EarlierChoice, _Mapping]]] = ..., chosen: _Optional[str] = ...) -> None: ...

class EarlierChoice(_message.Message):
    __slots__ = ("item", "app")
    ITEM_FIELD_NUMBER: _ClassVar[int]
    APP_FIELD_NUMBER: _ClassVar[int]
    item: str
    app: str
    def __init__(self, item: _Optional[str] = ..., app: _Optional[str] = ...) -> None: ...

class LoadRanker(_message.Message):
    __slots__ = ("plan", "infer", "weights", "private_parameters")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    infer: bytes
    weights: bytes
    private_parameters: bytes
    def __init__(self, plan: _Optional[bytes] = ..., infer: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., private_parameters: _Optional[bytes] = ...) -> None: ...

class LoadedRanker(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("plan_digest", "occasion", "sources", "count")
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OCCASION_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    plan_digest: str
    occasion: Occasion
    sources: _containers.RepeatedScalarFieldContainer[str]
    count: int
    def __init__(self, plan_digest: _Optional[str] = ..., occasion: _Optional[_Union[Occasion, _Mapping]] = ..., sources: _Optional[_Iterable[str]] = ..., count: _Optional[int] = ...) -> None: ...

class RankReply(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[_device_pb2.RankedItem]
    def __init__(self, items: _Optional[_Iterable[_Union[_device_pb2.RankedItem, _Mapping]]] = ...) -> None: ...

class TrainRequest(_message.Message):
    __slots__ = ("plan", "step", "weights", "private_parameters", "occasions", "sources", "task", "catalogue", "columns")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OCCASIONS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    plan: bytes
    step: bytes
    weights: bytes
    private_parameters: bytes
    occasions: _containers.RepeatedCompositeFieldContainer[Occasion]
    sources: _containers.RepeatedScalarFieldContainer[str]
    task: bytes
    catalogue: bytes
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, plan: _Optional[bytes] = ..., step: _Optional[bytes] = ..., weights: _Optional[bytes] = ..., private_parameters: _Optional[bytes] = ..., occasions: _Optional[_Iterable[_Union[Occasion, _Mapping]]] = ..., sources: _Optional[_Iterable[str]] = ..., task: _Optional[bytes] = ..., catalogue: _Optional[bytes] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

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

class TrainReply(_message.Message):
    __slots__ = ("contribution", "private_parameters", "examples")
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    contribution: bytes
    private_parameters: bytes
    examples: int
    def __init__(self, contribution: _Optional[bytes] = ..., private_parameters: _Optional[bytes] = ..., examples: _Optional[int] = ...) -> None: ...

class GoldenRequest(_message.Message):
    __slots__ = ("vectors", "step", "infer", "plan", "catalogue", "weights")
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    INFER_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    CATALOGUE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    vectors: bytes
    step: bytes
    infer: bytes
    plan: bytes
    catalogue: bytes
    weights: bytes
    def __init__(self, vectors: _Optional[bytes] = ..., step: _Optional[bytes] = ..., infer: _Optional[bytes] = ..., plan: _Optional[bytes] = ..., catalogue: _Optional[bytes] = ..., weights: _Optional[bytes] = ...) -> None: ...

class GoldenReply(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: str
    def __init__(self, report: _Optional[str] = ...) -> None: ...
