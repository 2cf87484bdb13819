"""One request in flight: what it still needs, and what will be said of it.

A *job* begins with a claim and ends with a result (or with the claim given back). Its images are
drawn one by one, in any order; those that an earlier attempt stored are not drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer.tasks import ImageTask, Lora, RawPicture
from schemas.result import Failure, ImageResult, ModelUsed, Note, Progress, Result, Status, Timings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.claims import Held
    from schemas.manifest import Manifest
    from schemas.plan import Plan

_EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@dataclass(eq=False)
class Job:
    """A claimed request with its plan, and how far it is."""

    held: Held
    manifest: Manifest
    plan: Plan
    began: float  # by the worker's clock
    notes: list[Note] = field(default_factory=list)
    images: dict[int, ImageResult] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    inputs: tuple[RawPicture | None, RawPicture | None] = (None, None)
    model: ModelUsed | None = None
    progress: dict[int, tuple[int, int]] = field(default_factory=dict)
    losses: int = 0  # renderers that died while drawing it, here
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    handed: set[int] = field(default_factory=set)  # images that a renderer was given
    finishing: set[int] = field(default_factory=set)  # drawn, not yet stored
    told: bool = False  # whether a status object was written

    @property
    def id(self) -> str:
        return self.held.claim.id

    @property
    def attempt(self) -> int:
        return self.held.claim.attempt + self.losses

    @property
    def suspect(self) -> bool:
        """Whether a worker or a renderer died with it: then it is drawn alone."""
        return self.held.claim.solo or self.losses > 0

    @property
    def extension(self) -> str:
        return _EXTENSIONS[self.plan.output.format]

    def missing(self) -> list[int]:
        """The images that are neither stored, nor failed, nor on their way to the store."""
        done = self.images.keys() | self.failures.keys() | self.finishing
        return [index for index in range(len(self.plan.seeds)) if index not in done]

    def not_handed(self) -> list[int]:
        """The missing images that no renderer has been given."""
        return [index for index in self.missing() if index not in self.handed]

    @property
    def complete(self) -> bool:
        return len(self.images) + len(self.failures) == len(self.plan.seeds)

    def spent(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def size(self) -> tuple[int, int]:
        """(width, height) in pixels of what is drawn."""
        picture = self.inputs[0]
        if picture is not None:
            return picture.width, picture.height
        return self.plan.width or 0, self.plan.height or 0

    def task(self, index: int) -> ImageTask:
        """What the renderer has to know to draw an image."""
        plan, (width, height) = self.plan, self.size()
        return ImageTask(
            request=self.id,
            index=index,
            task=plan.task,
            model=plan.model,
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
            loras=tuple(Lora(choice.name, choice.weight) for choice in plan.loras),
            image=self.inputs[0],
            mask=self.inputs[1],
            solo=self.suspect,
        )

    def recipe(self, index: int) -> dict[str, Any]:
        """What is embedded into a picture, so that it can be drawn again."""
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

    def status(self, worker: str) -> Progress:
        """How far it is, for people."""
        count = len(self.plan.seeds)
        total = sum(total for _, total in self.progress.values())
        return Progress(
            id=self.id,
            steps_done=sum(done for done, _ in self.progress.values()),
            steps_total=max(total, self.plan.steps * count),
            images_done=len(self.images),
            images_total=count,
            worker=worker,
            attempts=self.attempt,
        )

    def result(self, *, worker: str, now: float, finished_at: str, versions: Mapping[str, str]) -> Result:
        """What is committed, from what has happened so far."""
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
            versions=dict(versions),
            worker=worker,
            attempts=self.attempt,
            finished_at=finished_at,
            fingerprint=self.held.claim.fingerprint,
            request=self.held.claim.frozen,
        )
