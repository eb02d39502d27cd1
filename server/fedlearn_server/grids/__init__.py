"""Runtimes: where a round's nodes live. Each runs the same ServerApp and ClientApp objects."""
