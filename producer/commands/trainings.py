"""What the commands print of trainings: a line for each, their part of an overview, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Group

from producer.commands import show
from producer.request_state import State
from producer.trainings.words import facts, product_of

if TYPE_CHECKING:
    from producer.overview import Asked, Overview


def about(state: State, asked: Asked | None = None) -> str:
    """How far a training is, or what came of it, in a line. `asked`: not used; the tables pass it."""
    failure = state.result.failure if state.result is not None else None
    return "; ".join(filter(None, (", ".join(facts(state)), show.why(failure))))


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
