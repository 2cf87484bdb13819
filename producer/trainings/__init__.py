"""Trainings, as clients see them: find one, drop one, read what it has drawn, save its report.

A training is a request in a part of the store of its own, see `infra.claims.trainings`. So `AsyncClient`, the
states and the cancellation of requests work on it as they are; here is what only trainings have.
"""
