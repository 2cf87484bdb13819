"""Reads the JSON files of a model's folder, which strangers write: bounded, and refused in a sentence."""

from __future__ import annotations

import json
import stat
from typing import TYPE_CHECKING, Any

from schemas.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

_LARGEST = 64 << 20  # bytes; the largest tokenizer is about 20 MB


def read_json(path: Path) -> Any:
    """The document in a file.

    Raises:
        Rejected: `unsupported`; it is missing, too large, not a plain file, or not JSON.
    """
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # to open a pipe would wait for its writer
            raise _refusal(path, "it is not a plain file")
        if facts.st_size > _LARGEST:
            raise _refusal(path, f"it has more than {_LARGEST >> 20} MiB")
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise _refusal(path, "it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise _refusal(path, "it is not UTF-8") from error
    except json.JSONDecodeError as error:
        why = "save it as UTF-8 without a byte order mark" if "BOM" in error.msg else str(error)
        raise _refusal(path, why) from error
    except (OSError, ValueError) as error:
        raise _refusal(path, str(error)) from error


def read_object(path: Path) -> dict[str, Any]:
    """The same for a file that must hold an object."""
    document = read_json(path)
    if not isinstance(document, dict):
        raise _refusal(path, "it holds no object {...}")
    return document


def _refusal(path: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"{path} cannot be read as JSON: {why}", field="model")
