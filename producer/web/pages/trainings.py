"""The pages of trainings: the list, and one training with its options and what it has drawn."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from producer.request_state import State
from producer.trainings import report
from producer.trainings.report import Validation, ValidationPicture
from producer.trainings.words import facts, product_of
from producer.web.caller import Caller, FacadeOf, own_id
from producer.web.pages.items import STATUS_NAMES, recipe_table
from producer.web.pages.routes import Page, page

router = APIRouter(route_class=Page, include_in_schema=False)

SHOWN = 50  # trainings that wait, and as many that run
MOST_STEPS = 12  # columns of pictures: the first, the last, and some between
HIDDEN = {"pictures", "notes"}  # options that the table leaves out


@dataclass(frozen=True, slots=True)
class TrainingItem:
    """A training, in words for people."""

    state: State

    @property
    def id(self) -> str:
        return self.state.id

    @property
    def status(self) -> str:
        return self.state.status

    @property
    def status_name(self) -> str:
        return "running" if self.status == "processing" else STATUS_NAMES.get(self.status, self.status)

    @property
    def path(self) -> str:
        return f"/t/{quote(self.id)}"

    @property
    def api_path(self) -> str:
        return f"/trainings/{quote(self.id)}"

    @property
    def steps(self) -> tuple[int, int]:
        """Done, and in all; (0, 0) where there is nothing to count."""
        progress = self.state.progress
        return (progress.steps_done, progress.steps_total) if progress is not None else (0, 0)

    @property
    def about(self) -> str:
        """How far it is, or what came of it."""
        return " · ".join(facts(self.state))

    @property
    def failure(self) -> str:
        result = self.state.result
        return result.failure.message if result is not None and result.failure is not None else ""


@router.get("/t")
async def trainings(request: Request, facade: FacadeOf, caller: Caller) -> Response:
    """The list of trainings: those that run, those that wait, and those that have ended."""
    known = await facade.overview_of_trainings(caller)
    queued = [(id, ahead) for ahead, id in enumerate(known.queued) if caller.sees(id)]
    states = [State(id, "processing", progress=p) for id, p in list(known.processing.items())[:SHOWN]]
    states += [State(id, "queued", position=ahead) for id, ahead in queued[:SHOWN]]
    states += [State(result.id, result.status, result=result) for result in known.latest]
    return page(
        request,
        "trainings.html",
        items=[TrainingItem(state) for state in states],
        open=len(queued) + len(known.processing),
        hidden=max(0, len(queued) - SHOWN) + max(0, len(known.processing) - SHOWN),
        most=len(known.latest) if known.over > len(known.latest) else 0,
        trainers=len(await facade.trainers()),
    )


@router.get("/t/{id:path}")
async def training(id: str, request: Request, facade: FacadeOf, caller: Caller) -> Response:
    """One training: how far it is, its validation pictures by step, its options."""
    reader = facade.trainings
    state = await reader.client.status(own_id(caller, id))
    drawn = await report.read_validation(reader.view, state.id)
    result = state.result
    options = (result.parameters if result else None) or await reader.manifest(state)
    steps = _columns(drawn)
    return page(
        request,
        "training.html",
        item=TrainingItem(state),
        over=state.over,
        steps=steps,
        rows=_rows(drawn, steps),
        options=recipe_table(options, HIDDEN),
        product=product_of(result) if result else "",
        trainers=len(await facade.trainers()),
    )


def _columns(drawn: Validation) -> list[int]:
    steps = sorted({picture.step for picture in drawn.pictures})
    if len(steps) <= MOST_STEPS:
        return steps
    return [steps[round(n * (len(steps) - 1) / (MOST_STEPS - 1))] for n in range(MOST_STEPS)]


def _rows(drawn: Validation, steps: list[int]) -> list[tuple[str, list[ValidationPicture | None]]]:
    """Each prompt with its picture after each step."""
    found = {(picture.index, picture.step): picture for picture in drawn.pictures}
    rows = []
    for index in sorted({picture.index for picture in drawn.pictures}):
        pictures = [found.get((index, step)) for step in steps]
        first = next(picture for picture in drawn.pictures if picture.index == index)
        rows.append((drawn.prompt(first), pictures))
    return rows
