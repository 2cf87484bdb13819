"""`dreamdrop worker`: reads options and environment variables, and starts a worker with them."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from consumer.device_options import Attention, Compile, Devices, Dtype, Offload, Quantize, check_together
from infra.options import (
    DEFAULT_STORE,
    Lease,
    LogFormat,
    LogLevel,
    MaxAttempts,
    MetricsHost,
    MetricsPort,
    ModelCacheGb,
    Once,
    StoreUrl,
)
from schemas.errors import DreamError
from schemas.limits import Limits

app = typer.Typer(
    help="Render the requests that are dropped into a store.",
    add_completion=False,
    rich_markup_mode=None,  # help texts hold brackets
)

_LIMITS = Limits()  # the defaults; `infra.limits_env` reads the same variables for clients


def _json_object(text: str) -> str:
    try:
        valid = isinstance(json.loads(text), dict)
    except ValueError:
        valid = False
    if not valid:
        raise typer.BadParameter("it should be a JSON object")
    return text


@app.callback(invoke_without_command=True)
def worker(
    store: StoreUrl = DEFAULT_STORE,
    queue: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_QUEUE",
            help="URL of an SQS queue that announces requests; repeatable, express first.",
        ),
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_ANNOUNCE",
            help="Where to announce ended requests: SQS queue URL, SNS topic ARN or https webhook; repeatable.",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            envvar="DREAMDROP_MODEL",
            help="Default model: one of --models, a built-in or a published one; auto: sd21 with CUDA, else doodle.",
        ),
    ] = "auto",
    models: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_MODELS",
            help="name=folder, name=file.safetensors or name=hub:owner/name[@revision]; repeatable. Options may "
            "follow, which fill what requests leave open: ,steps=9,cfg=0,scheduler=Euler,size=512x768,multiple=16; "
            "for a whole model in one file also ,configs=a diffusers folder or model of its family.",
        ),
    ] = None,
    loras: Annotated[
        list[str] | None, typer.Option(envvar="DREAMDROP_LORAS", help="name=safetensors file; repeatable.")
    ] = None,
    controlnets: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_CONTROLNETS", help="name=folder or name=hub:owner/name[@revision]; repeatable."
        ),
    ] = None,
    ip_adapters: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_IP_ADAPTERS",
            help="name=file.safetensors or name=hub:owner/name[@revision]:path of the file, with an image_encoder "
            "folder beside it, or elsewhere: ,encoder=folder; repeatable.",
        ),
    ] = None,
    devices: Devices = "auto",
    dtype: Dtype = "auto",
    attention: Attention = "auto",
    compile: Compile = "off",
    offload: Offload = False,
    quantize: Quantize = "off",
    max_rows: Annotated[
        int,
        typer.Option(
            envvar="DREAMDROP_MAX_ROWS",
            min=2,
            help="Rows in one UNet call; an image with guidance takes two.",
        ),
    ] = 16,
    exact: Annotated[
        bool,
        typer.Option(
            envvar="DREAMDROP_EXACT",
            help="Make an image's bytes independent of the batch that it is drawn in.",
        ),
    ] = False,
    model_memory: Annotated[
        float, typer.Option(envvar="DREAMDROP_MODEL_MEMORY", help="GiB for loaded models; 0: no limit.")
    ] = 0,
    picture_memory: Annotated[
        int,
        typer.Option(
            envvar="DREAMDROP_PICTURE_MEMORY",
            min=1,
            help="MiB of decoded pictures in memory for each renderer: half for inputs, half for what is drawn.",
        ),
    ] = 256,
    model_cache_gb: ModelCacheGb = 50,
    lease: Lease = 30.0,
    max_attempts: MaxAttempts = 3,
    patience: Annotated[
        float,
        typer.Option(
            envvar="DREAMDROP_PATIENCE", help="Seconds without progress after which a renderer is replaced."
        ),
    ] = 60.0,
    grace: Annotated[
        float,
        typer.Option(envvar="DREAMDROP_GRACE", help="Seconds to finish what is being drawn after SIGTERM."),
    ] = 25.0,
    spot: Annotated[
        bool,
        typer.Option(
            envvar="DREAMDROP_SPOT", help="Drain when EC2 announces that it will reclaim this instance."
        ),
    ] = False,
    reconcile: Annotated[
        float,
        typer.Option(
            envvar="DREAMDROP_RECONCILE",
            min=0.1,
            help="With a queue: seconds in the inbox after which a request's message counts as lost.",
        ),
    ] = 60.0,
    denied_patience: Annotated[
        float,
        typer.Option(
            envvar="DREAMDROP_DENIED_PATIENCE",
            min=0,
            help="Seconds of nothing but denied calls to the bucket, then exit with status 4; 0: never.",
        ),
    ] = 900.0,
    max_steps: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_STEPS", min=1, help="Most steps of a request.")
    ] = _LIMITS.max_steps,
    max_side: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_SIDE", min=1, help="Most pixels of width and of height.")
    ] = _LIMITS.max_side,
    max_native_areas: Annotated[
        int,
        typer.Option(
            envvar="DREAMDROP_MAX_NATIVE_AREAS",
            min=1,
            help="Most pixels of an image, as a multiple of its model's native size; 1024 x 1024 is always allowed.",
        ),
    ] = _LIMITS.max_native_areas,
    max_images: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_IMAGES", min=1, help="Most images of a request.")
    ] = _LIMITS.max_images,
    max_body_mb: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_BODY_MB", min=1, help="Most MiB of a request file.")
    ] = _LIMITS.max_body_bytes >> 20,
    input_prefix: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_INPUT_PREFIXES",
            help="Prefix of keys that a manifest may name; repeatable; default uploads/.",
        ),
    ] = None,
    previews: Annotated[
        Literal["off", "express", "all"],
        typer.Option(
            envvar="DREAMDROP_PREVIEWS", help="For which requests the status shows the image so far."
        ),
    ] = "express",
    renderer: Annotated[
        Literal["diffusers", "null"],
        typer.Option(envvar="DREAMDROP_RENDERER", help="null draws flat pictures, for tests."),
    ] = "diffusers",
    null: Annotated[
        str, typer.Option(hidden=True, callback=_json_object, help="JSON for the null renderer.")
    ] = "{}",
    once: Once = False,
    log_level: LogLevel = "info",
    log_format: LogFormat = "text",
    metrics_port: MetricsPort = None,
    metrics_host: MetricsHost = "127.0.0.1",
) -> None:
    """Draw the requests of a store.

    It takes requests, renders them in batches, and writes images and results back.
    """
    from consumer.renderer.protocol import RendererSettings
    from consumer.serve import Places, serve
    from consumer.worker import WorkerSettings
    from infra.claims.claims import Timing
    from infra.logs import log_lines
    from infra.models.addons.known import Addons
    from infra.models.cache import default_folder
    from infra.models.cards import Cards
    from infra.models.model_files import fetch_configs

    log_lines(log_level, "consumer", "infra", "dreamdrop", style=log_format)
    beat = lease / 3
    settings = WorkerSettings(
        default_model=model,
        timing=Timing(beat=beat, lease=lease, sweep=(beat, 2 * beat), max_attempts=max_attempts),
        limits=Limits(
            max_steps=max_steps,
            max_side=max_side,
            max_native_areas=max_native_areas,
            max_images=max_images,
            max_body_bytes=max_body_mb << 20,
        ),
        grace=grace,
        ahead=2 * max_rows,
        picture_memory=picture_memory << 20,
        reconcile=reconcile,
        spot=spot,
        previews=previews,
        once=once,
    )
    log = logging.getLogger("dreamdrop.worker")
    check_together(compile, exact=exact, offload=offload, quantize=quantize)
    try:
        addons = Addons.of(controlnets or (), ip_adapters or (), fetch=True)
        cards = replace(Cards.of(models or (), loras or (), fetch=fetch_configs), addons=addons)
    except (DreamError, OSError) as error:
        log.error("the worker cannot run: %s", error)
        raise typer.Exit(3) from error
    child = RendererSettings(
        kind=renderer,
        device=devices,
        dtype=dtype,
        attention=attention,
        compile=compile,
        compiled=str(default_folder().parent / "compiled"),
        offload=offload,
        quantize=quantize,
        max_rows=max_rows,
        exact=exact,
        models=_pairs(models),
        loras=tuple((name, str(lora.path)) for name, lora in cards.loras.items()),
        controlnets=_pairs(controlnets),
        ip_adapters=_pairs(ip_adapters),
        memory_budget=int(model_memory * 2**30) or None,
        patience=patience,
        null=json.loads(null),
    )
    places = Places(
        store,
        queue or (),
        announce or (),
        input_prefix or ("uploads/",),
        denied_patience,
        int(model_cache_gb * 2**30),
        (metrics_host, metrics_port),
    )
    try:
        _check_temporary_folder(log)
        raise typer.Exit(serve(places, cards, settings, child))
    except (DreamError, OSError) as error:
        log.error("the worker cannot run: %s", error)
        raise typer.Exit(3) from error


def _check_temporary_folder(log: logging.Logger) -> None:
    """Say where temporary files go if it is not where TMPDIR says. Raises `DreamError` if there is no place."""
    wanted = os.environ.get("TMPDIR")
    try:
        used = tempfile.gettempdir()
    except OSError as error:
        raise DreamError(
            "there is no folder for temporary files: set TMPDIR to one that can be written to"
        ) from error
    if wanted and Path(used).resolve() != Path(wanted).resolve():
        log.warning("TMPDIR is %s, which cannot be written to; temporary files go to %s", wanted, used)


def _pairs(texts: list[str] | None) -> tuple[tuple[str, str], ...]:
    """`name=value` texts as pairs; `Cards` has checked them."""
    pairs = (text.partition("=") for text in texts or ())
    return tuple((name.strip(), value.strip()) for name, _, value in pairs)
