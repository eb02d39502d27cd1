"""User-level differential privacy: events, accounting, calibration, secret sampling, the grid, and mechanisms.

Import from the modules. Nothing is handed on here: phones use the grid, and must not need what accounting needs.
"""
