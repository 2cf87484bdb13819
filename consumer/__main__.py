"""`python -m consumer` runs a worker; so does `accelerate launch -m consumer`, one process for each device."""

from __future__ import annotations

from consumer.cli import app

if __name__ == "__main__":
    app()
