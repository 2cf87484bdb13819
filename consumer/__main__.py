"""`python -m consumer`: the worker; also for `accelerate launch -m consumer`, one process a device."""

from __future__ import annotations

from consumer.cli import app

if __name__ == "__main__":
    app()
