"""Makes a job of a claim: parses the request again, adopts stored images, has input pictures decoded.

All of this may be repeated without harm, and none of it needs the device. Pictures are decoded in children
without credentials, and what comes back is bounded: a request waits until there is room for its pixels.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from consumer.jobs.job import Job, image_of
from consumer.jobs.memory import Budget
from consumer.renderer.protocol import RawPicture
from infra.decoding.process import CHANNELS, Decoders, Source, Use
from infra.models.hub_caches import is_here, is_of_hub
from schemas.defaults import SIZE_MULTIPLE
from schemas.errors import Rejected, TooLarge
from schemas.manifest import has_expired, parse_manifest
from schemas.manifest_limits import check_numbers, check_upscaled
from schemas.manifest_parts import PICTURES, pictures_in
from schemas.plan import Refusal, read_plan
from schemas.result import Failure, Result, Status

if TYPE_CHECKING:
    from consumer.jobs.delivery import Delivery
    from consumer.jobs.inputs import Inputs
    from consumer.jobs.models import ModelFetcher
    from infra.claims.claims import Held
    from infra.decoding.process import Drawable, Pixels
    from infra.models.cards import Cards
    from infra.models.hub_caches import Hub
    from schemas.limits import Limits
    from schemas.manifest import Manifest

_BODIES = 2  # the largest bodies that the files of one request's pictures may fill


class Preparation:
    """Prepares the jobs of one worker. For one event loop."""

    def __init__(
        self,
        delivery: Delivery,
        inputs: Inputs,
        cards: Cards,
        limits: Limits,
        clock: Callable[[], float],
        memory: int,
        decode_seconds: float,
        models: ModelFetcher | None = None,
        hub: Hub | None = None,
    ) -> None:
        """
        Args:
            memory: bytes of pixels for the input pictures of all jobs that are not drawn yet.
            decode_seconds: of processor time for the pictures of one request.
            models: of what is published; None: that cannot be drawn.
            hub: where models that are not here come from; None: renderers need none.
        """
        self.room = Budget(memory)
        self._delivery = delivery
        self._inputs = inputs
        self._cards = cards
        self._limits = limits
        self._clock = clock
        self._models = models
        self._hub = hub
        self._decoders = Decoders(seconds=decode_seconds)
        self._turns = Budget(self._decoders.children)  # so that no thread waits for a child

    def close(self) -> None:
        """End the decoders."""
        self._decoders.close()

    async def adopt(self, job: Job) -> None:
        """Leave in `job.missing()` only the images that must be drawn."""
        await self._delivery.adopt(job)

    def read(self, held: Held) -> Job:
        """The job of a claim.

        Raises:
            Rejected: it was refused when it was claimed, or is over the limits of this worker.
            ValueError: the plan was written by a version that this worker does not know.
        """
        plan = read_plan(held.claim.plan)
        if isinstance(plan, Refusal):
            raise plan.error()
        if plan is None:
            raise ValueError("the claim of a single request has no plan")
        began = self._clock()
        manifest = parse_manifest(held.claim.frozen.body(), self._limits)
        check_numbers(plan.steps, plan.cfg_scale, self._limits)  # the manifest may leave them open
        held.has_status = held.has_status or held.claim.epoch > 1  # its last worker may have left a status
        return Job(held, manifest, plan, began, notes=list(plan.notes))

    async def fetch(self, job: Job) -> None:
        """Bring the published models that a job needs onto this machine; waiting for them may take minutes.

        Raises:
            Unavailable: there is no room for them here; another worker may have some.
        """
        if self._models is None or not job.needs_models or not job.missing():
            return
        models = self._models
        try:
            job.fetched = await self._delivery.insist(lambda: models.fetch(job.plan))
        except Rejected as error:
            _give_up(job, Failure.of(error))

    async def make_ready(self, job: Job, wanted: Callable[[], bool]) -> None:
        """Decode the pictures that a job's missing images need; give the images up where that cannot be.

        Args:
            wanted: whether the job is still to be drawn here; asked after each wait for room.

        Raises:
            DecoderDown: nothing can be decoded here at the moment.
        """
        manifest = job.manifest
        if has_expired(manifest) and not job.images:
            _give_up(job, Failure(code="expired", message="expires_at had passed before the work began"))
        elif job.missing() and (lacking := await self._out_of_reach(job))[0]:
            _give_up(job, Failure(code="model_unavailable", message=lacking[1], field=lacking[0]))
        elif job.missing() and (texts := _pictures_of(manifest)):
            began = self._clock()
            try:
                # A store that does not answer costs no attempt, and no room while we wait.
                await self._delivery.insist(lambda: self._decode(texts, job, wanted))
            except Rejected as error:
                _give_up(job, Failure.of(error))
            job.spent("decode", self._clock() - began)
        if manifest.strict and job.notes:
            _give_up(job, Failure(code="invalid_manifest", message="strict is set"))

    async def _out_of_reach(self, job: Job) -> tuple[str, str]:
        """The field of a model that a job needs and that cannot be downloaded now, and why; else ("", "").

        Nobody else waits for the answer.
        """
        plan = job.plan
        named = {"model": (plan.model, plan.model_version)}
        if plan.refiner is not None:
            named["refiner.model"] = (plan.refiner.model, plan.refiner.version)
        for field, (name, version) in named.items():
            card = self._cards.cards.get(name) if version is None else None
            if self._hub is None or card is None or card.gated or is_here(card):
                continue
            if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") or not any(map(is_of_hub, card.sources)):
                continue  # the renderer says so at once
            if why := await asyncio.to_thread(self._hub.why_not):
                return field, (
                    f"model {card.name!r} is not here, and the hub cannot be reached ({why}). Give the worker a "
                    f"diffusers folder with it, as {card.name}=/path/to/folder, or access to the hub"
                )
        return "", ""

    async def _decode(self, texts: dict[str, str], job: Job, wanted: Callable[[], bool]) -> None:
        """Give the job its pictures, in the sizes that drawing needs.

        Args:
            texts: what the manifest holds or names, by field.
        """
        uses = {field: _use(field) for field in texts}
        limits = self._limits_of(job)
        # In bytes; how many it takes is known after decoding.
        most = sum(CHANNELS[use] for use in uses.values()) * limits.max_pixels
        share = await self.room.take(most, express=job.express)
        try:
            if not wanted():
                return
            sources = [Source(field, uses[field], data) for field, data in (await self._read(texts)).items()]
            card = self._cards.cards.get(job.plan.model) if job.plan.model_version is None else None
            multiple = card.size_multiple if card else SIZE_MULTIPLE
            drawable = await self._drawable(sources, limits, multiple, job)
            pictures = {field: _raw(pixels) for field, pixels in drawable.pictures.items()}
            if (image := image_of(pictures)) is not None:
                check_upscaled(job.plan, (image.width, image.height), multiple, limits)
            job.hold(pictures, share)
            for note in drawable.notes:
                job.note(note)
        finally:
            if job.share is not share:
                share.release()

    async def _read(self, texts: dict[str, str]) -> dict[str, bytes]:
        """The files of a request's pictures, by field. Together they are bounded: their keys take no room in a body."""
        files: dict[str, bytes] = {}
        most = _BODIES * self._limits.max_body_bytes
        for field, text in texts.items():
            files[field] = await self._inputs.read(text, field)
            if (size := sum(map(len, files.values()))) > most:
                error = TooLarge(f"{field}, with the pictures before it,", size, most)
                raise Rejected(error.code, error.message, field=field)
        return files

    async def _drawable(self, sources: list[Source], limits: Limits, multiple: int, job: Job) -> Drawable:
        size = job.size()  # (0, 0) where the image says it
        turn = await self._turns.take(1, express=job.express)
        try:
            return await asyncio.to_thread(self._decoders.drawable, sources, limits, multiple, size)
        finally:
            turn.release()

    def _limits_of(self, job: Job) -> Limits:
        """The limits that hold for a job's model."""
        card = self._cards.cards.get(job.plan.model)
        native = job.fetched.native or ((card.native_width, card.native_height) if card else None)
        return self._limits.for_model(*native) if native else self._limits  # None: another worker knows it


def _pictures_of(manifest: Manifest) -> dict[str, str]:
    """What a manifest holds where pictures belong, by field: the image first, and behind it the mask."""
    return pictures_in(manifest.model_dump(include={place.partition(".")[0] for place in PICTURES}))


def _use(field: str) -> Use:
    """What the picture in a field is for."""
    if field in ("image", "image.0"):
        return "image"
    uses: dict[str, Use] = {"mask_image": "mask", "controlnet": "control"}
    return uses.get(field.partition(".")[0], "reference")


def _raw(pixels: Pixels) -> RawPicture:
    return RawPicture(pixels.width, pixels.height, len(pixels.mode), pixels.data)


def _give_up(job: Job, failure: Failure) -> None:
    job.failures |= dict.fromkeys(job.missing(), failure)


def refusal(held: Held, error: Rejected | ValueError, worker: str) -> Result:
    """The result of a claim that cannot become a job."""
    known = error if isinstance(error, Rejected) else Rejected("invalid_manifest", str(error))
    status: Status = "expired" if known.code == "expired" else "failed"
    return held.claim.ended(status, Failure.of(known), worker=worker)
