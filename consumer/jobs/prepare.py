"""Makes a job of a claim: parses the request again, adopts stored images, decodes input pictures.

All of this may be repeated without harm, and none of it needs the device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import consumer.jobs.picture as picture
from consumer.jobs.job import Job
from schemas.errors import Rejected
from schemas.manifest import Img2Img, Inpainting, has_expired, parse_manifest
from schemas.plan import Refusal, read_plan
from schemas.result import Failure, Result, Status

if TYPE_CHECKING:
    from consumer.jobs.delivery import Delivery
    from consumer.jobs.inputs import Inputs
    from consumer.models.cards import Cards
    from consumer.renderer.protocol import RawPicture
    from infra.claims.claims import Held
    from schemas.limits import Limits


@dataclass(frozen=True)
class Preparation:
    """Prepares the jobs of one worker."""

    delivery: Delivery
    inputs: Inputs
    cards: Cards
    limits: Limits
    clock: Callable[[], float]

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
        began = self.clock()
        manifest = parse_manifest(held.claim.frozen.body(), self.limits)
        held.has_status = held.has_status or held.claim.epoch > 1  # its last worker may have left a status
        return Job(held, manifest, plan, began, notes=list(plan.notes))

    async def make_ready(self, job: Job) -> None:
        """Leave in `job.missing()` only the images that must be drawn, and decode the pictures that they need."""
        await self.delivery.adopt(job)
        manifest = job.manifest
        if has_expired(manifest) and not job.images:
            _give_up(job, Failure(code="expired", message="expires_at had passed before the work began"))
        elif isinstance(manifest, Img2Img | Inpainting) and job.missing():
            began = self.clock()
            try:
                job.inputs = await self._decode(manifest, job)
            except Rejected as error:
                _give_up(job, Failure.of(error))
            job.spent("decode", self.clock() - began)
        if manifest.strict and job.notes:
            _give_up(job, Failure(code="invalid_manifest", message="strict is set"))

    async def _decode(
        self, manifest: Img2Img | Inpainting, job: Job
    ) -> tuple[RawPicture | None, RawPicture | None]:
        """The input picture and the mask, at the size of the images to draw."""
        mask_text = manifest.mask_image if isinstance(manifest, Inpainting) else None
        image_bytes = await self._input(manifest.image, "image")
        mask_bytes = await self._input(mask_text, "mask_image") if mask_text else None

        def decode() -> tuple[RawPicture | None, RawPicture | None]:
            image, notes = picture.decode_picture(image_bytes, "image", self.limits)
            mask = None
            if mask_bytes is not None:
                mask, more = picture.decode_picture(mask_bytes, "mask_image", self.limits, mask=True)
                notes += more
            image, mask, more = picture.fit(image, mask, self._limits_of(job.plan.model))
            more += picture.mask_notes(mask) if mask is not None else []
            for note in notes + more:
                job.note(note)
            return image, mask

        return await asyncio.to_thread(decode)

    def _limits_of(self, model: str) -> Limits:
        card = self.cards.cards.get(model)  # None: a claim of another worker, which knows it
        return self.limits if card is None else self.limits.for_model(card.native_width, card.native_height)

    async def _input(self, value: str, field: str) -> bytes:
        """A picture's bytes; waiting for a store that does not answer costs no attempt."""
        return await self.delivery.insist(lambda: self.inputs.read(value, field))


def _give_up(job: Job, failure: Failure) -> None:
    job.failures |= dict.fromkeys(job.missing(), failure)


def refusal(held: Held, error: Rejected | ValueError, worker: str) -> Result:
    """The result of a claim that cannot become a job."""
    known = error if isinstance(error, Rejected) else Rejected("invalid_manifest", str(error))
    status: Status = "expired" if known.code == "expired" else "failed"
    return held.claim.ended(status, Failure.of(known), worker=worker)
