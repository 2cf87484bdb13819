"""One request in progress: its plan, its images so far, and the result that it will have.

A *job* begins with a claim and ends with a result, or with the claim given back. Its images are
drawn one by one, in any order; those that an earlier attempt stored are not drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer.jobs.models import Fetched
from consumer.renderer.protocol import (
    Control,
    Enlarged,
    ImageTask,
    IpAdapterChoice,
    Lora,
    RawPicture,
    SecondModel,
)
from schemas.result import Failure, ImageResult, ModelUsed, Note, Progress, Result, Status, Timings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from consumer.jobs.memory import Share
    from infra.claims.claims import Held
    from schemas.manifest import Manifest
    from schemas.plan import Plan

_IN_FIELDS_OF_THEIR_OWN = ("image", "image.0", "mask_image")  # of an image task
_EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@dataclass
class Eta:
    """Estimates when all steps are done, from the time between the first step that was seen and the last."""

    first: tuple[float, int] | None = None  # when, and how many were done
    last: tuple[float, int] = (0.0, 0)

    def saw(self, now: float, done: int) -> None:
        begins = self.first is None or now == self.first[0]  # several images may be reported at once
        if done and (begins or done < self.last[1]):  # fewer than before: it was started again
            self.first = self.last = (now, done)
        elif done > self.last[1]:
            self.last = (now, done)

    def remains(self, now: float, total: int) -> float | None:
        """Seconds until all steps are done; None before two reports at different times."""
        if self.first is None or self.last[1] <= self.first[1]:
            return None
        (began, done_first), (at, done) = self.first, self.last
        seconds_per_step = (at - began) / (done - done_first)
        return round(max(0.0, seconds_per_step * (total - done) - (now - at)), 2)


@dataclass(eq=False)
class Job:
    """A claimed request with its plan and its progress."""

    held: Held
    manifest: Manifest
    plan: Plan
    began: float  # by the worker's clock
    notes: list[Note] = field(default_factory=list)
    images: dict[int, ImageResult] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    #: By the request's fields, until all is drawn.
    pictures: dict[str, RawPicture] = field(default_factory=dict)
    input_size: tuple[int, int] | None = None  # (width, height) of the picture that it starts from, pixels
    share: Share | None = None  # of the worker's memory for inputs
    model: ModelUsed | None = None
    refiner: ModelUsed | None = None
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)  # image to (steps done, steps in all)
    losses: int = 0  # renderers of this worker that died while they drew it
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    handed: set[int] = field(default_factory=set)  # images that a renderer was given
    finishing: set[int] = field(default_factory=set)  # images that are drawn and not yet stored
    previews: bool = False  # whether its renderer is asked for previews
    fetched: Fetched = field(default_factory=Fetched)  # the published models that it needs
    preview: tuple[int, RawPicture] | None = None  # the image it shows, and the latest preview
    eta: Eta = field(default_factory=Eta)
    status_at: float = float("-inf")  # when its status was last written, by the worker's clock
    status_in_flight: bool = False  # a write of its status is under way

    @property
    def id(self) -> str:
        return self.held.claim.id

    @property
    def attempt(self) -> int:
        return self.held.claim.attempt + self.losses

    @property
    def express(self) -> bool:
        """Whether it came by the express lane: its author waits for it."""
        return self.held.claim.in_express_lane

    @property
    def suspect(self) -> bool:
        """Whether a worker or a renderer died while drawing it: then it is drawn alone."""
        return self.held.claim.solo or self.losses > 0

    @property
    def needs_models(self) -> bool:
        """Whether its plan names published models."""
        refiner = self.plan.refiner is not None and self.plan.refiner.version is not None
        return refiner or self.plan.model_version is not None or bool(self.plan.lora_versions)

    @property
    def extension(self) -> str:
        return _EXTENSIONS[self.plan.output.format]

    def missing(self) -> list[int]:
        """The images that are neither stored, nor failed, nor on their way to the store."""
        done = self.images.keys() | self.failures.keys() | self.finishing
        return [index for index in range(len(self.plan.seeds)) if index not in done]

    def not_handed(self) -> list[int]:
        """The missing images that no renderer was given."""
        return [index for index in self.missing() if index not in self.handed]

    @property
    def partly_drawn(self) -> bool:
        """Whether any step of it is done."""
        return bool(self.progress or self.images or self.finishing)

    @property
    def complete(self) -> bool:
        return len(self.images) + len(self.failures) == len(self.plan.seeds)

    def spent(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def size(self) -> tuple[int, int]:
        """(width, height) at which its images begin, in pixels: an upscale makes them larger."""
        return self.input_size or (self.plan.width or 0, self.plan.height or 0)

    def drawn_size(self) -> tuple[int, int]:
        """(width, height) of its images, in pixels."""
        size, upscale = self.size(), self.plan.upscale
        return upscale.size(*size, self.plan.model, 1) if upscale is not None else size

    def hold(self, pictures: dict[str, RawPicture], share: Share) -> None:
        """Keep input pictures until `let_go`, and of the share what they need."""
        share.shrink(sum(len(picture.data) for picture in pictures.values()))
        self.pictures, self.share = pictures, share
        if (image := image_of(pictures)) is not None:
            self.input_size = (image.width, image.height)

    def let_go(self) -> None:
        """Drop the input pictures: no image of this job will be drawn here any more."""
        self.pictures = {}
        if self.share is not None:
            self.share.release()

    def task(self, index: int) -> ImageTask:
        """The renderer's task for one image."""
        plan, (width, height) = self.plan, self.size()
        refiner = plan.refiner
        return ImageTask(
            request=self.id,
            index=index,
            task=plan.task,
            model=plan.model if plan.model_version is None else f"{plan.model}@{plan.model_version}",
            prompt=plan.prompt,
            negative_prompt=plan.negative_prompt,
            width=width,
            height=height,
            steps=plan.steps,
            cfg_scale=plan.cfg_scale,
            seed=plan.seeds[index],
            scheduler=plan.scheduler,
            strength=plan.strength,
            clip_skip=plan.clip_skip,
            loras=tuple(
                Lora(x.name, x.weight, plan.lora_hashes.get(x.name, ""), self.fetched.loras.get(x.name, ""))
                for x in plan.loras
            ),
            controls=tuple(Control(x.name, x.scale, x.start, x.end) for x in plan.controlnet),
            ip_adapter=IpAdapterChoice(x.name or "", x.scale) if (x := plan.ip_adapter) else None,
            image=image_of(self.pictures),
            mask=self.pictures.get("mask_image"),
            pictures={
                name: one for name, one in self.pictures.items() if name not in _IN_FIELDS_OF_THEIR_OWN
            },
            solo=self.suspect,
            folder=self.fetched.folder,
            express=self.express,
            preview=self.previews,
            weights=plan.weights,
            upscale=self._enlarged(),
            refiner=SecondModel(refiner.reference, refiner.at, self.fetched.refiner) if refiner else None,
        )

    def _enlarged(self) -> Enlarged | None:
        upscale = self.plan.upscale
        if upscale is None:
            return None
        return Enlarged(*self.drawn_size(), steps=upscale.steps or self.plan.steps, strength=upscale.strength)

    def recipe(self, index: int) -> dict[str, Any]:
        """What is embedded into an image file, so that it can be drawn again."""
        width, height = self.size()
        return {
            **self.plan.document(),
            "id": self.id,
            "index": index,
            "seed": self.plan.seeds[index],
            "width": width,
            "height": height,
            "number_of_images": 1,
        }

    def note(self, note: Note) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def stepped(self, now: float, index: int, steps: tuple[int, int], preview: RawPicture | None) -> None:
        """Take note of an image's progress, and of its preview if there is one."""
        self.progress[index] = steps
        self.preview = (index, preview) if preview is not None else self.preview
        self.eta.saw(now, self.steps()[0])

    def steps(self) -> tuple[int, int]:
        """(steps done, steps in all); an image that is finished or not begun counts as the plan says."""
        whole = self.plan.all_steps
        missing = set(self.missing())
        done = total = 0
        for index in range(len(self.plan.seeds)):
            steps, all_steps = self.progress.get(index, (0, whole))
            done, total = done + (steps if index in missing else all_steps), total + all_steps
        return done, total

    def latest_preview(self) -> RawPicture | None:
        """The latest preview, if its image is still unfinished."""
        return self.preview[1] if self.preview is not None and self.preview[0] in self.missing() else None

    def status(self, worker: str, now: float, preview: str) -> Progress:
        """The body of its status object."""
        done, total = self.steps()
        return Progress(
            id=self.id,
            steps_done=done,
            steps_total=total,
            images_done=len(self.images),
            images_total=len(self.plan.seeds),
            worker=worker,
            attempts=self.attempt,
            eta=self.eta.remains(now, total),
            preview=preview,
        )

    def result(self, *, worker: str, now: float, finished_at: str, versions: Mapping[str, str]) -> Result:
        """The result, from what has happened so far."""
        status: Status = "succeeded"
        failure = None
        if self.failures:
            status = "partial" if self.images else "failed"
            index = min(self.failures)
            failure = self.failures[index]
            if status == "partial":
                text = f"{len(self.failures)} of {len(self.plan.seeds)} images failed; the first: {failure.message}"
                failure = Failure(code="some_images_failed", message=text, index=index)
            if failure.code == "expired" and not self.images:
                status = "expired"
        if self.manifest.strict and self.notes:
            first = self.notes[0]
            text = f"strict is set, and this would have been changed: {first.message}"
            status, failure = "failed", Failure(code="invalid_manifest", message=text, field=first.field)
        return Result(
            id=self.id,
            status=status,
            task=self.plan.task,
            images=tuple(self.images[i] for i in sorted(self.images)),
            failure=failure,
            warnings=tuple(self.notes),
            metadata=self.manifest.metadata,
            parameters=self.plan.document(),
            timings=Timings(
                total=round(now - self.began, 4),
                **{stage: round(s, 4) for stage, s in self.seconds.items()},
            ),
            model=self.model,
            refiner=self.refiner,
            versions=dict(versions),
            worker=worker,
            attempts=self.attempt,
            finished_at=finished_at,
            fingerprint=self.held.claim.fingerprint,
            request=self.held.claim.frozen,
        )


def image_of(pictures: Mapping[str, RawPicture]) -> RawPicture | None:
    """The picture that is drawn from: the first one where the request has several."""
    return pictures.get("image") or pictures.get("image.0")
