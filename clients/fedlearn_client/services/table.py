"""Method -> servicer, for ``Door``."""

from __future__ import annotations

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
) -> dict[str, Handler]:
    """Return every servicer by the path of its method."""
    by_name: dict[str, Handler] = {
        "Signals/Register": signals.register,
        "Signals/Push": signals.push,
        "Signals/Restrict": signals.restrict,
        "Signals/Purge": signals.purge,
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
