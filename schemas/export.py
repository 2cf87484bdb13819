"""Writes the contract as JSON Schema, for other languages and for editors: `python -m schemas.export`.

The files in `schemas/json/` are checked in; a test compares them with what this module writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from schemas.batch import MAX_NAME_CHARS
from schemas.completion import Completion
from schemas.manifest import Img2Img, Inpainting, Manifest, Text2Img
from schemas.result import Progress, Result

FOLDER = Path(__file__).with_name("json")
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BODIES: dict[str, type[BaseModel]] = {"text2img": Text2Img, "img2img": Img2Img, "inpainting": Inpainting}
_NAME = {
    "description": "Names the row within its batch: any text, which its results repeat.",
    "maxLength": MAX_NAME_CHARS,
    "minLength": 1,
    "type": "string",
}


def documents() -> dict[str, dict[str, Any]]:
    """Every schema, by the name of its file without `.schema.json`."""
    schemas = {name: body.model_json_schema(mode="validation") for name, body in _BODIES.items()}
    schemas["manifest"] = TypeAdapter(Manifest).json_schema(mode="validation")
    schemas["manifest"]["title"] = "Manifest"
    schemas["batch-line"] = _batch_line()
    schemas["result"] = Result.model_json_schema(mode="serialization")
    schemas["progress"] = Progress.model_json_schema(mode="serialization")
    schemas["completion"] = Completion.model_json_schema(mode="serialization")
    return {name: {"$schema": _DIALECT, **schema} for name, schema in schemas.items()}


def text(document: dict[str, Any]) -> str:
    """A schema as it is written to its file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def write() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, document in documents().items():
        (FOLDER / f"{name}.schema.json").write_text(text(document), encoding="utf-8")


def _batch_line() -> dict[str, Any]:
    """A line of a .jsonl file: any manifest, optionally with a name."""
    line = TypeAdapter(Manifest).json_schema(mode="validation")
    for body in ("Text2Img", "Img2Img", "Inpainting"):
        properties = line["$defs"][body]["properties"]
        properties["custom_id"] = _NAME
        properties["id"] = _NAME | {"description": "The same as `custom_id`."}
    return {"title": "BatchLine", "description": "One line of a .jsonl file.", **line}


if __name__ == "__main__":
    write()
