"""`serve` runs the facade, and `up` runs it with a worker."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from infra.logs import log_lines
from infra.options import LogFormat, MetricsHost, MetricsPort
from producer.commands.local import own_worker
from producer.commands.local.listening import address_of, bind, check_store
from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    WRONG,
    QueueUrl,
    StoreUrl,
    reporting_errors,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import uvicorn
    from fastapi import FastAPI

    from producer.web.settings import FacadeSettings

LOGGERS = ("producer", "infra", "consumer")
GRACE = 10.0  # seconds that open calls have when the server stops
START = 300.0  # seconds without a heartbeat until a line says so: the worker may be loading a model

Host = Annotated[str, typer.Option(envvar="DREAMDROP_HOST", help="The address to listen on.")]
Port = Annotated[
    int,
    typer.Option(envvar="DREAMDROP_PORT", min=0, max=65535, help="The port; 0 for any free one."),
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host", envvar="DREAMDROP_ALLOW_HOSTS", help="A host name that callers may use; * for any."
    ),
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin", envvar="DREAMDROP_ALLOW_ORIGINS", help="A web site whose pages may call it."
    ),
]
Open = Annotated[
    bool,
    typer.Option(
        "--without-keys", envvar="DREAMDROP_WITHOUT_KEYS", help="Let in everybody who can reach the address."
    ),
]
Wait = Annotated[
    float,
    typer.Option(envvar="DREAMDROP_WAIT", min=1, help="The most seconds that a synchronous call may last."),
]
Room = Annotated[
    int, typer.Option(envvar="DREAMDROP_ROOM", min=1, help="Requests that may wait; further callers get 429.")
]

#: What `up` does not know, the worker may; else that says so.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def serve(
    store: StoreUrl = DEFAULT_STORE,
    queue: QueueUrl = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_host: Hosts = None,
    allow_origin: Origins = None,
    without_keys: Open = False,
    wait: Wait = 300.0,
    room: Room = 1000,
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Serve a store over HTTP.

    There are synchronous endpoints, jobs, and a gallery for the browser.
    """
    import uvicorn  # noqa: F401 - before the first line is printed: it may not be installed

    log_lines("warning", *LOGGERS, style=log_format)

    with reporting_errors(as_json=False):
        settings = _settings(
            store, queue, host, allow_host, allow_origin, wait, room, without_keys=without_keys
        )
        asyncio.run(check_store(store))
        sockets = bind(host, port)
        asyncio.run(_serve(settings, host, sockets, (metrics_host, metrics_port)))


