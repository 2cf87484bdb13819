"""diffusers and transformers: imported late, because that takes seconds, and kept quiet."""

from __future__ import annotations

import importlib
from typing import Any


def library(name: str) -> Any:
    """A library's module; as Any, because it is not typed."""
    return importlib.import_module(name)


def quiet() -> None:
    """Let the libraries log errors only: what matters to a request becomes a warning in its result."""
    for name in ("diffusers", "transformers"):
        logging = library(f"{name}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
