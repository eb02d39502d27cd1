"""The one exception tree of fedlearn.

Every leaf carries a stable ``code``; ``docs/errors.md`` has one entry per code that says what to do. ::

    FedlearnError
    |- ConfigError            FL100  a setting is wrong
    |  |- UnknownSetting      FL101  a key or choice that does not exist
    |  |- OutOfRange          FL102  a value outside its allowed range
    |  '- MissingDependency   FL103  an optional package is not installed
    |- DataError              FL200  a data set cannot be used
    |  |- DataMissing         FL201  a file is not where data.root says
    |  |- DataCorrupt         FL202  a file is there but cannot be read
    |  |- EmptyPopulation     FL203  no device, or no device with an example
    |  |- CatalogueMismatch   FL204  a Query was made against another catalogue
    |  '- DataMismatch        FL205  two sides of a run have different data
    |- WireError              FL300  bytes that are not one of our messages
    |  |- MalformedMessage    FL301  undecodable, or a required field is absent
    |  |- MessageTooLarge     FL302  over the size cap
    |  |- VersionUnsupported  FL303  made by another wire version
    |  '- CodecRefused        FL304  a codec that is unknown or reserved (ring64)
    |- ContributionRejected   FL400  a contribution that may not be added (has a reason)
    |- PrivacyError           FL500  a private step that may not happen
    |  |- BudgetExceeded      FL501  the run would spend more than its budget
    |  |- CannotCalibrate     FL502  no noise multiplier meets the target
    |  |- InvalidSpend        FL503  an event that no accountant here can compose
    |  |- ChargeMismatch      FL504  a release without its own unused charge
    |  '- NoiseStateLost      FL505  secret noise state that is gone or not this step's
    |- LedgerError            FL600  the ledger cannot be used
    |  |- LedgerLocked        FL601  another process holds it
    |  |- LedgerDamaged       FL602  its content contradicts itself
    |  '- LedgerRestored      FL603  an older copy, or a copy that went its own way
    |- RunError               FL700  a run cannot go on
    |  |- RunDirectoryInUse   FL701  the directory holds a run of another config
    |  |- ResumeRefused       FL702  the run to resume is absent or was changed
    |  |- RoundFailed         FL703  no usable reply arrived
    |  |- RunInterrupted      FL704  stopped by the user; can be resumed
    |  |- SuperLinkUnreachable FL705 no answer from SuperLink; to be tried again
    |  |- SuperLinkRefused    FL706  SuperLink answers and refuses: key, certificate, version
    |  |- CodeMismatch        FL707  the two sides run different code
    |  |- DeploymentRefused   FL708  a local deployment that cannot be started or stopped as asked
    |  '- GatewayStoreFailed  FL709  a gateway's database cannot be used; nothing was acknowledged
    |- TrustError             FL800  a signed document that may not be used
    |  |- PolicyInvalid       FL801  not a policy, or one that contradicts itself
    |  |- SignatureRefused    FL802  unsigned, signed by too few, or by nobody on the roster
    |  |- StatusRefused       FL803  stopped, revoked, stale, or older than one seen before
    |  '- BundleRefused       FL804  a task or catalogue bundle that fails a check
    '- DeviceError            FL900  the runtime on a phone refuses or cannot go on
       |- CallerRefused       FL901  the caller is unknown, or may not do this
       |- ConsentRefused      FL902  a grant that cannot be set
       |- SignalRefused       FL903  a stream or signal that is not acceptable
       |- StoreFailed         FL904  the encrypted store cannot be opened or written
       |- TaskRefused         FL905  a task that breaks policy, plan, budget or participation (has a reason)
       |- WorkerFailed        FL906  the sandboxed worker died or answered nonsense
       |- TransportFailed     FL907  the gateway cannot be reached or answered nonsense
       '- RateLimited         FL908  asked too often
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class FedlearnError(Exception):
    """Base of every error fedlearn raises on purpose; ``code`` is stable across releases."""

    code: ClassVar[str] = "FL000"


class ConfigError(FedlearnError, ValueError):
    """A setting is wrong; the message names the field and the fix."""

    code = "FL100"


class UnknownSetting(ConfigError):
    """A key or a choice that does not exist."""

    code = "FL101"


class OutOfRange(ConfigError):
    """A value outside its allowed range."""

    code = "FL102"


class MissingDependency(ConfigError):
    """An optional package is not installed; the message is the install line."""

    code = "FL103"


class DataError(FedlearnError):
    """A data set cannot be used."""

    code = "FL200"


class DataMissing(DataError):
    """A file is not where ``data.root`` says."""

    code = "FL201"


class DataCorrupt(DataError):
    """A file is there but cannot be read as what it should be."""

    code = "FL202"


class EmptyPopulation(DataError):
    """No device, or no device with an example."""

    code = "FL203"


class CatalogueMismatch(DataError):
    """A Query was made against another catalogue."""

    code = "FL204"


class DataMismatch(DataError):
    """The data on this side of a run are not the run's."""

    code = "FL205"


class WireError(FedlearnError):
    """Bytes that are not one of our messages."""

    code = "FL300"


class MalformedMessage(WireError):
    """Undecodable bytes, or a required field is absent."""

    code = "FL301"


class MessageTooLarge(WireError):
    """A message over the size cap."""

    code = "FL302"


class VersionUnsupported(WireError):
    """A message made by another wire version."""

    code = "FL303"


class CodecRefused(WireError):
    """A codec that is unknown, or reserved and not built yet (``ring64``)."""

    code = "FL304"


