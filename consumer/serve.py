"""From options to a running worker: open the store, start the renderers, listen for signals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import random
import secrets
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from consumer.jobs.inputs import Inputs
from consumer.models.cards import Cards
from consumer.renderer.protocol import RendererSettings
from consumer.worker import Worker, WorkerSettings
from infra import logs
from infra.claims.claims import Claims, Timing
from infra.queues.leases import MessageLeases
from infra.stores.open import open_store
from infra.stores.probe import probe
from schemas.errors import DreamError, StoreUnavailable
from schemas.limits import Limits
from schemas.result import utc_now

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from consumer.announce.announcer import Announcer
    from infra.queues.sqs import Queue
    from infra.stores.store import Store
    from schemas.result import Result

log = logging.getLogger("dreamdrop.worker")


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says; see `consumer/cli.py` for the words."""

    store: str
    queues: tuple[str, ...]
    announce: tuple[str, ...]
    model: str
    models: tuple[str, ...]
    loras: tuple[str, ...]
    devices: str
    dtype: str
    attention: str
    offload: bool
    max_rows: int
    exact: bool
    model_memory: int  # bytes; 0: no bound
    lease: float
    max_attempts: int
    patience: float
    grace: float
    spot: bool
    reconcile: float
    max_steps: int
    max_side: int
    max_images: int
    max_body_bytes: int
    input_prefixes: tuple[str, ...]
    renderer: str
    null: str
    previews: str
    once: bool
    log_level: str


def serve(options: Options) -> int:
    """Run a worker to its end; returns the process's exit code."""
    logs.log_lines(options.log_level, "consumer", "infra", "dreamdrop")
    try:
        return asyncio.run(_serve(options))
    except DreamError as error:
        log.error("cannot work: %s", error)
        return 3


async def _serve(options: Options) -> int:
    cards = Cards.of(options.models)
    devices = await asyncio.to_thread(_devices, options)
    model, why = _default_model(options.model, devices)
    cards.get(model)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(options.store))
        queues = [await stack.enter_async_context(queue) for queue in _queues(options.queues)]
        verdict = await probe(store)
        session = f"{platform.node().split('.')[0][:30] or 'worker'}-{secrets.token_hex(6)}"
        log.info("store", extra={"url": store.url, "level": verdict.level, "note": verdict.reason})
        log.info("model", extra={"default": model, "why": why, "serves": ",".join(cards.known())})
        for queue in queues:
            log.info("queue", extra={"url": queue.url})
        worker = _worker(options, store, queues, cards, session, model, devices)
        _heed_signals(worker)
        facts = {"state": "loading", "models": cards.known(), "default_model": model}
        await worker.claims.beat(facts)
        beats = asyncio.create_task(_beats(worker, facts))  # a large model may take minutes
        starts = asyncio.gather(*(renderer.start() for renderer in worker.renderers))
        stopped = asyncio.create_task(worker.stop.wait())
        try:
            either: list[asyncio.Future[Any]] = [stopped, starts]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            beats.cancel()  # from here on the worker's own say more
            if not worker.stop.is_set():
                for ready in starts.result():
                    told = {"device": ready.device, "dtype": ready.dtype, "session": session}
                    log.info("ready", extra=told)
                await worker.run()
        finally:
            for task in (stopped, starts, beats):
                task.cancel()
            await asyncio.gather(beats, starts, return_exceptions=True)
            with contextlib.suppress(StoreUnavailable):
                await worker.claims.retire()  # again, if it has worked: nobody then waits for a lease
            await asyncio.gather(*(renderer.close() for renderer in worker.renderers))
        log.info("stopped", extra={"session": session})
    return 1 if worker.failed else 0


async def _beats(worker: Worker, facts: dict[str, Any]) -> None:
    """Show life while the renderers start."""
    while True:
        await asyncio.sleep(worker.settings.timing.beat)
        with contextlib.suppress(StoreUnavailable):
            await worker.claims.beat(facts)


