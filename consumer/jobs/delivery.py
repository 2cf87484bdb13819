"""Stores images, commits results, and gives claims back for another attempt.

A finished image is encoded in a thread and created in the store while the device goes on. A result
is committed when every image that it names is known to be stored. While the store does not answer,
each of these is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, TypeVar

from consumer import metrics, traces
from consumer.jobs.picture import encode
from infra.backoff import backoff
from schemas.errors import StoreUnavailable
from schemas.result import ModelUsed, Note, utc_now

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Mapping

    from consumer.jobs.job import Job
    from consumer.renderer.protocol import Drawn
    from infra.claims.claims import Claims, Held
    from schemas.result import Failure, Result

T = TypeVar("T")
log = logging.getLogger(__name__)

_RETRY_WAITS = (0.2, 10.0)  # seconds between tries while the store does not answer: first, longest


class Delivery:
    """The writes of one worker."""

    def __init__(
        self, claims: Claims, clock: Callable[[], float], rng: random.Random, versions: Mapping[str, str]
    ) -> None:
        """
        Args:
            rng: spreads the retries of many workers.
            versions: of Dreamdrop and Python, by name; the renderers add theirs.
        """
        self._claims = claims
        self._clock = clock
        self.versions = dict(versions)
        self._rng = rng

    async def adopt(self, job: Job) -> None:
        """Adopt the images that an earlier attempt stored."""
        if job.held.claim.epoch == 1:
            return  # this is the first attempt
        for index in job.missing():
            image = await self.insist(lambda i=index: self._claims.stored_image(job.held, i, job.extension))  # type: ignore[misc]
            if image is not None:
                job.images[index] = image

    async def image(self, job: Job, drawn: Drawn) -> None:
        """Encode and store one drawn image."""
        began = self._clock()
        job.model = ModelUsed.model_validate(
            {k: v for k, v in drawn.model.items() if k in ModelUsed.model_fields}
        )
        if job.plan.model_version is not None:  # the child knows it by the folder that it was given
            known = {"name": job.plan.model, "source": job.fetched.source, "licence": job.fetched.licence}
            job.model = job.model.model_copy(update=known)
        if drawn.refiner and (refiner := job.plan.refiner) is not None:
            job.refiner = ModelUsed.model_validate(drawn.refiner)
            if refiner.version is not None:
                source, licence = job.fetched.refiner_source, job.fetched.refiner_licence
                known = {"name": refiner.model, "source": source, "licence": licence}
                job.refiner = job.refiner.model_copy(update=known)
        for code, message in drawn.warnings:
            job.note(Note(code=code, message=message, field="prompt" if "prompt" in code else None))
        job.seconds["render"] = max(job.seconds.get("render", 0.0), drawn.seconds)
        image: dict[str, str | int] = {"image": drawn.index, "model": job.plan.model, "task": job.plan.task}
        traces.record("render", job.held, seconds=drawn.seconds, facts={**image, "steps": job.plan.steps})
        body, content_type, extension = await asyncio.to_thread(
            encode, drawn.picture, job.plan.output, job.recipe(drawn.index)
        )
        encoded = self._clock()
        job.spent("encode", encoded - began)
        job.images[drawn.index] = await self.insist(
            lambda: self._claims.store_image(
                job.held,
                drawn.index,
                extension,
                body,
                seed=job.plan.seeds[drawn.index],
                width=drawn.picture.width,
                height=drawn.picture.height,
                content_type=content_type,
            )
        )
        job.spent("upload", self._clock() - encoded)
        traces.record("store", job.held, seconds=self._clock() - began, facts={**image, "bytes": len(body)})

    async def finish(self, job: Job) -> None:
        """Commit the result of a job whose images are all stored or failed."""
        result = job.result(
            worker=self._claims.session, now=self._clock(), finished_at=utc_now(), versions=self.versions
        )
        ours = await self.commit(job.held, result)
        seconds = self._clock() - job.began
        metrics.ended(job.express, seconds)
        log.info(
            "request ended" if ours else "request was ended by somebody else",
            extra={
                "id": job.id,
                "status": result.status,
                "images": len(result.images),
                "seconds": round(seconds, 3),
            },
        )

    async def commit(self, held: Held, result: Result) -> bool:
        """Create the result of a claim; False when somebody else ended the request first."""
        began = self._clock()
        ours = await self.insist(lambda: self._claims.commit(held, result))
        code = result.failure.code if result.failure is not None and result.status == "failed" else ""
        facts: dict[str, str | int] = {"status": result.status, "images": len(result.images), "ours": ours}
        traces.record("commit", held, seconds=self._clock() - began, error=code, facts=facts)
        return ours

    async def retry(self, held: Held, failure: Failure) -> None:
        """Give a claim back for another attempt; without attempts left it ends with this failure."""
        metrics.retried(failure.code)
        await self.insist(lambda: self._claims.release(held, "retry", failure))

    async def insist(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until the store answers, or until cancelled."""
        pauses = backoff(*_RETRY_WAITS, self._rng)
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                pause = next(pauses)
                facts = {"why": str(error), "again_in": round(pause, 3)}
                log.warning("the store does not answer", extra=facts)
                await asyncio.sleep(pause)
