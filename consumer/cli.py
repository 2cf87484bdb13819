"""`dreamdrop worker`: options and environment in, a running worker out."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Render what is dropped into a store.", add_completion=False)


@app.callback(invoke_without_command=True)
def worker(
    store: Annotated[
        str, typer.Option(envvar="DREAMDROP_STORE", help="A directory, s3://bucket[/prefix].")
    ] = "./dreamdrop-data",
    queue: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_QUEUE", help="URL of an SQS queue that announces work; the first is express."
        ),
    ] = None,
    announce: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_ANNOUNCE",
            help="Where to tell of ended requests: SQS queue URL, SNS topic ARN, https webhook; repeatable.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(envvar="DREAMDROP_MODEL", help="Default model; auto: doodle, with CUDA sd21.")
    ] = "auto",
    models: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_MODELS", help="name=folder or name=hub:owner/name[@revision]; repeatable."
        ),
    ] = None,
    loras: Annotated[
        list[str] | None, typer.Option(envvar="DREAMDROP_LORAS", help="name=safetensors file; repeatable.")
    ] = None,
    devices: Annotated[
        str, typer.Option(envvar="DREAMDROP_DEVICES", help="auto, all, cpu, cuda:0, ...; one renderer each.")
    ] = "auto",
    dtype: Annotated[
        str, typer.Option(envvar="DREAMDROP_DTYPE", help="auto, float32, bfloat16 or float16.")
    ] = "auto",
    attention: Annotated[
        str, typer.Option(envvar="DREAMDROP_ATTENTION", help="auto, sdpa or xformers.")
    ] = "auto",
    offload: Annotated[
        bool, typer.Option(envvar="DREAMDROP_OFFLOAD", help="Keep idle modules in host memory (small cards).")
    ] = False,
    max_rows: Annotated[
        int,
        typer.Option(
            envvar="DREAMDROP_MAX_ROWS", min=2, help="Rows of a UNet call; guidance takes two an image."
        ),
    ] = 16,
    exact: Annotated[
        bool, typer.Option(envvar="DREAMDROP_EXACT", help="The same bytes whoever shares the batch.")
    ] = False,
    model_memory: Annotated[
        float, typer.Option(envvar="DREAMDROP_MODEL_MEMORY", help="GiB for loaded models; 0: no bound.")
    ] = 0,
    lease: Annotated[
        float,
        typer.Option(
            envvar="DREAMDROP_LEASE", min=0.5, help="Seconds until a silent worker is presumed dead."
        ),
    ] = 30.0,
    max_attempts: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_ATTEMPTS", min=1, help="Then a request ends as failed.")
    ] = 3,
    patience: Annotated[
        float,
        typer.Option(
            envvar="DREAMDROP_PATIENCE", help="Seconds without progress until a renderer is replaced."
        ),
    ] = 60.0,
    grace: Annotated[
        float,
        typer.Option(envvar="DREAMDROP_GRACE", help="Seconds to finish what is being drawn after SIGTERM."),
    ] = 25.0,
    spot: Annotated[
        bool,
        typer.Option(envvar="DREAMDROP_SPOT", help="Drain when EC2 announces that it takes the machine."),
    ] = False,
    reconcile: Annotated[
        float,
        typer.Option(
            envvar="DREAMDROP_RECONCILE",
            min=0.1,
            help="With a queue: seconds until a request whose message was lost is looked for.",
        ),
    ] = 60.0,
    max_steps: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_STEPS", min=1, help="Limit on steps.")
    ] = 150,
    max_side: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_SIDE", min=1, help="Limit on width, height.")
    ] = 2048,
    max_images: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_IMAGES", min=1, help="Limit on number_of_images.")
    ] = 64,
    max_body_mb: Annotated[
        int, typer.Option(envvar="DREAMDROP_MAX_BODY_MB", min=1, help="Limit on a request file.")
    ] = 32,
    input_prefix: Annotated[
        list[str] | None,
        typer.Option(
            envvar="DREAMDROP_INPUT_PREFIXES", help="Keys that a manifest may name; default uploads/."
        ),
    ] = None,
    previews: Annotated[
        str,
        typer.Option(
            envvar="DREAMDROP_PREVIEWS",
            help="Whose status shows how the image looks by now: off, express or all.",
        ),
    ] = "express",
    renderer: Annotated[
        str, typer.Option(envvar="DREAMDROP_RENDERER", help="diffusers, or null: flat pictures, for tests.")
    ] = "diffusers",
    null: Annotated[str, typer.Option(hidden=True, help="JSON for the null renderer.")] = "{}",
    once: Annotated[bool, typer.Option(help="Stop when there is nothing left to do.")] = False,
    log_level: Annotated[
        str, typer.Option(envvar="DREAMDROP_LOG_LEVEL", help="debug, info or warning.")
    ] = "info",
) -> None:
    """Take requests from a store, render them in batches, write images and results back."""
    from consumer.serve import Options, serve

    options = Options(
        store=store,
        queues=tuple(queue or ()),
        announce=tuple(announce or ()),
        model=model,
        models=tuple(models or ()),
        loras=tuple(loras or ()),
        devices=devices,
        dtype=dtype,
        attention=attention,
        offload=offload,
        max_rows=max_rows,
        exact=exact,
        model_memory=int(model_memory * 2**30),
        lease=lease,
        max_attempts=max_attempts,
        patience=patience,
        grace=grace,
        spot=spot,
        reconcile=reconcile,
        max_steps=max_steps,
        max_side=max_side,
        max_images=max_images,
        max_body_bytes=max_body_mb << 20,
        input_prefixes=tuple(input_prefix or ("uploads/",)),
        previews=previews,
        renderer=renderer,
        null=null,
        once=once,
        log_level=log_level,
    )
    raise typer.Exit(serve(options))
