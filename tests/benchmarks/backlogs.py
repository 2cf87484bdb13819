"""What is waiting to be drawn: backlogs of image tasks, the same for every contender.

The prompts and seeds of each round differ, so that nobody profits from what it remembers of the
round before.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from tests.studio import make_task

if TYPE_CHECKING:
    from consumer.renderer.protocol import ImageTask

SCHEDULER = "DPM++ 2M"  # the bundled model's own; it remembers steps, so each image needs its own


def homogeneous(model: str, side: int, count: int, steps: int, round_: int) -> list[ImageTask]:
    """As a plain pipeline likes it best: all alike but for prompt and seed."""
    return [_task(model, side, round_, i, steps=steps, cfg_scale=7.5) for i in range(count)]


def mixed(model: str, side: int, count: int, most_steps: int, round_: int) -> list[ImageTask]:
    """As users send them: steps, guidance and tasks drawn from a fixed seed."""
    rng = random.Random(f"mixed {count}")
    shares = (0.2, 0.4, 0.5, 0.6, 1.0)  # of 50: 10, 20, 25, 30, 50 steps
    return [
        _task(
            model,
            side,
            round_,
            i,
            task=rng.choice(("text2img", "text2img", "img2img", "inpainting")),
            steps=max(2, round(rng.choice(shares) * most_steps)),
            cfg_scale=rng.choice((1.0, 1.5, 5.0, 7.5, 9.0)),
        )
        for i in range(count)
    ]


def _task(model: str, side: int, round_: int, number: int, **fields: object) -> ImageTask:
    return make_task(
        f"r{round_}-{number}",
        model=model,
        width=side,
        height=side,
        prompt=f"{round_} {number} a red circle on a blue background",
        seed=1000 * round_ + number,
        scheduler=SCHEDULER,
        **fields,
    )
