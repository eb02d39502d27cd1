"""``runtime=fleet``: phones behind gateways. What they were approved for decides; the config must say the same."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from fedlearn import __version__
from fedlearn.clock import system_clock
from fedlearn.device.bundle import WEIGHTS, Bundle, open_bundle
from fedlearn.device.weights import offsets
from fedlearn.errors import BundleRefused, OutOfRange
from fedlearn.lab.config import ExperimentConfig, FleetConfig
from fedlearn.lab.local_training import training_terms
from fedlearn.lab.policy_check import mechanism_terms
from fedlearn.ledger.signing import read_public
from fedlearn.models.base import Parameters
from fedlearn.policy.document import PopulationKind
from fedlearn.privacy.plan import PrivacyPlan
from fedlearn_server.gateway.terms import FleetTerms


def fleet_bundle(fleet: FleetConfig) -> Bundle:
    """Return the bundle that the phones have, checked as a phone checks it.

    Raises:
        OutOfRange: it cannot be read.
        BundleRefused, SignatureRefused, PolicyInvalid: a phone would refuse it.
    """
    try:
        data = Path(fleet.bundle).read_bytes()
    except OSError as error:
        raise OutOfRange(
            f"runtime.fleet.bundle={fleet.bundle}: cannot be read ({error.strerror}); `fedlearn export` makes one."
        ) from error
    return _opened(data, read_public(fleet.root_key))


def fleet_initial(bundle: Bundle) -> Parameters:
    """Return the weights that training begins with: those that were approved.

    Raises:
        BundleRefused: some of its parameters never leave a phone; no server can evaluate such a model.
    """
    plan = bundle.plan
    if plan.private:
        names = ", ".join(spec.name for spec in plan.private)
        raise BundleRefused(f"plan.parameters: {names} are private to each phone; the lab cannot evaluate the model.")
    data, places = bundle.files[WEIGHTS], offsets(plan.shared)
    return {
        spec.name: np.frombuffer(data[slice(*places[spec.name])], dtype="<f4").reshape(spec.shape).astype(np.float32)
        for spec in plan.shared
    }


def fleet_terms(config: ExperimentConfig, run_id: str, plan: PrivacyPlan | None) -> FleetTerms:
    """Return what gateways are told of a run.

    Raises:
        OutOfRange: config and approved plan differ; names every field.
    """
    fleet = config.runtime.fleet
    if fleet is None or plan is None:
        raise OutOfRange("privacy.mode=none: phones train under noise only; choose e.g. privacy=blt.")
    bundle = fleet_bundle(fleet)
    require_same(config, plan, bundle)
    enrolled = bundle.verified.policy.population.kind is PopulationKind.ENROLLED
    if enrolled and config.ledger.where is None:
        raise OutOfRange(
            "ledger.where=null: an enrolled population has one ledger for all its runs, whose checkpoints phones keep; "
            "make it with `fedlearn ledger create` and name it."
        )
    target = max(fleet.round_size, round(plan.cohort))
    return FleetTerms(
        run_id=run_id,
        population=bundle.plan.population,
        purpose=bundle.plan.purpose,
        recipient=bundle.plan.recipient,
        plan_digest=bundle.plan_digest,
        bundle_digest=bundle.digest,
        mechanism=bundle.plan.mechanism,
        round_size=fleet.round_size,
        target=target,
        over_selection=fleet.over_selection,
        attempt_s=fleet.attempt_s,
        task_s=fleet.task_s,
    )


def require_same(config: ExperimentConfig, plan: PrivacyPlan, bundle: Bundle) -> None:
    """Refuse a config whose phones were approved for something else.

    Raises:
        OutOfRange: names every setting that differs, with both values.
    """
    approved, asked = bundle.plan.mechanism, mechanism_terms(plan)
    found = [
        f"{name}: {getattr(asked, name)!r} here, {getattr(approved, name)!r} approved"
        for name in asked.__dataclass_fields__
        if getattr(asked, name) != getattr(approved, name)
    ]
    spec, terms = bundle.plan.training, training_terms(config.client)
    found += [
        f"client.{name}: {getattr(terms, name)!r} here, {getattr(spec, name)!r} approved"
        for name in ("epochs", "batch_size", "candidates", "learning_rate", "shuffle", "example_privacy")
        if getattr(terms, name) != getattr(spec, name)
    ]
    if config.model.name != bundle.plan.model:
        found.append(f"model.name: {config.model.name} here, {bundle.plan.model} approved")
    least = bundle.verified.policy.mechanism.min_round_size
    fleet = config.runtime.fleet
    if fleet is not None and fleet.round_size < least:
        found.append(f"runtime.fleet.round_size: {fleet.round_size} here, at least {least} by the policy")
    if found:
        raise OutOfRange(f"the approved bundle {bundle.plan.name} is for another training: {'; '.join(found)}.")


@lru_cache(maxsize=4)
def _opened(data: bytes, root_key: str) -> Bundle:
    return open_bundle(data, root_keys=[root_key], now=system_clock(), runtime=__version__)
