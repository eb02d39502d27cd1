"""Federated learning for cross-app signals: features and training on the phone, private sums only."""

__version__ = "0.1.0"
