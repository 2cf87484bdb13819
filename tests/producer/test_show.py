"""The tables that people read."""

from __future__ import annotations

import io

from rich.console import Console

from producer.commands.show import about, overview, states
from producer.overview import Overview
from producer.request_state import State
from schemas.result import Failure, Frozen, Progress, Result, Timings


def test_the_time_that_remains_is_said_once_it_is_known():
    """Whole seconds, rounded up; nothing while it is not known; never the preview."""
    said = Progress(
        id="a", steps_done=3, steps_total=20, images_total=1, eta=12.2, preview="data:image/jpeg,x"
    )

    assert about(State("a", "processing", progress=said)) == "step 3 of 20, image 1 of 1, about 13 s left"
    unknown = said.model_copy(update={"eta": None})
    assert about(State("a", "processing", progress=unknown)) == "step 3 of 20, image 1 of 1"


def test_a_narrow_terminal_cuts_prompts_and_never_statuses_or_times():
    """At 80 columns a person still reads what became of each request, and when."""
    result = Result.ended(
        "a-request-with-a-name", "succeeded", None, request=Frozen.of(b"{}"), fingerprint="",
        parameters={"prompt": "a large yellow star and a small pink heart on a dark blue background"},
        timings=Timings(total=12.3),
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(states([State("a-request-with-a-name", "succeeded", result=result)]))
    text = console.file.getvalue()

    assert "succeeded" in text
    assert "0 s ago" in text
    assert "12.3 s" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_overview_says_below_its_table_why_requests_failed():
    """A long reason does not widen the row of its request; `about` says all of it for one request."""
    failure = Failure(code="model_unavailable", message="model 'sdxl' is not here. " + "Tried the hub. " * 20)
    failed = Result.ended(
        "sdxl", "failed", failure, request=Frozen.of(b"{}"), fingerprint="",
        parameters={"prompt": "a yellow star"}, timings=Timings(total=23.4),
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(overview(Overview((), {}, 1, (failed,), 0), {}))
    lines = console.file.getvalue().splitlines()

    assert len(lines) <= 7
    assert lines[2].split() == [
        "sdxl",
        "failed",
        "a",
        "yellow",
        "star",
        "0",
        "s",
        "ago",
        "23.4",
        "s",
        "0",
        "images",
    ]
    assert lines[5].startswith("sdxl")
    assert "model 'sdxl' is not here" in lines[5]
    assert failure.message in about(State("sdxl", "failed", result=failed))


def test_what_strangers_wrote_is_shown_as_they_wrote_it():
    """Neither brackets, with or without a backslash, nor names of emoji are markup."""
    failure = Failure(code="unsupported", message=r"write \[ and \] for [red] brackets")
    failed = Result.ended(
        "odd", "failed", failure, request=Frozen.of(b"{}"), fingerprint="",
        parameters={"prompt": r"a \[bold\] :cat: [red]"},
    )  # fmt: skip
    console = Console(width=120, file=io.StringIO())
    console.print(overview(Overview((), {}, 1, (failed,), 0), {}))
    text = console.file.getvalue()

    assert failure.message in text
    assert r"a \[bold\] :cat: [red]" in text