def up(
    context: typer.Context,
    store: StoreUrl = DEFAULT_STORE,
    queue: QueueUrl = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allow_host: Hosts = None,
    allow_origin: Origins = None,
    without_keys: Open = False,
    wait: Wait = 300.0,
    room: Room = 1000,
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Start a worker and serve the store over HTTP.

    Ctrl-C stops both. Options of `dreamdrop worker`, such as --model and --exact, are passed on to it; it reads
    its environment variables, too. With --metrics-port the worker serves its own metrics at the next port.
    """
    import uvicorn  # noqa: F401 - before the first line is printed: it may not be installed

    log_lines("warning", *LOGGERS, style=log_format)

    draws = "null" not in (os.environ.get("DREAMDROP_RENDERER"), *context.args)
    if draws and find_spec("torch") is None:
        raise ModuleNotFoundError("torch", name="torch")
    with reporting_errors(as_json=False):
        settings = _settings(
            store, queue, host, allow_host, allow_origin, wait, room, without_keys=without_keys
        )
        asyncio.run(check_store(store))
        sockets = bind(host, port)
    worker = own_worker.start(context.args, store, queue or (), (metrics_host, metrics_port), log_format)
    try:
        worker_ended = asyncio.run(_serve(settings, host, sockets, (metrics_host, metrics_port), worker))
    finally:
        own_worker.drain(worker)  # after the facade: its open calls wait for pictures that this worker draws
    if worker_ended:
        say(f"dreamdrop: the worker ended with exit code {worker.returncode}; its last lines say why")
        raise typer.Exit(FAILED)


def _settings(
    store: str,
    queues: list[str] | None,
    host: str,
    hosts: list[str] | None,
    origins: list[str] | None,
    wait: float,
    room: int,
    *,
    without_keys: bool,
) -> FacadeSettings:
    from infra.limits_env import limits_from
    from producer.web.api_keys import read_event_tokens, read_keys
    from producer.web.settings import LOOPBACK_NAMES, FacadeSettings, is_loopback

    with reporting_errors(as_json=False):
        api_keys = read_keys(os.environ.get("DREAMDROP_API_KEYS", ""))
        tokens = read_event_tokens(os.environ.get("DREAMDROP_EVENTS_TOKEN", ""))
        limits = limits_from()
    if tokens and not (queues and store.startswith("s3://")):
        say(
            "dreamdrop: DREAMDROP_EVENTS_TOKEN is set, so POST /events would queue the events of a bucket: give "
            "--store s3://... and --queue, or leave the variable out"
        )
        raise typer.Exit(WRONG)
    local = is_loopback(host)
    if not api_keys and not local and not without_keys:
        say(
            f"dreamdrop: other machines can reach {host}, so callers need keys: make one with "
            "`dreamdrop keys new NAME` and set DREAMDROP_API_KEYS, or let everybody in with --without-keys"
        )
        raise typer.Exit(WRONG)
    if not api_keys:
        who = "everybody on this machine" if local else "EVERYBODY"
        say(f"no API keys are set: {who} may draw pictures and see all of them")
    return FacadeSettings(
        store=store,
        queues=tuple(queues or ()),
        keys=api_keys,
        event_tokens=tokens,
        hosts=(*LOOPBACK_NAMES, *(hosts or ())) if hosts or (local and not api_keys) else ("*",),
        origins=tuple(origins or ()),
        wait=wait,
        room=room,
        limits=limits,
    )


async def _serve(
    settings: FacadeSettings,
    host: str,
    sockets: list[socket.socket],
    metrics: tuple[str, int | None],
    worker: subprocess.Popen[bytes] | None = None,
) -> bool:
    """Serve until a signal comes. Returns whether the worker ended first.

    Args:
        metrics: where metrics are served: address and port.
    """
    from producer.web.api.watched import watched
    from producer.web.app import create_app

    app = create_app(settings)
    async with watched(app.state.facade, *metrics) as port:
        if port is not None:
            say(f"metrics: http://{metrics[0]}:{port}/metrics")
        return await _serve_app(app, settings, host, sockets, worker)


async def _serve_app(
    app: FastAPI,
    settings: FacadeSettings,
    host: str,
    sockets: list[socket.socket],
    worker: subprocess.Popen[bytes] | None,
) -> bool:
    import uvicorn

    from producer.web.connections import HalfCloseProtocol

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            """A signal stops the server in order. uvicorn would raise it again, and leave the worker running."""
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self.handle_exit, number, None)
            yield

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    server = Server(
        uvicorn.Config(
            app,
            http=HalfCloseProtocol,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=round(GRACE),
            log_level="warning",
        )
    )
    serving = asyncio.create_task(server.serve(sockets=sockets))
    announcing = asyncio.create_task(_announce(server, settings, address_of(sockets, host), worker))
    try:
        while not serving.done():
            await asyncio.wait({serving}, timeout=0.5)
            app.state.facade.stopping = server.should_exit  # so that it turns new calls away
            if worker is not None and worker.poll() is not None and not serving.done():
                server.should_exit = app.state.facade.stopping = True
                await serving
                return True
    finally:
        announcing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await announcing
    if not server.started:
        raise typer.Exit(FAILED)  # uvicorn has logged why: most often the port is in use
    return False


async def _announce(
    server: uvicorn.Server, settings: FacadeSettings, address: str, worker: subprocess.Popen[bytes] | None
) -> None:
    """Print the address once the server has started and, if there is one, the worker is alive."""
    while not server.started:
        await asyncio.sleep(0.05)
    if worker is not None:
        say(f"starting the worker on {settings.store} ...")
        await _until_ready(settings.store)
    say(f"ready: {address}  (gallery and queue; {address}/docs for programs)  Ctrl-C to stop")


async def _until_ready(store: str) -> None:
    """Wait for a worker that has loaded its model, however long it takes. `_serve` notices one that has ended."""
    from producer.client import AsyncClient
    from producer.liveness import Liveness
    from producer.overview import heartbeats
    from schemas.errors import Unavailable

    loop = asyncio.get_running_loop()
    began, loading, liveness = loop.time(), False, Liveness()
    late = began + START
    async with AsyncClient(store) as client:
        while True:
            with contextlib.suppress(Unavailable):  # the next look may succeed
                workers = await heartbeats(client.store, liveness.is_alive)
                if any(worker.get("state") != "loading" for worker in workers):
                    return
                if workers and not loading:
                    loading = True
                    say(f"loading the model {workers[0].get('default_model', '')} ...")
            if loop.time() > late:
                say(f"still not ready after {loop.time() - began:.0f} s; a large model takes minutes ...")
                late += START
            await asyncio.sleep(0.2)
