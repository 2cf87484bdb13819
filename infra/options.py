"""Options that several commands have, with the variables that set them."""

from __future__ import annotations

import logging
from typing import Annotated, Literal

import typer


def _log_level(text: str) -> str:
    if text.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"{text!r} is none of debug, info and warning")
    return text


DEFAULT_STORE = "./dreamdrop-data"
StoreUrl = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        envvar="DREAMDROP_STORE",
        help="A directory, or s3://bucket[/prefix] with the credentials that AWS tools use.",
    ),
]
ModelCacheGb = Annotated[
    float,
    typer.Option(
        envvar="DREAMDROP_MODEL_CACHE_GB",
        min=0,
        help="GiB on this machine for published models; DREAMDROP_MODEL_CACHE names the folder.",
    ),
]
Lease = Annotated[
    float,
    typer.Option(
        envvar="DREAMDROP_LEASE",
        min=0.5,
        help="Seconds without a heartbeat after which a worker or trainer is presumed dead.",
    ),
]
MaxAttempts = Annotated[
    int,
    typer.Option(
        envvar="DREAMDROP_MAX_ATTEMPTS",
        min=1,
        help="Attempts after which a request or training ends as failed.",
    ),
]
Once = Annotated[bool, typer.Option(help="Stop when there is nothing left to do.")]
LogLevel = Annotated[
    str, typer.Option(envvar="DREAMDROP_LOG_LEVEL", callback=_log_level, help="debug, info or warning.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        envvar="DREAMDROP_METRICS_PORT",
        min=0,
        max=65535,
        help="Port for /metrics, /healthz and /readyz; 0 for any free one; without it there is none.",
    ),
]
MetricsHost = Annotated[
    str,
    typer.Option(
        envvar="DREAMDROP_METRICS_HOST",
        help="Address for that port; 0.0.0.0 in a container. It asks for no key.",
    ),
]
LogFormat = Annotated[
    Literal["text", "json"],
    typer.Option(envvar="DREAMDROP_LOG_FORMAT", help="json: one JSON object a line, for log collectors."),
]
