"""Class pictures: what the base draws from the class prompts, so that training keeps it.

A JSON file beside each says how it was drawn, and is written after it. Only pictures that were drawn as this
training asks are used again.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from training import defaults
from training.dreambooth.drawing import draw

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from training.dreambooth.chance import Chance
    from training.dreambooth.parts import Parts
    from training.recipe import Recipe

_TOGETHER = (
    8  # pictures in one pipeline call; a call is repeated whole, because neighbours change the last bits
)


def make(
    folder: Path,
    recipe: Recipe,
    parts: Parts,
    chance: Chance,
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
    say: Callable[[int, int, list[str]], None] = lambda done, count, files: None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Draw the class pictures that are missing. The parts must be the untouched base's.

    Args:
        say: is told how many of how many pictures are there, and the names of new files, which are whole.
        stop: true: end early, with what is drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [_facts(recipe, chance, number) for number in range(recipe.options.class_pictures)]
    side = recipe.options.resolution or 0
    for start in range(0, len(wanted), _TOGETHER):
        part = range(start, min(start + _TOGETHER, len(wanted)))
        if all(_is_here(folder, wanted[n], n) for n in part):
            continue
        if stop():
            return
        pictures = draw(
            parts,
            [wanted[n]["prompt"] for n in part],
            [wanted[n]["seed"] for n in part],
            side,
            defaults.DRAWING[recipe.base.kind],
            precision(),
        )
        for number, picture in zip(part, pictures, strict=True):
            file, facts = _files(folder, number)
            picture.save(file)
            known = {**wanted[number], "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            half = facts.with_suffix(".part")
            half.write_text(json.dumps(known, indent=1, sort_keys=True))
            half.rename(facts)
        say(part.stop, len(wanted), [file.name for n in part for file in _files(folder, n)])


def read(folder: Path, recipe: Recipe) -> tuple[list[tuple[str, Image.Image]], list[str], str]:
    """The class pictures by name, their prompts, and a hash of all of them."""
    pictures, prompts = [], []
    total = hashlib.sha256()
    for number in range(recipe.options.class_pictures):
        file, _ = _files(folder, number)
        known = _known(folder, number)
        with Image.open(file) as picture:
            pictures.append((f"class picture {file.name}", picture.convert("RGB")))
        prompts.append(str(known["prompt"]))
        total.update(known["sha256"].encode())
    return pictures, prompts, total.hexdigest()


def _facts(recipe: Recipe, chance: Chance, number: int) -> dict[str, Any]:
    """How a class picture is drawn."""
    options = recipe.options
    steps, guidance = defaults.DRAWING[recipe.base.kind]
    return {
        "prompt": options.class_prompts[number % len(options.class_prompts)],
        "seed": chance.number("class picture", number),
        "size": options.resolution,
        "base": recipe.base.sha256,
        "steps": steps,
        "cfg_scale": guidance,
        "torch": torch.__version__,
    }


def _is_here(folder: Path, wanted: dict[str, Any], number: int) -> bool:
    file, known = _files(folder, number)[0], _known(folder, number)
    if not file.is_file() or {**known, "sha256": 0} != {**wanted, "sha256": 0}:
        return False
    return hashlib.sha256(file.read_bytes()).hexdigest() == known["sha256"]


def _known(folder: Path, number: int) -> dict[str, Any]:
    """How a picture was drawn; empty where that is not known."""
    try:
        return dict(json.loads(_files(folder, number)[1].read_text()))
    except (OSError, ValueError):
        return {}


def _files(folder: Path, number: int) -> tuple[Path, Path]:
    """A picture, and how it was drawn."""
    return folder / f"{number:05d}.png", folder / f"{number:05d}.json"
