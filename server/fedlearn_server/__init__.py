"""The server side: one Flower ServerApp over an abstract Grid, and the node-side adapter."""

import os

__version__ = "0.1.0"

# Flower reports usage to its vendor unless told not to before it is first imported.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
