"""The conformance kit: what an implementation of the device contract must compute, and how it must behave.

It speaks to any implementation over gRPC, as its callers would, and brings all it needs: fixtures that were exported
once, and keys of its own that it signs fresh documents with. It needs no torch. docs/conformance.md says how to use it.
"""
