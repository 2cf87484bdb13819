"""Options that several commands have: where metrics are served, and how log lines look."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

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
