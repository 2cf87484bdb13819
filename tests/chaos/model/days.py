"""The days that are searched: small ones with every test run, large ones by `make chaos`."""

from __future__ import annotations

from tests.chaos.model.state import Day

SHORT = [
    Day(crashes=1, ghosts=1),
    Day(crashes=1, duplicates=1, ghosts=1, queue=True),
    Day(crashes=1, ghosts=1, outages=1),
    Day(crashes=1, drains=1, cancels=1, retries=True),
    Day(duplicates=1, outages=1, cancels=1, queue=True),
    Day(workers=3, crashes=1),
    Day(images=2, attempts=3, crashes=2),
]

LONG = [
    Day(images=2, crashes=1, duplicates=1, ghosts=1, outages=1),
    Day(images=2, crashes=1, duplicates=1, ghosts=1, outages=1, queue=True),
    Day(crashes=1, duplicates=1, drains=1, cancels=1, retries=True),
    Day(crashes=1, duplicates=1, ghosts=1, drains=1, cancels=1),
    Day(workers=3, images=2, crashes=1, duplicates=1, cancels=1),
    Day(crashes=1, duplicates=1, ghosts=1, outages=1, drains=1, cancels=1),
    Day(crashes=1, duplicates=1, ghosts=1, outages=1, drains=1, cancels=1, queue=True),
]
