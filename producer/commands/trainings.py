"""What the commands print of trainings: a line for each, their part of an overview, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group

from producer.commands import show
from producer.request_state import State
from producer.trainings.product import product_of
from schemas.training import TrainingProgress

if TYPE_CHECKING:
    from producer.overview import Asked, Overview
    from schemas.result import Progress


def about(state: State, asked: Asked | None = None) -> str:
    """How far a training is, or what came of it, in a line. `asked`: not used; the tables pass it."""
    if state.result is not None:
        return "; ".join(filter(None, (product_of(state.result), show.why(state.result.failure))))
    if state.status == "queued":
        return f"{state.position} ahead of it" if state.position else "next"
    return _progress(state.progress)


def _progress(progress: Progress | None) -> str:
    if not isinstance(progress, TrainingProgress):
        return "starting"
    parts = [progress.phase or "starting"]
    if progress.steps_total:
        unit = "picture" if progress.phase == "class pictures" else "step"
        parts.append(f"{unit} {progress.steps_done} of {progress.steps_total}")
    if progress.phase == "training":
        if progress.loss is not None:
            parts.append(f"loss {progress.loss:.4f}")
        if progress.eta is not None:
            parts.append(f"about {duration(progress.eta)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """A time that may be hours."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 60:.0f} min" if seconds > 100 else f"{seconds:.0f} s"


def is_worth_a_line(trainings: Overview) -> bool:
    """Whether there is anything to say of trainings."""
    return bool(trainings.queued or trainings.processing or trainings.over or trainings.workers)


def counts(trainings: Overview) -> str:
    """The counts of a store's trainings, in a line."""
    return (
        f"trainings: {len(trainings.queued)} queued, {len(trainings.processing)} running, "
        f"{trainings.over} ended; {trainings.workers} trainer{'s' * (trainings.workers != 1)}"
    )


def section(trainings: Overview, asked: Mapping[str, Asked]) -> Group:
    """The trainings of an overview: their counts, and a table. Empty where there are none."""
    if not is_worth_a_line(trainings):
        return Group()
    lines = ["", counts(trainings)]
    if (trainings.queued or trainings.processing) and not trainings.workers:
        lines.append("no trainer is running; start one with: dreamdrop trainer")
    rows = show.rows(trainings)
    return Group(*lines, *([table(rows, asked)] if rows else []))


def table(rows: list[State], asked: Mapping[str, Asked]) -> Any:
    """A table of single trainings."""
    return show.states(rows, asked, heading="training", describe=about)


def document(trainings: Overview) -> dict[str, Any]:
    """The trainings of an overview as JSON."""
    return {
        "counts": {
            "queued": len(trainings.queued),
            "processing": len(trainings.processing),
            "over": trainings.over,
            "trainers": trainings.workers,
        },
        "queued": list(trainings.queued),
        "processing": {
            id: p.model_dump(mode="json") if p else None for id, p in trainings.processing.items()
        },
        "latest": [
            {
                "id": result.id,
                "status": result.status,
                "model": product_of(result) or None,
                "failure": result.failure.model_dump(mode="json") if result.failure else None,
            }
            for result in trainings.latest
        ],
    }
