"""Writes the pages of `docs/` that follow from the code: the contract's fields, and every setting.

python -m tests.docs.pages

A test compares the files with what this module makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import typer
from typer.core import TyperArgument, TyperOption

from infra.limits_env import _VARIABLES
from schemas.export import documents
from schemas.limits import Limits
from schemas.training import Training, TrainingProgress
from tests.deploy.dockerfile import ROOT
from tests.deploy.env_example import ALONE, commands, default

#: The heading of each part of the contract, its schema, and the sentences below the heading.
PARTS = (
    (
        "A batch line",
        "batch-line",
        "A line of a `.jsonl` file is a request with a name. Only what it has besides is shown.",
    ),
    ("A result", "result", "`results/<id>/result.json`: how a request ended."),
    ("The status", "progress", "`status/<id>.json` while a request is drawn."),
    ("An announcement", "completion", "What `--announce` sends: [completion.md](completion.md)."),
)
MEANINGS = {
    "max_body_bytes": "bytes of one request, its base64 pictures included",
    "max_batch_bytes": "bytes of one `.jsonl` file",
    "max_batch_rows": "rows of a batch",
    "max_prompt_chars": "characters of `prompt`, and of `negative_prompt`",
    "max_side": "`width`, and `height`",
    "max_pixels": "`width` x `height`",
    "max_native_areas": "the same, as a multiple of the model's native size; 1024 x 1024 is always allowed",
    "max_input_pixels": "pixels of each picture that is sent",
    "max_steps": "`steps`",
    "max_images": "`number_of_images`",
    "max_cfg_scale": "`cfg_scale`",
    "max_metadata_bytes": "bytes of `metadata` as JSON",
    "max_loras": "`loras`",
    "max_controlnets": "`controlnet`",
}
BODIES = ("Text2Img", "Img2Img", "Inpainting")
CONTRACT = """\
# The contract, field by field

This page lists every field of what clients write and read. It is made from the code
(`python -m tests.docs.pages`); the same as JSON Schema is in `schemas/json/`. An unknown field is an error in what
clients write. In what they read, ignore fields that you do not know: later versions may add some.

In the column *default*, **required** is a field that must be given. *null* is the same as leaving the field out.

## A request

`requests/<id>.json`, a message of a queue, or the body of `POST /generate/`. With `mask_image` it is inpainting, else
with `image` img2img, else text2img; `task` says it, too.
"""
SETTINGS = """\
# Every setting

This page lists the options of every command, with the environment variable that sets each. It is made from the code
(`python -m tests.docs.pages`). An option on the command line wins over its variable. The AWS variables and profiles
that boto3 knows hold as well (`AWS_ENDPOINT_URL_S3`, `AWS_REGION`, ...). `.env.example` has the same for containers.

## From the environment only

Secrets, which other users could see on a command line; folders; and the limits that workers, clients and web servers
share.

