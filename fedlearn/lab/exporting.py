"""From a finished run directory to what the exporter needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedlearn.device.mechanism import MechanismTerms
from fedlearn.errors import OutOfRange, ResumeRefused, UnknownSetting
from fedlearn.export.plan import Trained
from fedlearn.features import FEATURES, feature_mask
from fedlearn.lab import rundir
from fedlearn.lab.config import ExperimentConfig
from fedlearn.lab.local_training import training_terms
from fedlearn.lab.registry import build_dataset, build_model
from fedlearn.policy.floors import SAMPLED
from fedlearn.privacy.events import MatrixGaussian, event_from_json
from fedlearn.privacy.grid import grid_step
from fedlearn.report.summary import SUMMARY_FILE, Summary, read_summary
from fedlearn_server.checkpoint import MODEL_FILE, load_model


def trained_run(directory: Path, training: str | None = None, name: str | None = None) -> Trained:
    """Return a run's model with everything a phone must know to go on training it.

    Args:
        directory: a finished run.
        training: ``foldF-seedS``, where the run has several.
        name: of the plan; by default the run's.

    Raises:
        ResumeRefused: no run, an unfinished one, or one whose config or data changed since.
        DataMissing, DataCorrupt: no readable summary.
        OutOfRange: a run that promises nothing, whose privacy rests on sampling, or whose clip moves.
        UnknownSetting: it has several trainings, and ``training`` names none of them.
    """
    config = rundir.reopen(directory)
    summary = read_summary(directory / SUMMARY_FILE)
    mechanism = _mechanism(config, summary)  # what cannot be exported is refused before any data is read
    parameters = load_model(_training_directory(directory, training))
    dataset = build_dataset(config.data)
    if dataset.digest != rundir.read_identity(directory).data_digest:
        raise ResumeRefused(f"{directory}: the data changed since the run; restore it, or train anew.")
    mask = feature_mask(config.features.sources)
    features = tuple(FEATURES[i].name for i in np.flatnonzero(mask))
    return Trained(
        name=name or config.run.name,
        model=build_model(config.model, len(features)),
        parameters=parameters,
        examples="match",  # the lab trains on match features, whatever the model is
        example_options=(),
        features=features,
        terms=training_terms(config.client),
        mechanism=mechanism,
        catalogue=dataset.catalogue,
    )


def _training_directory(directory: Path, training: str | None) -> Path:
    """Return where the model lies: the run itself, or one of its trainings."""
    if (directory / MODEL_FILE).exists() and training is None:
        return directory
    found = {path.parent.name: path.parent for path in sorted(directory.glob(f"trainings/*/{MODEL_FILE}"))}
    if training is None and len(found) == 1:
        return next(iter(found.values()))
    if training not in found:
        known = ", ".join(found) or "one training, without a name"
        raise UnknownSetting(f"--training {training}: {directory} has {known}; name one of them.")
    return found[training]


def _mechanism(config: ExperimentConfig, summary: Summary) -> MechanismTerms:
    """What the run's ledger charged is what its phones will be asked to pay."""
    privacy = summary.privacy
    events = {spend.event for spend in privacy.spend if spend is not None} if config.privacy.is_private else set()
    if not events:
        raise OutOfRange("privacy.mode=none: phones train under noise only; train with e.g. privacy=blt.")
    if config.privacy.adaptive_clip is not None:
        raise OutOfRange("privacy.adaptive_clip: a plan pins one clip norm; train with privacy.adaptive_clip=null.")
    parsed = [event_from_json(text) for text in sorted(events)]
    matrix = [event for event in parsed if isinstance(event, MatrixGaussian)]
    if len(matrix) != 1 or len(parsed) != 1:
        raise OutOfRange(
            f"privacy.mode={config.privacy.mode}: its epsilon rests on secret random sampling, which phones that check "
            "in by themselves cannot promise; train with a mechanism that bounds participation, e.g. privacy=blt."
        )
    (event,) = matrix
    return MechanismTerms(
        kind="independent" if config.privacy.mode == SAMPLED else config.privacy.mode,
        factorization=event.factorization,
        noise_multiplier=event.noise_multiplier,
        l2_clip_norm=config.privacy.clip,
        grid_step=grid_step(config.privacy.clip),
        steps=event.steps,
        min_separation=event.min_separation,
        max_participations=event.max_participations,
    )
