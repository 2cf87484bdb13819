"""From a claim to a job that can be drawn: read again, adopt what is stored, decode what was sent in.

Everything here may be done twice without harm, and nothing of it needs the device.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import consumer.jobs.picture as picture
from consumer.jobs.job import Job
from schemas.errors import Rejected
from schemas.manifest import Img2Img, Inpainting, has_expired, parse_manifest
from schemas.plan import Refusal, read_plan
from schemas.result import Failure, Result, utc_now
from schemas.strictjson import load_object

if TYPE_CHECKING:
    from consumer.jobs.delivery import Delivery
    from consumer.jobs.inputs import Inputs
    from consumer.renderer.protocol import RawPicture
    from infra.claims.claims import Held
    from schemas.limits import Limits


@dataclass(frozen=True)
class Preparation:
    """Makes jobs of claims, for one worker."""

    delivery: Delivery
    inputs: Inputs
    limits: Limits
    clock: Callable[[], float]

    def read(self, held: Held) -> Job:
        """The job of a claim.

        Raises:
            Rejected: it was refused when it was claimed, or this worker's limits refuse it, and another's let it in.
            ValueError: the plan is of a version that this worker does not know.
        """
        plan = read_plan(held.claim.plan)
        if isinstance(plan, Refusal):
            raise plan.error()
        if plan is None:
            raise ValueError("the claim of a single request has no plan")
        began = self.clock()
        manifest = parse_manifest(held.claim.frozen.body(), self.limits)
        held.has_status = (
            held.has_status or held.claim.epoch > 1
        )  # whoever had it before may have left a status
        return Job(held, manifest, plan, began, notes=list(plan.notes))

    async def make_ready(self, job: Job) -> None:
        """Leave in `job.missing()` only what has to be drawn, with the pictures that it needs."""
        await self.delivery.adopt(job)
        manifest = job.manifest
        if has_expired(manifest) and not job.images:
            _give_up(job, Failure(code="expired", message="expires_at had passed before the work began"))
        elif isinstance(manifest, Img2Img | Inpainting) and job.missing():
            began = self.clock()
            try:
                job.inputs = await self._decode(manifest, job)
            except Rejected as error:
                _give_up(job, _failure_of(error))
            job.spent("decode", self.clock() - began)
        if manifest.strict and job.notes:
            _give_up(job, Failure(code="invalid_manifest", message="strict is set"))

    async def _decode(
        self, manifest: Img2Img | Inpainting, job: Job
    ) -> tuple[RawPicture | None, RawPicture | None]:
        """The input picture and mask, at the size that will be drawn."""
        mask_text = manifest.mask_image if isinstance(manifest, Inpainting) else None
        image_bytes = await self._input(manifest.image, "image")
        mask_bytes = await self._input(mask_text, "mask_image") if mask_text else None

        def decode() -> tuple[RawPicture | None, RawPicture | None]:
            image, notes = picture.decode_picture(image_bytes, "image", self.limits)
            mask = None
            if mask_bytes is not None:
                mask, more = picture.decode_picture(mask_bytes, "mask_image", self.limits, mask=True)
                notes += more
            image, mask, more = picture.fit(image, mask, self.limits)
            for note in notes + more:
                job.note(note)
            return image, mask

        return await asyncio.to_thread(decode)

    async def _input(self, value: str, field: str) -> bytes:
        """A picture's bytes; a store that does not answer is waited for, and costs no attempt."""
        return await self.delivery.insist(lambda: self.inputs.read(value, field))


def _give_up(job: Job, failure: Failure) -> None:
    job.failures |= dict.fromkeys(job.missing(), failure)


def _failure_of(error: Rejected) -> Failure:
    where = {"field": error.field, "line": error.line, "column": error.column}
    return Failure.model_validate({"code": error.code, "message": error.message, **where})


def refusal(held: Held, error: Rejected | ValueError, worker: str) -> Result:
    """How a claim ends that cannot become a job."""
    known = error if isinstance(error, Rejected) else Rejected("invalid_manifest", str(error))
    metadata: object = None
    with contextlib.suppress(Rejected, ValueError):
        metadata = load_object(held.claim.frozen.body()).get("metadata")
    return Result(
        id=held.claim.id,
        status="expired" if known.code == "expired" else "failed",
        failure=_failure_of(known),
        metadata=metadata if isinstance(metadata, dict) else {},
        worker=worker,
        finished_at=utc_now(),
        attempts=held.claim.attempt,
        fingerprint=held.claim.fingerprint,
        request=held.claim.frozen,
    )
