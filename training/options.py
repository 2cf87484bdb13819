"""`dreamdrop train dreambooth`: every field of the training manifest is an option."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from infra.options import DEFAULT_STORE, ModelCacheGb, StoreUrl
from schemas.errors import Rejected
from schemas.training import Training
from training.tracker_options import LoggingDir, ReportTo, logs_of

_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", list[str]: "TEXT"}
_LEFT_OUT = {"pictures", "archive", "method", "resume_from"}  # given in other ways
_OWN: dict[str, tuple[Any, Any]] = {
    "instance_images": (
        Annotated[
            Path | None,
            typer.Option(
                metavar="PATH", help="A folder of pictures, or a .zip of one.", rich_help_panel="Pictures"
            ),
        ],
        None,
    ),
    "lora": (
        Annotated[
            bool | None,
            typer.Option(
                "--lora/--full", help="A LoRA beside the base, or all weights [lora].", show_default=False
            ),
        ],
        None,
    ),
    "options": (
        Annotated[
            Path | None, typer.Option(metavar="FILE", help="Fields as JSON; options on the command line win.")
        ],
        None,
    ),
    "store": (StoreUrl, DEFAULT_STORE),
    "models": (
        Annotated[
            list[str] | None,
            typer.Option(envvar="DREAMDROP_MODELS", help="name=folder of a base model; repeatable."),
        ],
        None,
    ),
    "model_cache_gb": (ModelCacheGb, 50.0),
    "report_to": (ReportTo, None),
    "logging_dir": (LoggingDir, None),
    "processes": (
        Annotated[int, typer.Option(min=1, help="Processes that train together, one a device.")],
        1,
    ),
    "dry_run": (
        Annotated[bool, typer.Option("--dry-run", help="Print the plan, and stop; nothing is stored.")],
        False,
    ),
    "detach": (
        Annotated[
            bool, typer.Option("--detach", help="Drop the training into the store for a trainer, and leave.")
        ],
        False,
    ),
}


def _flag(name: str) -> str:
    """The flag of a field; one that may be given several times is called by one of its values."""
    alias = Training.model_fields[name].alias or name
    return "--" + alias.removesuffix("s" if name == "class_prompts" else "").replace("_", "-")


def _option(name: str, field: FieldInfo) -> tuple[Any, Any]:
    """The option of a field: not given means that the manifest leaves it open."""
    flag, kind = _flag(name), _plain(field.annotation)
    flags = [f"{flag}/--no-{flag[2:]}"] if kind is bool else [flag]
    text = re.sub(
        r"`(\w+)`", lambda m: _flag(m[1]) if m[1] in Training.model_fields else m[1], field.description or ""
    )
    text = text.rstrip(".").replace("null:", "not given:")
    if get_origin(kind) is list:
        text = f"{text}; repeatable"
    if field.default not in (None, ()) and not field.is_required():
        text = f"{text} [{_shown(field.default)}]".strip()
    metavar = _METAVARS.get(kind)
    return Annotated[kind | None, typer.Option(*flags, help=text, metavar=metavar, show_default=False)], None


def _shown(default: Any) -> str:
    return (
        {True: "yes", False: "no"}.get(default, str(default)) if isinstance(default, bool) else str(default)
    )


def _plain(annotation: Any) -> Any:
    """A field's type as typer knows it: without None, and lists for tuples."""
    if get_origin(annotation) in (Union, types.UnionType):
        (annotation,) = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is tuple:
        return list[get_args(annotation)[0]]  # type: ignore[misc]
    if get_origin(annotation) is Literal:
        return annotation
    return annotation


def _add_options(command: Any) -> None:
    """Give a command a parameter for each field, for typer to read."""
    hints = typing.get_type_hints(Training, include_extras=True)
    chosen = {
        name: _option(name, field)
        for name, field in Training.model_fields.items()
        if name not in _LEFT_OUT and hints[name] is not None
    }
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, (kind, default) in {**chosen, **_OWN}.items()
    ]

    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def dreambooth_command(**given: Any) -> None:
    """Teach a model a new concept from a few pictures (DreamBooth).

    The same command again goes on where the last one was stopped. The new model can be named in the next
    request: "model": "my-dog".
    """
    from training.lease.base_models import BaseModels
    from training.lease.trainer import TrainerSettings
    from training.run_here import run_here

    own = {name: given.pop(name) for name in _OWN}
    for flag, is_given in (("--processes", own["processes"] > 1), ("--report-to", own["report_to"])):
        if own["detach"] and is_given:
            raise typer.BadParameter(
                f"belongs to the trainer that will run it (dreamdrop trainer {flag}); leave it out with --detach",
                param_hint=flag,
            )
    document = _from_file(own["options"])
    in_file = set(document)
    for name, value in given.items():
        if value is not None:
            document[Training.model_fields[name].alias or name] = value
    if own["lora"] is not None:
        document["method"] = "lora" if own["lora"] else "full"
    work = run_here(
        document,
        own["instance_images"],
        store=own["store"],
        bases=BaseModels.of(own["models"] or (), int(own["model_cache_gb"] * 2**30)),
        settings=TrainerSettings(
            processes=own["processes"], logs=logs_of(own["report_to"], own["logging_dir"])
        ),
        dry_run=own["dry_run"],
        detach=own["detach"],
    )
    try:
        code = asyncio.run(work)
    except Rejected as error:
        raise _called_by_flag(error, in_file) from error
    raise typer.Exit(code)


def _called_by_flag(error: Rejected, in_file: Collection[str]) -> Rejected:
    """The same refusal, with its field called by its flag, unless a file has given the field."""
    for name, field in Training.model_fields.items():
        called = field.alias or name
        if name not in _LEFT_OUT and error.field == called and called not in in_file:
            text = re.sub(rf"^{re.escape(called)}\b", _flag(name), error.message)
            return Rejected(error.code, text, field=called)
    return error


_add_options(dreambooth_command)
app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(dreambooth_command)


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise Rejected("invalid_json", f"--options {path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Rejected("invalid_json", f"--options {path}: should be a JSON object with a training's fields")
    return document