def _worker(
    options: Options,
    store: Store,
    queues: list[Queue],
    cards: Cards,
    session: str,
    model: str,
    devices: list[str],
) -> Worker:
    rng = random.Random(secrets.randbits(64))
    short = options.lease / 3
    timing = Timing(
        beat=short,
        lease=options.lease,
        sweep=(short, 2 * short),
        max_attempts=options.max_attempts,
    )
    limits = Limits(
        max_steps=options.max_steps,
        max_side=options.max_side,
        max_images=options.max_images,
        max_body_bytes=options.max_body_bytes,
    )
    settings = WorkerSettings(
        default_model=model,
        timing=timing,
        limits=limits,
        grace=options.grace,
        spot=options.spot,
        reconcile=options.reconcile,
        ahead=2 * options.max_rows,
        previews=_previews(options.previews),
        once=options.once,
    )
    told: asyncio.Queue[str] = asyncio.Queue()
    announcer = _announcer(options, store.url, session, rng, lambda id: claims.result(id), told.put_nowait)
    claims = Claims(
        store,
        session=session,
        clock=time.monotonic,
        rng=rng,
        timing=timing,
        stamp=utc_now,
        may_forget=announcer.may_forget if announcer else lambda _id: True,
    )
    return Worker(
        store=store,
        claims=claims,
        renderers=[_renderer_settings(options, device, model) for device in devices],
        cards=cards,
        settings=settings,
        inputs=Inputs(store, limits, options.input_prefixes),
        clock=time.monotonic,
        rng=rng,
        versions={"dreamdrop": importlib.metadata.version("dreamdrop"), "python": platform.python_version()},
        queues=[MessageLeases(queue, time.monotonic, rng) for queue in queues],
        announcer=announcer,
        announced=told,
    )


def _announcer(
    options: Options,
    source: str,
    session: str,
    rng: random.Random,
    read: Callable[[str], Awaitable[Result | None]],
    when_told: Callable[[str], None],
) -> Announcer | None:
    """Who tells of ended requests. Its secrets come by the environment only, never by the command line."""
    if not options.announce:
        return None
    from consumer.announce.announcer import Announcer
    from consumer.announce.targets import targets

    places = targets(
        options.announce,
        secrets=os.environ.get("DREAMDROP_WEBHOOK_SECRET", ""),
        hosts=os.environ.get("DREAMDROP_WEBHOOK_HOSTS", ""),
        now=time.time,
    )
    return Announcer(
        places, read, time.monotonic, rng, source=source, session=session, on_announced=when_told
    )


def _queues(urls: tuple[str, ...]) -> list[Queue]:
    if not urls:
        return []
    from infra.queues.sqs import Queue  # a directory's worker needs no AWS library

    return [Queue(url) for url in urls]


def _renderer_settings(options: Options, device: str, model: str) -> RendererSettings:
    return RendererSettings(
        kind="null" if options.renderer == "null" else "diffusers",
        device=device,
        dtype=_dtype(options.dtype),
        attention=options.attention,
        offload=options.offload,
        max_rows=options.max_rows,
        exact=options.exact,
        models=tuple(_pair(text) for text in options.models),
        loras=tuple(_pair(text) for text in options.loras),
        memory_budget=options.model_memory or None,
        preload=model,
        patience=options.patience,
        null=json.loads(options.null),
    )


def _previews(word: str) -> Literal["off", "express", "all"]:
    match word:
        case "off" | "express" | "all":
            return word
    raise DreamError(f"previews {word!r}: say off, express or all")


def _dtype(wanted: str) -> str:
    """The precision as set, else the one that `accelerate launch` was told."""
    launched = {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}
    return (
        launched.get(os.environ.get("ACCELERATE_MIXED_PRECISION", ""), wanted) if wanted == "auto" else wanted
    )


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name.strip(), value.strip()


def _default_model(wanted: str, devices: list[str]) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "as set"
    if any(device.startswith("cuda") for device in devices):
        return "sd21", "there is a CUDA device"
    return "doodle", "bundled; there is no CUDA device"


def _devices(options: Options) -> list[str]:
    """One name for each renderer. Asks a child where GPUs may be: this process never imports torch."""
    launched = os.environ.get("LOCAL_RANK")  # set by `accelerate launch`: one process a device
    wanted = (
        f"cuda:{launched}"
        if launched and os.environ.get("ACCELERATE_USE_CPU", "false") != "true"
        else options.devices
    )
    driver = Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()
    if (
        options.renderer == "null"
        or wanted == "cpu"
        or (not driver and (wanted in ("auto", "all") or launched))
    ):
        return ["cpu"]
    code = "import json, sys; from consumer.engine.devices import devices; print(json.dumps(devices(sys.argv[1])))"
    answer = subprocess.run(
        [sys.executable, "-c", code, wanted], capture_output=True, text=True, timeout=120, check=False
    )
    if answer.returncode:
        last = (answer.stderr.strip() or "no answer").splitlines()[-1]
        raise DreamError(f"devices {wanted!r}: {last.removeprefix('consumer.engine.devices.BadDevice: ')}")
    names: list[str] = json.loads(answer.stdout.strip().splitlines()[-1])
    return names


def _heed_signals(worker: Worker) -> None:
    """The first SIGTERM or SIGINT drains, the second exits at once: claims run out by their lease."""

    def heed() -> None:
        if worker.stop.is_set():
            os._exit(130)
        worker.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, heed)