| variable | default | what it is |
|---|---|---|
"""


# The contract ----------------------------------------------------------------------------------------


def contract() -> str:
    """The page of the wire contract."""
    lines = [CONTRACT]
    manifest = documents()["manifest"]
    bodies = {name: manifest["$defs"][name] for name in BODIES}
    text2img = bodies["Text2Img"]
    shared = set.intersection(*(set(body["properties"]) for body in bodies.values())) - {"task"}
    lines += [*_table(text2img, manifest["$defs"], shared), ""]
    for name, body in bodies.items():
        lines += [f"Only in **{name.lower()}**. {body['description']}", ""]
        lines += [*_table(body, manifest["$defs"], set(body["properties"]) - shared), ""]
    lines += [*_limits(), ""]
    for title, name, words in PARTS:
        document = documents()[name]
        lines += [f"## {title}", "", words, ""]
        if name == "batch-line":
            lines += _table(document["$defs"]["Text2Img"], document["$defs"], {"custom_id", "id"})
        else:
            lines += _table(document, document.get("$defs", {}))
        lines.append("")
    lines += [
        "## A training",
        "",
        "`trainings/<id>.json`, or `POST /trainings`: [training.md](training.md).",
        "",
    ]
    training = Training.model_json_schema(by_alias=True)
    lines += [*_table(training, training["$defs"]), ""]
    progress = TrainingProgress.model_json_schema(mode="serialization")
    lines += [
        "`training-status/<id>.json` while it runs:",
        "",
        *_table(progress, progress.get("$defs", {})),
        "",
    ]
    return "\n".join(lines)


def _limits() -> list[str]:
    """The bounds of an operator, which are not in the schemas."""
    limits = Limits()
    by_field = {field: (name, unit) for name, (field, unit) in _VARIABLES.items()}
    lines = [
        "Besides, a request must be within the operator's limits:",
        "",
        "| at most | of | set by |",
        "|---|---|---|",
    ]
    for field in Limits.__dataclass_fields__:
        variable, unit = by_field.get(field, ("", 1))
        note = " (MiB)" if unit > 1 else ""
        set_by = f"`{variable}`{note}" if variable else ""
        lines.append(f"| {int(getattr(limits, field)):,} | {MEANINGS[field]} | {set_by} |")
    return lines


def _table(schema: dict[str, Any], defs: dict[str, Any], only: set[str] | None = None) -> list[str]:
    lines = ["| field | type | default | limits | meaning |", "|---|---|---|---|---|"]
    for name, field, needed in _fields(schema, defs, "", only):
        shown = "**required**" if needed else _default(field)
        cells = (f"`{name}`", _type(field, defs), shown, _bounds(field), _cell(field.get("description", "")))
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _fields(
    schema: dict[str, Any], defs: dict[str, Any], prefix: str, only: set[str] | None = None
) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(dotted name, its schema, whether it is required) of each field, those of objects below their own."""
    for name, field in schema["properties"].items():
        if only is not None and name not in only:
            continue
        inner = _object(field, defs)
        if prefix == "data." and inner:  # of an announcement
            yield prefix + name, field | {"description": f"As in a result. {inner['description']}"}, False
            continue
        words = {"description": inner["description"]} if inner and "description" not in field else {}
        yield prefix + name, field | words, name in schema.get("required", ())
        if inner:
            many = "[]" if "array" in _kinds(field) else ""
            yield from _fields(inner, defs, f"{prefix}{name}{many}.")


