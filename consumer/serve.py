"""Sets a worker up and runs it: opens the store, starts the renderers, handles signals."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import platform
import random
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from consumer import metrics
from consumer.gauges import watched
from consumer.jobs.inputs import Inputs
from consumer.jobs.models import Fetched, ModelFetcher
from consumer.renderer.devices import default_model, devices_of, dtype_of
from consumer.worker import Worker, WorkerSettings
from infra.claims.claims import Claims
from infra.metrics.calls import Calls, TimedQueue
from infra.models.cache import DEFAULT_BYTES, ModelCache, default_folder
from infra.models.model_files import check_own
from infra.queues.leases import MessageLeases
from infra.stores.changes import make_inbox
from infra.stores.open import open_store
from infra.stores.probe import probe
from infra.stores.timed import TimedStore
from schemas.errors import StoreUnavailable
from schemas.result import utc_now

if TYPE_CHECKING:
    from consumer.announce.announcer import Announcer
    from consumer.renderer.protocol import RendererSettings
    from infra.models.cards import Cards
    from infra.queues.sqs import Queue
    from infra.stores.open import OpenableStore
    from infra.stores.store import Store
    from schemas.result import Result

log = logging.getLogger("dreamdrop.worker")

DENIED = 4  # exit status
_TOLD = ("exact", "compile", "offload", "quantize")  # settings that the log repeats where they are on


@dataclass(frozen=True, slots=True)
class Places:
    """What a worker is connected to."""

    store: str  # a directory, or s3://bucket[/prefix]
    queues: Sequence[str] = ()  # URLs, express first
    announce: Sequence[str] = ()  # where ended requests are announced
    input_prefixes: Sequence[str] = ("uploads/",)  # keys that a manifest may name
    denied_patience: float = 0.0  # seconds of nothing but denied calls until the worker exits; 0: never
    model_cache: int = DEFAULT_BYTES  # of published models on this machine
    metrics: tuple[str, int | None] = ("127.0.0.1", None)  # where metrics are served: address and port


def serve(places: Places, cards: Cards, settings: WorkerSettings, renderer: RendererSettings) -> int:
    """Run a worker until it stops.

    Args:
        settings: the default model may be "auto".
        renderer: what each child is told. The device may be a setting for several, such as "all";
            the precision "auto" is replaced by what `accelerate launch` was told.

    Returns:
        The exit status of the process: 1 after an unexpected error, `DENIED` when its credentials stayed refused.

    Raises:
        DreamError: the worker cannot run with these settings, or on this store.
    """
    return asyncio.run(_serve(places, cards, settings, renderer))


async def _serve(places: Places, cards: Cards, settings: WorkerSettings, renderer: RendererSettings) -> int:
    devices = await asyncio.to_thread(devices_of, renderer)
    model, why = default_model(settings.default_model, devices)
    if renderer.kind == "diffusers":
        await asyncio.to_thread(check_own, cards.own())
    settings = replace(settings, default_model=model)
    async with contextlib.AsyncExitStack() as stack:
        store = await stack.enter_async_context(open_store(places.store))
        await make_inbox(store)
        queues = [await stack.enter_async_context(queue) for queue in _queues(places.queues)]
        verdict = await probe(store)
        cache = ModelCache(default_folder(), places.model_cache)
        loaded, fetched = model, Fetched()
        if cards.firm(model) is None:
            loaded, fetched = await ModelFetcher(store, cache).fetch_default(model, cards)
            stack.callback(fetched.release)  # at the end: a renderer that is replaced loads it again
            why = f"{why}; published, loads {loaded}" if loaded not in cards.cards else why
        log.info("store", extra={"url": store.url})
        level = logging.DEBUG if verdict.is_atomic else logging.WARNING
        log.log(level, "store probed", extra={"level": verdict.level, "note": verdict.reason})
        renderer = msgspec.structs.replace(
            renderer, dtype=dtype_of(renderer.dtype), preload=loaded, preload_folder=fetched.folder
        )
        log.info("model", extra={"default": model, "why": why, "serves": ",".join(cards.known())})
        for card in cards.own():
            log.info("model card", extra={"model": card.name, "defaults": card.defaults.text()})
        for queue in queues:
            log.info("queue", extra={"url": queue.url})
        log.info("drop .json and .jsonl files into %s/requests/", places.store.rstrip("/"))
        renderers = [msgspec.structs.replace(renderer, device=device) for device in devices]
        calls = Calls(metrics.REGISTRY)
        worker = _make_worker(places, store, queues, cards, settings, renderers, calls, cache)
        await stack.enter_async_context(watched(worker, store, queues, cache, *places.metrics))
        _drain_on_signals(worker)
        access = asyncio.create_task(_watch_access(store, worker, places.denied_patience))
        facts = {"state": "loading", "models": cards.known(), "available": worker.heartbeats.available()}
        await _run(worker, {**facts, "defaults": cards.defaults(), "default_model": model})
        denied = access.done()
        access.cancel()
        log.info("stopped", extra={"session": worker.claims.session})
    return 1 if worker.failed else DENIED if denied else 0


async def _watch_access(store: OpenableStore, worker: Worker, patience: float) -> None:
    """Stop the worker when the store has denied every call for too long: its supervisor starts another.

    Args:
        patience: seconds; 0 for ever.
    """
    while not patience or store.denied_for < patience:
        await asyncio.sleep(min(5.0, patience / 4 or 5.0))
    log.error(
        "the store has denied every call for too long; the worker exits for its supervisor. Renew its credentials",
        extra={"seconds": round(store.denied_for), "status": DENIED},
    )
    worker.stop.set()


async def _run(worker: Worker, facts: dict[str, Any]) -> None:
    """Start the renderers and let the worker work; end the renderers whatever happens.

    Args:
        facts: what heartbeats say until the worker writes its own.
    """
    await worker.claims.beat(facts)
    beats = asyncio.create_task(_beats(worker, facts))  # a large model may take minutes to load
    starts = asyncio.gather(*(renderer.start() for renderer in worker.renderers))
    stopped = asyncio.create_task(worker.stop.wait())
    try:
        either: list[asyncio.Future[Any]] = [stopped, starts]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        beats.cancel()  # the worker writes its own from here on
        if not worker.stop.is_set():
            for renderer, ready in zip(worker.renderers, starts.result(), strict=True):
                chosen = {name: getattr(renderer.settings, name) for name in _TOLD}
                told = {name: value for name, value in chosen.items() if value not in ("off", False)}
                its = {"device": ready.device, "dtype": ready.dtype, **told, "session": worker.claims.session}
                log.info("ready", extra=its)
            await worker.run()
    finally:
        # First, and to their end: a heartbeat after the retirement would make the worker look alive for a lease.
        for task in (stopped, starts, beats):
            task.cancel()
        await asyncio.gather(beats, starts, return_exceptions=True)
        # A worker that has run has retired already. One that was stopped, or failed, while it was loading has not.
        with contextlib.suppress(StoreUnavailable):
            await worker.claims.retire()
        # Last: a child may take seconds to end, and no other worker should wait for that.
        await asyncio.gather(*(renderer.close() for renderer in worker.renderers))


async def _beats(worker: Worker, facts: dict[str, Any]) -> None:
    """Write heartbeats while the renderers start."""
    while True:
        await asyncio.sleep(worker.settings.timing.beat)
        with contextlib.suppress(StoreUnavailable):
            await worker.claims.beat(facts)


def _make_worker(
    places: Places,
    store: Store,
    queues: list[Queue],
    cards: Cards,
    settings: WorkerSettings,
    renderers: list[RendererSettings],
    calls: Calls,
    cache: ModelCache,
) -> Worker:
    store = TimedStore(store, calls)
    rng = random.Random(secrets.randbits(64))
    session = f"{platform.node().split('.')[0][:30] or 'worker'}-{secrets.token_hex(6)}"
    announced: asyncio.Queue[str] = asyncio.Queue()
    announcer = _announcer(
        places.announce, store.url, session, rng, lambda id: claims.result(id), announced.put_nowait
    )
    claims = Claims(
        store,
        session=session,
        clock=time.monotonic,
        rng=rng,
        timing=settings.timing,
        stamp=utc_now,
        may_forget=announcer.may_forget if announcer else lambda _id: True,
    )
    return Worker(
        store=store,
        claims=claims,
        renderers=renderers,
        cards=cards,
        settings=settings,
        inputs=Inputs(store, settings.limits, places.input_prefixes),
        clock=time.monotonic,
        rng=rng,
        versions={"dreamdrop": importlib.metadata.version("dreamdrop"), "python": platform.python_version()},
        queues=[MessageLeases(TimedQueue(queue, calls), time.monotonic, rng) for queue in queues],
        announcer=announcer,
        announced=announced,
        models=ModelFetcher(store, cache),
    )


def _announcer(
    urls: Sequence[str],
    source: str,
    session: str,
    rng: random.Random,
    read: Callable[[str], Awaitable[Result | None]],
    on_announced: Callable[[str], None],
) -> Announcer | None:
    """The announcer of ended requests, if there is anywhere to announce them.

    Its secrets come from the environment only: other users of a machine can see a command line.
    """
    if not urls:
        return None
    from consumer.announce.announcer import Announcer
    from consumer.announce.targets import targets

    chosen = targets(
        urls,
        secrets=os.environ.get("DREAMDROP_WEBHOOK_SECRET", ""),
        hosts=os.environ.get("DREAMDROP_WEBHOOK_HOSTS", ""),
        now=time.time,
    )
    return Announcer(
        chosen, read, time.monotonic, rng, source=source, session=session, on_announced=on_announced
    )


def _queues(urls: Sequence[str]) -> list[Queue]:
    if not urls:
        return []
    from infra.queues.sqs import Queue  # a worker on a directory needs no AWS library

    return [Queue(url) for url in urls]


def _drain_on_signals(worker: Worker) -> None:
    """Drain at the first SIGTERM or SIGINT, exit at once at the second: the lease of our claims then runs out."""

    def handle() -> None:
        if worker.stop.is_set():
            os._exit(130)
        worker.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, handle)
