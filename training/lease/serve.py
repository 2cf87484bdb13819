"""Sets a trainer up and runs it: opens the store, handles signals."""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import platform
import secrets
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from infra.claims.trainings import TrainingStore
from infra.metrics.calls import Calls
from infra.stores.open import open_store
from infra.stores.probe import probe
from infra.stores.timed import TimedStore
from schemas.result import utc_now
from training.lease.gauges import watched
from training.lease.inputs import Inputs
from training.lease.trainer import Trainer, TrainerSettings, make_claims

if TYPE_CHECKING:
    from infra.stores.store import Store
    from training.lease.base_models import BaseModels

log = logging.getLogger("dreamdrop.trainer")


async def serve(
    url: str, bases: BaseModels, settings: TrainerSettings, metrics: tuple[str, int | None]
) -> int:
    """Run a trainer until it stops; returns the exit status of the process.

    Args:
        metrics: where metrics are served: address and port; no port: nowhere.

    Raises:
        DreamError: the trainer cannot run with these settings, or on this store.
    """
    async with open_store(url) as store:
        verdict = await probe(store)
        level = logging.DEBUG if verdict.is_atomic else logging.WARNING
        log.log(level, "store probed", extra={"level": verdict.level, "note": verdict.reason})
        log.info("drop trainings into %s/trainings/", url.rstrip("/"))
        registry = CollectorRegistry()
        trainer = make_trainer(TimedStore(store, Calls(registry)), bases, settings)
        async with watched(trainer, store, registry, *metrics):
            await trainer.run()
        log.info("stopped", extra={"session": trainer.claims.session})
    return 1 if trainer.failed else 0


def make_trainer(
    store: Store,
    bases: BaseModels,
    settings: TrainerSettings,
    on_event: Callable[[dict[str, Any]], None] = lambda _event: None,
) -> Trainer:
    """A trainer on an open store, which drains at the first SIGTERM or SIGINT and exits at the second."""
    view = TrainingStore(store)
    session = f"{platform.node().split('.')[0][:30] or 'trainer'}-{secrets.token_hex(6)}"
    trainer = Trainer(
        make_claims(view, session, settings.timing, utc_now),
        view,
        Inputs(store, bases.on(store), logs=settings.logs),
        settings,
        versions={"dreamdrop": importlib.metadata.version("dreamdrop"), "python": platform.python_version()},
        on_event=on_event,
    )

    def handle() -> None:
        if trainer.stop.is_set():
            os._exit(130)
        trainer.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, handle)
    return trainer
