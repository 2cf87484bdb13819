"""Validation pictures: the same prompts and seeds before the first step and along the way."""

from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from training import defaults, tokens
from training.dreambooth.drawing import draw

if TYPE_CHECKING:
    from pathlib import Path

    from training.dreambooth.loop import Loop

_TOGETHER = 4  # pictures in one pipeline call


def validate(folder: Path, loop: Loop) -> list[Path]:
    """Draw the recipe's prompts with the weights as they would be published; returns the files.

    Picture k has seed `seed + k`. The folder gets `prompts.json` and `<step>/<k>.png`.
    """
    options = loop.recipe.options
    prompts = options.validate_prompts or ()
    target = folder / f"{loop.done:06d}"
    target.mkdir(parents=True, exist_ok=True)
    files = [folder / "prompts.json"]
    files[0].write_text(json.dumps(list(prompts), ensure_ascii=False))
    with loop.average.switched_in() if loop.average else nullcontext():
        for start in range(0, len(prompts), _TOGETHER):
            part = prompts[start : start + _TOGETHER]
            seeds = [(options.seed + start + k) % 2**63 for k in range(len(part))]
            how = defaults.DRAWING[loop.recipe.base.kind]
            for number, picture in enumerate(
                draw(loop.parts, part, seeds, options.resolution or 0, how, loop.accelerator.autocast()),
                start,
            ):
                files.append(target / f"{number}.png")
                picture.save(files[-1])
    return files


def drift(folder: Path, loop: Loop) -> dict[str, float | None]:
    """How far the last pictures are from the untouched base's: mean difference in grey levels of 255.

    Prompts that name the concept should change; those that do not should stay.
    """
    with_concept: list[float] = []
    without: list[float] = []
    for number, prompt in enumerate(loop.recipe.options.validate_prompts or ()):
        try:
            first, last = (
                np.asarray(Image.open(folder / f"{step:06d}" / f"{number}.png"), np.float64)
                for step in (0, loop.done)
            )
        except OSError:
            continue
        named = set(tokens.words(prompt)) & set(loop.recipe.triggers)
        (with_concept if named else without).append(float(np.abs(first - last).mean()))
    return {
        name: round(sum(found) / len(found), 2) if found else None
        for name, found in (("with_concept", with_concept), ("without", without))
    }