def _object(field: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the objects that a field holds; None if it holds none with fields of their own."""
    for each in (field, *field.get("anyOf", ()), field.get("items", {})):
        if "$ref" in each:
            found: dict[str, Any] = defs[each["$ref"].rpartition("/")[2]]
            return found if "properties" in found else None
    return None


def _kinds(field: dict[str, Any]) -> set[str]:
    return {str(each.get("type")) for each in (field, *field.get("anyOf", ()))}


def _type(field: dict[str, Any], defs: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(_type(each, defs) for each in field["anyOf"])
    if "$ref" in field:
        found = defs[field["$ref"].rpartition("/")[2]]
        return "object" if "properties" in found else _type(found, defs)
    if "const" in field:
        return _value(field["const"])
    if "enum" in field:
        return ", ".join(map(_value, field["enum"]))
    if field.get("type") == "array":
        items = field.get("items") or {}
        return f"list of {'objects' if '$ref' in items else _type(items, defs) + ('' if 'enum' in items else 's')}"
    names = {
        "string": "text",
        "integer": "whole number",
        "boolean": "true or false",
        "date-time": "date and time",
    }
    kind = field.get("format") if field.get("format") == "date-time" else field.get("type", "any")
    return names.get(str(kind), str(kind))


def _default(field: dict[str, Any]) -> str:
    """A field's default; of an object its fields say theirs."""
    if "default" not in field:
        return "the model's" if "Default: the model's" in field.get("description", "") else ""
    return _value(field["default"]) if not isinstance(field["default"], dict) else ""


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, float) and value == int(value):
        value = int(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text}`" if text else "empty"


def _bounds(field: dict[str, Any]) -> str:
    words = {
        "minimum": "{:,} or more", "exclusiveMinimum": "more than {:,}", "maximum": "{:,} or less",
        "exclusiveMaximum": "less than {:,}", "multipleOf": "multiple of {:,}", "minLength": "",
        "maxLength": "{:,} characters or less", "maxItems": "{:,} or fewer", "minItems": "{:,} or more",
    }  # fmt: skip
    told = [field, *field.get("anyOf", ())]
    found = {key: each[key] for key in words for each in told if key in each}
    found = {key: int(value) if value == int(value) else value for key, value in found.items()}
    if "minimum" in found and "maximum" in found:
        low, high = found.pop("minimum"), found.pop("maximum")
        high_text = "2^63 - 1" if high == 2**63 - 1 else f"{high:,}"
        return ", ".join(
            [f"{low:,} to {high_text}", *(words[k].format(v) for k, v in found.items() if words[k])]
        )
    parts = ["not empty"] if found.get("minLength") == 1 and "string" in _kinds(field) else []
    return ", ".join(parts + [words[key].format(value) for key, value in found.items() if words[key]])


# The settings ----------------------------------------------------------------------------------------


def settings() -> str:
    """The page of all options and variables."""
    lines = [SETTINGS.rstrip()]
    limits = Limits()
    known = {
        option.envvar
        for _, command in commands()
        for option in command.params
        if isinstance(option, TyperOption)
    }
    rows = {name: ("", words) for name, words in ALONE.items() if name not in known}
    for name, (field, unit) in _VARIABLES.items():
        rows.setdefault(
            name,
            (
                f"`{getattr(limits, field) // unit:g}`",
                f"At most, of {MEANINGS[field]}{' (MiB)' if unit > 1 else ''}.",
            ),
        )
    lines += [f"| `{name}` | {value} | {_cell(words)} |" for name, (value, words) in sorted(rows.items())]
    for path, command in commands():
        options = [param for param in command.params if isinstance(param, TyperOption) and not param.hidden]
        if not path or not (options or command.params):
            continue
        usage = [
            f"`dreamdrop {path}",
            *(_argument(p) for p in command.params if isinstance(p, TyperArgument)),
        ]
        lines += ["", f"## dreamdrop {path}", ""]
        lines += [f"{' '.join(usage)}`", ""] if len(usage) > 1 else []
        lines += [_first(command.help or "")]
        if options:
            lines += ["", "| option | variable | default | what it does |", "|---|---|---|---|"]
            lines += [_row(option) for option in options]
    return "\n".join(lines) + "\n"


def _argument(param: TyperArgument) -> str:
    name = param.metavar or str(param.name).upper()
    name += "..." if param.nargs != 1 and not name.endswith("...") else ""
    return name if param.required or name.startswith("[") else f"[{name}]"


def _row(option: TyperOption) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts) if name.startswith("-"))
    annotation = option.type_descriptor.annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    kind = f": {', '.join(f'`{choice}`' for choice in choices)}" if choices else ""
    value = "" if option.is_flag and not option.default else default(option)
    shown = "**required**" if option.required else f"`{value}`" if value else ""
    variable = f"`{option.envvar}`" if option.envvar else ""
    return f"| {names}{kind} | {variable} | {shown} | {_cell(option.help or '')} |"


def _first(text: str) -> str:
    """The first paragraph, on one line."""
    return " ".join(text.replace("\b", "").split("\n\n")[0].split())


def _cell(text: str) -> str:
    """Text that breaks no table and is no HTML."""
    text = " ".join(text.split()).replace("|", "\\|")
    return "".join(part if odd else part.replace("<", "&lt;") for part, odd in _code_spans(text))


def _code_spans(text: str) -> Iterator[tuple[str, bool]]:
    for number, part in enumerate(text.split("`")):
        yield (f"`{part}`", True) if number % 2 else (part, False)


PAGES = {"contract.md": contract, "settings.md": settings}

if __name__ == "__main__":
    for file, make in PAGES.items():
        (ROOT / "docs" / file).write_text(make(), encoding="utf-8")
        typer.echo(f"docs/{file}")
