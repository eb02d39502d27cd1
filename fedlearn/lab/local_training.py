"""How a phone trains, by its config."""

from __future__ import annotations

from fedlearn.lab.config import ClientConfig
from fedlearn.terms import ExamplePrivacy, TrainingTerms


def training_terms(client: ClientConfig) -> TrainingTerms:
    """Return how a phone trains."""
    example = client.example_privacy
    return TrainingTerms(
        client.epochs,
        client.batch_size,
        client.learning_rate,
        client.shuffle,
        client.candidates,
        None if example is None else ExamplePrivacy(example.noise_multiplier, example.clip),
    )
