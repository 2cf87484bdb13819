"""The tables that people read."""

from __future__ import annotations

from producer.commands.show import about
from producer.request_state import State
from schemas.result import Progress


def test_the_time_that_remains_is_said_once_it_is_known():
    """Whole seconds, rounded up; nothing while it is not known; never the preview."""
    said = Progress(
        id="a", steps_done=3, steps_total=20, images_total=1, eta=12.2, preview="data:image/jpeg,x"
    )

    assert about(State("a", "processing", progress=said)) == "step 3 of 20, image 1 of 1, about 13 s left"
    unknown = said.model_copy(update={"eta": None})
    assert about(State("a", "processing", progress=unknown)) == "step 3 of 20, image 1 of 1"
