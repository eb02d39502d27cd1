from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Envelope(_message.Message):
    __slots__ = ("version", "task", "contribution", "reply")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    version: int
    task: RoundTask
    contribution: Contribution
    reply: CohortReply
    def __init__(self, version: _Optional[int] = ..., task: _Optional[_Union[RoundTask, _Mapping]] = ..., contribution: _Optional[_Union[Contribution, _Mapping]] = ..., reply: _Optional[_Union[CohortReply, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "f32")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    F32_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    f32: bytes
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., f32: _Optional[bytes] = ...) -> None: ...

class LocalTraining(_message.Message):
    __slots__ = ("epochs", "batch_size", "learning_rate", "shuffle", "candidates", "example_privacy")
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    epochs: int
    batch_size: int
    learning_rate: float
    shuffle: bool
    candidates: int
    example_privacy: ExamplePrivacy
    def __init__(self, epochs: _Optional[int] = ..., batch_size: _Optional[int] = ..., learning_rate: _Optional[float] = ..., shuffle: _Optional[bool] = ..., candidates: _Optional[int] = ..., example_privacy: _Optional[_Union[ExamplePrivacy, _Mapping]] = ...) -> None: ...

class ExamplePrivacy(_message.Message):
    __slots__ = ("noise_multiplier", "l2_clip_norm")
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    L2_CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    noise_multiplier: float
    l2_clip_norm: float
    def __init__(self, noise_multiplier: _Optional[float] = ..., l2_clip_norm: _Optional[float] = ...) -> None: ...

class CohortSchedule(_message.Message):
    __slots__ = ("min_separation", "availability")
    MIN_SEPARATION_FIELD_NUMBER: _ClassVar[int]
    AVAILABILITY_FIELD_NUMBER: _ClassVar[int]
    min_separation: int
    availability: float
    def __init__(self, min_separation: _Optional[int] = ..., availability: _Optional[float] = ...) -> None: ...

class RoundTask(_message.Message):
    __slots__ = ("run_id", "step", "attempt", "seed", "parameters", "training", "l2_clip_norm", "grid_step", "sampling_probability", "round_key", "participation", "count_scale", "ledger_checkpoint")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    L2_CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    GRID_STEP_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    ROUND_KEY_FIELD_NUMBER: _ClassVar[int]
    PARTICIPATION_FIELD_NUMBER: _ClassVar[int]
    COUNT_SCALE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    step: int
    attempt: int
    seed: int
    parameters: _containers.RepeatedCompositeFieldContainer[Tensor]
    training: LocalTraining
    l2_clip_norm: float
    grid_step: float
    sampling_probability: float
    round_key: bytes
    participation: CohortSchedule
    count_scale: float
    ledger_checkpoint: bytes
    def __init__(self, run_id: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., seed: _Optional[int] = ..., parameters: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., training: _Optional[_Union[LocalTraining, _Mapping]] = ..., l2_clip_norm: _Optional[float] = ..., grid_step: _Optional[float] = ..., sampling_probability: _Optional[float] = ..., round_key: _Optional[bytes] = ..., participation: _Optional[_Union[CohortSchedule, _Mapping]] = ..., count_scale: _Optional[float] = ..., ledger_checkpoint: _Optional[bytes] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("codec", "scale", "level", "count", "l2_bound", "task_digest", "nonce", "dimension", "values")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LEVEL_UNSPECIFIED: _ClassVar[Contribution.Level]
        LEVEL_PHONE: _ClassVar[Contribution.Level]
        LEVEL_COHORT: _ClassVar[Contribution.Level]
    LEVEL_UNSPECIFIED: Contribution.Level
    LEVEL_PHONE: Contribution.Level
    LEVEL_COHORT: Contribution.Level
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    L2_BOUND_FIELD_NUMBER: _ClassVar[int]
    TASK_DIGEST_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    codec: str
    scale: float
    level: Contribution.Level
    count: int
    l2_bound: float
    task_digest: bytes
    nonce: bytes
    dimension: int
    values: bytes
    def __init__(self, codec: _Optional[str] = ..., scale: _Optional[float] = ..., level: _Optional[_Union[Contribution.Level, str]] = ..., count: _Optional[int] = ..., l2_bound: _Optional[float] = ..., task_digest: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., dimension: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class CohortReply(_message.Message):
    __slots__ = ("contribution", "loss_sum", "trained", "clipped", "norm_sum", "rejected")
    class RejectedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    TRAINED_FIELD_NUMBER: _ClassVar[int]
    CLIPPED_FIELD_NUMBER: _ClassVar[int]
    NORM_SUM_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    contribution: Contribution
    loss_sum: float
    trained: int
    clipped: int
    norm_sum: float
    rejected: _containers.ScalarMap[str, int]
    def __init__(self, contribution: _Optional[_Union[Contribution, _Mapping]] = ..., loss_sum: _Optional[float] = ..., trained: _Optional[int] = ..., clipped: _Optional[int] = ..., norm_sum: _Optional[float] = ..., rejected: _Optional[_Mapping[str, int]] = ...) -> None: ...