class Reason(StrEnum):
    """Why a contribution was rejected; the strings are stable and counted in reports."""

    MALFORMED = "malformed"
    OVERSIZE = "oversize"
    WRONG_TASK = "wrong_task_digest"
    WRONG_SHAPE = "wrong_shape"
    WRONG_DTYPE = "wrong_dtype"
    WRONG_LEVEL = "wrong_level"
    NOT_FINITE = "not_finite"
    OVER_NORM = "over_norm"
    OVER_COUNT = "over_count"
    DUPLICATE = "duplicate"
    LATE = "late"
    FAILED = "failed"


class ContributionRejected(FedlearnError):
    """A contribution that may not be added to a sum.

    The round goes on without it; ``reason`` is what the round counts.
    """

    code = "FL400"

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class PrivacyError(FedlearnError):
    """A private step that may not happen."""

    code = "FL500"


class BudgetExceeded(PrivacyError):
    """The run would spend more than its budget."""

    code = "FL501"


class CannotCalibrate(PrivacyError):
    """No noise multiplier in range meets the target epsilon."""

    code = "FL502"


class InvalidSpend(PrivacyError, ValueError):
    """An event that no accountant here can compose, or a parameter it refuses."""

    code = "FL503"


class ChargeMismatch(PrivacyError):
    """A release without its own unused charge."""

    code = "FL504"


class NoiseStateLost(PrivacyError):
    """The secret state of a correlated-noise mechanism is gone, damaged, of another run, or not of this step."""

    code = "FL505"


class LedgerError(FedlearnError):
    """The ledger cannot be used."""

    code = "FL600"


class LedgerLocked(LedgerError):
    """Another process holds the ledger."""

    code = "FL601"


class LedgerDamaged(LedgerError):
    """The ledger's content contradicts itself."""

    code = "FL602"


class LedgerRestored(LedgerError):
    """The ledger lacks an entry under which this machine released: an older copy, or one that went its own way."""

    code = "FL603"


class RunError(FedlearnError):
    """A run cannot go on."""

    code = "FL700"


class RunDirectoryInUse(RunError):
    """The directory holds a run of another config."""

    code = "FL701"


class ResumeRefused(RunError):
    """The run to resume is absent, or its config, data or code was changed."""

    code = "FL702"


class RoundFailed(RunError):
    """No usable reply arrived."""

    code = "FL703"


class RunInterrupted(RunError):
    """Stopped by the user; the run directory can be resumed."""

    code = "FL704"


class SuperLinkUnreachable(RunError):
    """No answer from SuperLink, or none that can be trusted; to be tried again."""

    code = "FL705"


class SuperLinkRefused(RunError):
    """SuperLink answers and refuses: a node that is not registered, a wrong certificate, another version."""

    code = "FL706"


class CodeMismatch(RunError):
    """Submitter, ServerApp and node must run the same code, and do not."""

    code = "FL707"


class DeploymentRefused(RunError):
    """A local deployment that cannot be started or stopped as asked."""

    code = "FL708"


class GatewayStoreFailed(RunError):
    """A gateway's database cannot be used: full disk, gone, or held too long. Nothing was acknowledged."""

    code = "FL709"


class TrustError(FedlearnError):
    """A signed document that may not be used."""

    code = "FL800"


class PolicyInvalid(TrustError, ValueError):
    """Not a policy, or one that contradicts itself; the message names the field."""

    code = "FL801"


class SignatureRefused(TrustError):
    """Unsigned, signed by too few, by nobody on the roster, or by a roster that has expired."""

    code = "FL802"


class StatusRefused(TrustError):
    """The signed status says stopped or revoked, is too old, or is older than one that was seen before."""

    code = "FL803"


class BundleRefused(TrustError):
    """A task or catalogue bundle that fails a check; the message names the check."""

    code = "FL804"


class DeviceError(FedlearnError):
    """The runtime on a phone refuses, or cannot go on."""

    code = "FL900"


class CallerRefused(DeviceError):
    """The caller is unknown, or may not do this."""

    code = "FL901"


class ConsentRefused(DeviceError):
    """A grant that cannot be set: not in the policy, disputed, or for other words than those on the screen."""

    code = "FL902"


class SignalRefused(DeviceError, ValueError):
    """A stream or signal that is not acceptable; the message names the field, never its content."""

    code = "FL903"


class StoreFailed(DeviceError):
    """The encrypted store cannot be opened or written: wrong key, full disk, damage."""

    code = "FL904"


class Refusal(StrEnum):
    """Why a phone refused a task; the strings are stable and shown in its log."""

    POLICY = "breaks_policy"
    PLAN = "not_the_approved_plan"
    SIGNATURE = "bad_signature"
    STATUS = "status"
    EXPIRED = "expired"
    TOKEN = "token_used"  # noqa: S105 - a reason, no secret
    WEIGHTS = "wrong_weights"
    SEPARATION = "too_soon"
    PARTICIPATIONS = "participations_used_up"
    BUDGET = "device_budget"
    HISTORY = "history_lost"
    CONSENT = "no_consent"
    CONDITIONS = "conditions"
    CLOCK = "clock_moved"
    LEDGER = "ledger"


class TaskRefused(DeviceError):
    """A task that breaks the policy, the approved plan, the device's budget or its participation bounds.

    Nothing was charged and nothing left the phone; ``reason`` is what the phone logs.
    """

    code = "FL905"

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class WorkerFailed(DeviceError):
    """The sandboxed worker died, ran out of time or memory, or answered nonsense."""

    code = "FL906"


class TransportFailed(DeviceError):
    """The gateway cannot be reached, answered nonsense, or denied the call (``denial``); to be tried again later."""

    code = "FL907"

    def __init__(self, detail: str, denial: str = "") -> None:
        super().__init__(detail)
        self.denial = denial


class RateLimited(DeviceError):
    """Asked too often; the message says when to ask again."""

    code = "FL908"
