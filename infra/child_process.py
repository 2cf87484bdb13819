"""How this project starts Python programs of its own.

A plain `python -m` looks for modules in the working directory first, and clients may write there: with
`--store .`, a dropped `hashlib.py` would run with the worker's credentials.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

#: Threads that wait for one another sleep instead of spinning: where other programs use the cores, spinning
#: makes a small model many times slower. libgomp's documentation has both names.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of an installed package, never one of the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment for `python_command`: the given one, whose own settings win over our defaults."""
    return {**_WAITING, **environment, "PYTHONSAFEPATH": "1"}
