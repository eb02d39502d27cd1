"""The device runtime told as a story on one machine: ``fedlearn demo-device``.

A real daemon with its encrypted store, sandboxed worker, guard and ledger; a gateway in memory in place of a network;
apps, settings screen and system as callers of their own, each on a socket of its own because one machine has one uid.
"""
