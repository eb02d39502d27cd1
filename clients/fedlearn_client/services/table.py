"""Method -> servicer, for ``Door``."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from fedlearn_client.buckets import Buckets
from fedlearn_client.hooks import Caller
from fedlearn_client.services.audit import AuditServicer
from fedlearn_client.services.consent import ConsentServicer
from fedlearn_client.services.door import Handler
from fedlearn_client.services.methods import PACKAGE
from fedlearn_client.services.recommend import RecommendServicer
from fedlearn_client.services.runtime import RuntimeServicer
from fedlearn_client.services.signals import SignalsServicer


def handlers(
    signals: SignalsServicer,
    recommend: RecommendServicer,
    consent: ConsentServicer,
    audit: AuditServicer,
    runtime: RuntimeServicer,
    *,
    control: Buckets,
) -> dict[str, Handler]:
    """Return every servicer by the path of its method; ``control`` bounds an app's Register, Restrict and Purge."""
    by_name: dict[str, Handler] = {
        "Signals/Register": _limited(control, signals.register),
        "Signals/Push": signals.push,
        "Signals/Restrict": _limited(control, signals.restrict),
        "Signals/Purge": _limited(control, signals.purge),
        "Recommend/Get": recommend.get,
        "Recommend/Feedback": recommend.feedback,
        "Consent/List": consent.list,
        "Consent/Set": consent.set,
        "Consent/SetOwner": consent.set_owner,
        "Consent/Watch": consent.watch,
        "Audit/Runs": audit.runs,
        "Audit/Budget": audit.budget,
        "Audit/Egress": audit.egress,
        "Audit/Receipts": audit.receipts,
        "Runtime/Status": runtime.status,
        "Runtime/Conditions": runtime.set_conditions,
        "Runtime/Pause": runtime.pause,
        "Runtime/TrainNow": runtime.train_now,
        "Runtime/Install": runtime.install,
        "Runtime/UpdateStatus": runtime.update_status,
    }
    return {f"/{PACKAGE}.{name}": handler for name, handler in by_name.items()}


def _limited(buckets: Buckets, handler: Handler) -> Handler:
    """Return the servicer behind an app's bucket: what changes streams makes work and news for everybody else."""

    def call(caller: Caller, request: Any) -> Message:
        buckets.take(caller.app)
        return handler(caller, request)

    return call
