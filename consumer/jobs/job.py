"""One request in flight: what it still needs, and what will be said of it.

A *job* begins with a claim and ends with a result (or with the claim given back). Its images are
drawn one by one, in any order; those that an earlier attempt stored are not drawn again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from consumer.renderer.protocol import ImageTask, Lora, RawPicture
from schemas import layout
from schemas.result import Failure, ImageResult, ModelUsed, Note, Progress, Result, Status, Timings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infra.claims.claims import Held
    from schemas.manifest import Manifest
    from schemas.plan import Plan

_EXTENSIONS = {"png": "png", "jpeg": "jpg", "webp": "webp"}


@dataclass
class Pace:
    """How fast steps come, from the first one that was seen."""

    first: tuple[float, int] | None = None  # when, and how many were done
    last: tuple[float, int] = (0.0, 0)

    def saw(self, now: float, done: int) -> None:
        begins = self.first is None or now == self.first[0]  # several images may be heard of at once
        if done and (begins or done < self.last[1]):  # fewer than before: it began anew
            self.first = self.last = (now, done)
        elif done > self.last[1]:
            self.last = (now, done)

    def remains(self, now: float, total: int) -> float | None:
        """Seconds until all are done; None while there is no pace yet."""
        if self.first is None or self.last[1] <= self.first[1]:
            return None
        (began, before), (at, done) = self.first, self.last
        each = (at - began) / (done - before)
        return round(max(0.0, each * (total - done) - (now - at)), 2)


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
    previews: bool = False  # whether its renderer is asked for pictures along the way
    preview: tuple[int, RawPicture] | None = None  # the latest, and of which image
    pace: Pace = field(default_factory=Pace)
    told_at: float = float("-inf")  # by the worker's clock
    telling: bool = False  # one is on its way

    @property
    def id(self) -> str:
        return self.held.claim.id

    @property
    def attempt(self) -> int:
        return self.held.claim.attempt + self.losses

    @property
    def express(self) -> bool:
        """Whether it came by the express lane, where somebody waits."""
        return self.held.express or (self.held.claim.source or "").startswith(layout.EXPRESS)

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
            preview=self.previews,
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

    def stepped(self, now: float, index: int, steps: tuple[int, int], preview: RawPicture | None) -> None:
        """Hear how far one of its images is, and perhaps how it looks."""
        self.progress[index] = steps
        self.preview = (index, preview) if preview is not None else self.preview
        self.pace.saw(now, self.steps()[0])

    def steps(self) -> tuple[int, int]:
        """Steps done, and in all; an image that is over, or not begun, counts as the plan says."""
        whole = self.plan.steps
        missing = set(self.missing())
        done = total = 0
        for index in range(len(self.plan.seeds)):
            now, all_ = self.progress.get(index, (0, whole))
            done, total = done + (now if index in missing else all_), total + all_
        return done, total

    def looks(self) -> RawPicture | None:
        """How an unfinished image looks, if that is known."""
        return self.preview[1] if self.preview is not None and self.preview[0] in self.missing() else None

    def status(self, worker: str, now: float, preview: str) -> Progress:
        """How far it is, for people."""
        done, total = self.steps()
        return Progress(
            id=self.id,
            steps_done=done,
            steps_total=total,
            images_done=len(self.images),
            images_total=len(self.plan.seeds),
            worker=worker,
            attempts=self.attempt,
            eta=self.pace.remains(now, total),
            preview=preview,
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
