"""The sandboxed worker: the only process on a phone that reads text, examples and weights.

``python -I -m fedlearn_client.worker`` runs it; ``fedlearn_client.workers`` starts it and talks to it. The package
itself imports nothing: the daemon takes ``process``, ``frames`` and ``layers`` from it and must stay free of numpy.
"""
