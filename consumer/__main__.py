"""`python -m consumer` runs a worker; so does `accelerate launch -m consumer`, one process for each device."""

from __future__ import annotations

import sys
from pathlib import Path

# `python -m` searches the working directory first, where clients may write (see infra/child_process.py).
# This comes before every other import. A checkout that is not installed has its packages there: it stays.
if not sys.flags.safe_path and Path.cwd() != Path(__file__).parents[1] and sys.path[:1] == [str(Path.cwd())]:
    del sys.path[0]

from consumer.cli import app

if __name__ == "__main__":
    app()
