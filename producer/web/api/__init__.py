"""Dreamdrop's own endpoints: synchronous drawing, jobs, batches, health and metrics.

A manifest comes in through `generate` and `jobs`, a JSON Lines file through `batches`, and the same JSON models
(`producer.web.responses`) go out. It imports the shared modules of `producer.web`, not the other three packages.
"""
