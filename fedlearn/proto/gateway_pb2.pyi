from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EnrolRequest(_message.Message):
    __slots__ = ("version", "credential", "device_key", "attestation", "nonce", "time_ms", "signature", "padding")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREDENTIAL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KEY_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    version: int
    credential: bytes
    device_key: bytes
    attestation: bytes
    nonce: bytes
    time_ms: int
    signature: bytes
    padding: bytes
    def __init__(self, version: _Optional[int] = ..., credential: _Optional[bytes] = ..., device_key: _Optional[bytes] = ..., attestation: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., time_ms: _Optional[int] = ..., signature: _Optional[bytes] = ..., padding: _Optional[bytes] = ...) -> None: ...

class EnrolReply(_message.Message):
    __slots__ = ("outcome", "reason")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[EnrolReply.Outcome]
        OUTCOME_ENROLLED: _ClassVar[EnrolReply.Outcome]
        OUTCOME_REFUSED: _ClassVar[EnrolReply.Outcome]
    OUTCOME_UNSPECIFIED: EnrolReply.Outcome
    OUTCOME_ENROLLED: EnrolReply.Outcome
    OUTCOME_REFUSED: EnrolReply.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    outcome: EnrolReply.Outcome
    reason: str
    def __init__(self, outcome: _Optional[_Union[EnrolReply.Outcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...

class CheckInRequest(_message.Message):
    __slots__ = ("version", "population", "purpose", "bundle_digest", "runtime", "status_version", "attestation", "padding", "nonce", "device_key", "time_ms", "signature", "release")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    STATUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_KEY_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    version: int
    population: str
    purpose: str
    bundle_digest: bytes
    runtime: str
    status_version: int
    attestation: bytes
    padding: bytes
    nonce: bytes
    device_key: bytes
    time_ms: int
    signature: bytes
    release: int
    def __init__(self, version: _Optional[int] = ..., population: _Optional[str] = ..., purpose: _Optional[str] = ..., bundle_digest: _Optional[bytes] = ..., runtime: _Optional[str] = ..., status_version: _Optional[int] = ..., attestation: _Optional[bytes] = ..., padding: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., device_key: _Optional[bytes] = ..., time_ms: _Optional[int] = ..., signature: _Optional[bytes] = ..., release: _Optional[int] = ...) -> None: ...

class CheckInReply(_message.Message):
    __slots__ = ("task", "retry_after_s", "status", "ledger_checkpoint", "release", "reason", "time_ms")
    TASK_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_S_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    task: SignedTask
    retry_after_s: int
    status: bytes
    ledger_checkpoint: bytes
    release: bytes
    reason: str
    time_ms: int
    def __init__(self, task: _Optional[_Union[SignedTask, _Mapping]] = ..., retry_after_s: _Optional[int] = ..., status: _Optional[bytes] = ..., ledger_checkpoint: _Optional[bytes] = ..., release: _Optional[bytes] = ..., reason: _Optional[str] = ..., time_ms: _Optional[int] = ...) -> None: ...

class SignedTask(_message.Message):
    __slots__ = ("task", "signature")
    TASK_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    signature: bytes
    def __init__(self, task: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class DeviceTask(_message.Message):
    __slots__ = ("version", "run_id", "population", "purpose", "recipient", "step", "attempt", "plan_digest", "weights_digest", "token", "issued_ms", "expires_ms", "round_size", "mechanism", "shuffle_seed")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    POPULATION_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PLAN_DIGEST_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ISSUED_MS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_MS_FIELD_NUMBER: _ClassVar[int]
    ROUND_SIZE_FIELD_NUMBER: _ClassVar[int]
    MECHANISM_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_SEED_FIELD_NUMBER: _ClassVar[int]
    version: int
    run_id: str
    population: str
    purpose: str
    recipient: str
    step: int
    attempt: int
    plan_digest: bytes
    weights_digest: bytes
    token: bytes
    issued_ms: int
    expires_ms: int
    round_size: int
    mechanism: Mechanism
    shuffle_seed: int
    def __init__(self, version: _Optional[int] = ..., run_id: _Optional[str] = ..., population: _Optional[str] = ..., purpose: _Optional[str] = ..., recipient: _Optional[str] = ..., step: _Optional[int] = ..., attempt: _Optional[int] = ..., plan_digest: _Optional[bytes] = ..., weights_digest: _Optional[bytes] = ..., token: _Optional[bytes] = ..., issued_ms: _Optional[int] = ..., expires_ms: _Optional[int] = ..., round_size: _Optional[int] = ..., mechanism: _Optional[_Union[Mechanism, _Mapping]] = ..., shuffle_seed: _Optional[int] = ...) -> None: ...

class Mechanism(_message.Message):
    __slots__ = ("factorization", "noise_multiplier", "l2_clip_norm", "grid_step", "steps", "min_separation", "max_participations", "kind")
    FACTORIZATION_FIELD_NUMBER: _ClassVar[int]
    NOISE_MULTIPLIER_FIELD_NUMBER: _ClassVar[int]
    L2_CLIP_NORM_FIELD_NUMBER: _ClassVar[int]
    GRID_STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MIN_SEPARATION_FIELD_NUMBER: _ClassVar[int]
    MAX_PARTICIPATIONS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    factorization: str
    noise_multiplier: float
    l2_clip_norm: float
    grid_step: float
    steps: int
    min_separation: int
    max_participations: int
    kind: str
    def __init__(self, factorization: _Optional[str] = ..., noise_multiplier: _Optional[float] = ..., l2_clip_norm: _Optional[float] = ..., grid_step: _Optional[float] = ..., steps: _Optional[int] = ..., min_separation: _Optional[int] = ..., max_participations: _Optional[int] = ..., kind: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("digest", "offset", "max_bytes", "padding")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    offset: int
    max_bytes: int
    padding: bytes
    def __init__(self, digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., max_bytes: _Optional[int] = ..., padding: _Optional[bytes] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("data", "total")
    DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    total: int
    def __init__(self, data: _Optional[bytes] = ..., total: _Optional[int] = ...) -> None: ...

class UploadRequest(_message.Message):
    __slots__ = ("token", "contribution", "padding")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    contribution: bytes
    padding: bytes
    def __init__(self, token: _Optional[bytes] = ..., contribution: _Optional[bytes] = ..., padding: _Optional[bytes] = ...) -> None: ...

class UploadReply(_message.Message):
    __slots__ = ("outcome", "reason", "ledger_checkpoint")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[UploadReply.Outcome]
        OUTCOME_ACCEPTED: _ClassVar[UploadReply.Outcome]
        OUTCOME_LATE: _ClassVar[UploadReply.Outcome]
        OUTCOME_REJECTED: _ClassVar[UploadReply.Outcome]
    OUTCOME_UNSPECIFIED: UploadReply.Outcome
    OUTCOME_ACCEPTED: UploadReply.Outcome
    OUTCOME_LATE: UploadReply.Outcome
    OUTCOME_REJECTED: UploadReply.Outcome
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LEDGER_CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    outcome: UploadReply.Outcome
    reason: str
    ledger_checkpoint: bytes
    def __init__(self, outcome: _Optional[_Union[UploadReply.Outcome, str]] = ..., reason: _Optional[str] = ..., ledger_checkpoint: _Optional[bytes] = ...) -> None: ...
