"""A training in words for people: how far it is, and what came of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from schemas.training import TrainingProgress

if TYPE_CHECKING:
    from producer.request_state import State
    from schemas.result import Result


def product_of(result: Result) -> str:
    """The model that a training has published, as `name@version`; "" where it has published none."""
    model = result.model
    return f"{model.name}@{model.revision}" if model is not None and result.status == "succeeded" else ""


def facts(state: State) -> list[str]:
    """How far a training is, in parts; of one that has ended, what it has published."""
    if state.result is not None:
        return [product for product in [product_of(state.result)] if product]
    if state.status == "queued":
        return [f"{state.position} ahead of it" if state.position else "next"]
    progress = state.progress
    if not isinstance(progress, TrainingProgress):
        return ["starting"]
    parts = [progress.phase or "starting"]
    if progress.steps_total:
        unit = "picture" if progress.phase == "class pictures" else "step"
        parts.append(f"{unit} {progress.steps_done} of {progress.steps_total}")
    if progress.phase == "training":
        parts += [f"loss {progress.loss:.4f}"] if progress.loss is not None else []
        parts += [f"about {duration(progress.eta)} left"] if progress.eta is not None else []
    return parts


def duration(seconds: float) -> str:
    """A time that may be hours."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds / 60:.0f} min" if seconds > 100 else f"{seconds:.0f} s"
