"""How well doodle obeys: the judge over a fixed list of prompts.

    python -m training.doodle.evaluate infra/models/doodle --singles 200 --pairs 100 --negatives 60

Prints the accuracies and writes them, with a grid of pictures, where `--report` says.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from training.doodle.judge import Verdict, judge
from training.doodle.scenes import KINDS, PALETTE, PLACES, SIDE, colours_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEPS = 20
GUIDANCE = 4.0  # both as in the model's card in infra/models/cards.py, which nothing here may import
Paint = Callable[..., list[Image.Image]]  # `draw` of one pipeline
_TOGETHER = 10  # pictures in one pipeline call
_LIKE = 0.7  # overlap with the template below which a shape is not called one


def load(folder: Path) -> StableDiffusionPipeline:
    """The trained pipeline, in fp32."""
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, dtype=torch.float32, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    negatives: Sequence[str] | None = None,
    seed: int = 0,
    guidance: float = GUIDANCE,
) -> list[Image.Image]:
    """One picture a prompt; picture i has seed `seed + i`."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(prompts[part]))]
        pictures += pipeline(
            list(prompts[part]),
            negative_prompt=list(negatives[part]) if negatives else None,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            generator=generators,
        ).images
    return pictures


def evaluate(
    pipeline: StableDiffusionPipeline, singles: int, pairs: int, negatives: int, guidance: float = GUIDANCE
) -> dict[str, float]:
    """Accuracies in [0, 1]; a picture counts only if everything that its line names is right."""
    paint = partial(draw, pipeline, guidance=guidance)
    scores: dict[str, float] = {"prompts": singles + pairs + negatives, "cfg_scale": guidance}
    scores |= _singles(paint, singles) if singles else {}
    scores |= _pairs(paint, pairs) if pairs else {}
    scores |= _negatives(paint, negatives) if negatives else {}
    return scores


def _singles(paint: Paint, count: int) -> dict[str, float]:
    rng = random.Random(100)
    truth = []
    for i in range(count):
        ground = rng.choice(list(PALETTE))
        truth.append((KINDS[i % len(KINDS)], rng.choice(colours_for(ground)), ground))
    pictures = paint([f"a {c} {k} on a {g} background" for k, c, g in truth], seed=1000)
    verdicts = [judge(p) for p in pictures]
    largest = [max(v.shapes, key=lambda s: s.area, default=None) for v in verdicts]
    pairs = list(zip(truth, verdicts, largest, strict=True))
    return {
        "background": _share(v.background == g for (_, _, g), v, _ in pairs),
        "colour": _share(s is not None and s.colour == c for (_, c, _), _, s in pairs),
        "shape": _share(s is not None and s.kind == k and s.likeness >= _LIKE for (k, _, _), _, s in pairs),
        "exactly one shape": _share(len(v.shapes) == 1 for v in verdicts),
    }


def _pairs(paint: Paint, count: int) -> dict[str, float]:
    rng = random.Random(200)
    truth = []
    for _ in range(count):
        ground = rng.choice(list(PALETTE))
        truth.append((ground, [(rng.choice(KINDS), rng.choice(colours_for(ground))) for _ in range(2)]))
    prompts = [f"a {a[1]} {a[0]} and a {b[1]} {b[0]} on a {g} background" for g, (a, b) in truth]
    verdicts = [judge(p) for p in paint(prompts, seed=2000)]
    return {
        "two shapes": _share(
            _kinds(v) == [k for k, _ in named] for v, (_, named) in zip(verdicts, truth, strict=True)
        ),
        "two shapes and their colours": _share(
            [(s.kind, s.colour) for s in v.shapes] == named
            for v, (_, named) in zip(verdicts, truth, strict=True)
        ),
    }


def _kinds(verdict: Verdict) -> list[str]:
    return [s.kind for s in verdict.shapes]


def _negatives(paint: Paint, count: int) -> dict[str, float]:
    """The same seed twice: the colour drawn at first is then forbidden."""
    prompts = [
        f"a {KINDS[i % len(KINDS)]} on a {list(PALETTE)[i % len(PALETTE)]} background" for i in range(count)
    ]
    first = [_main_colour(judge(p)) for p in paint(prompts, seed=3000)]
    second = [_main_colour(judge(p)) for p in paint(prompts, [c or "red" for c in first], seed=3000)]
    return {"negative avoided": _share(b is not None and a != b for a, b in zip(first, second, strict=True))}


def _main_colour(verdict: Verdict) -> str | None:
    largest = max(verdict.shapes, key=lambda s: s.area, default=None)
    return largest.colour if largest else None


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return round(sum(found) / len(found), 4)


def grid(pictures: Sequence[Image.Image], columns: int = 8, gap: int = 4) -> Image.Image:
    """Pictures side by side."""
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (SIDE + gap) + gap, rows * (SIDE + gap) + gap), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (gap + i % columns * (SIDE + gap), gap + i // columns * (SIDE + gap)))
    return sheet


def showcase() -> list[str]:
    """The grid's 64 prompts: 32 with one shape, 8 of them with a size or a place, then 32 with two."""
    rng = random.Random(64)
    sizes = [*[""] * 24, *["small ", "large "] * 2, *[""] * 4]
    places = [*[""] * 28, *(f" {place}" for place in PLACES)]
    prompts = []
    for i in range(64):
        ground = rng.choice(list(PALETTE))
        colours = colours_for(ground)
        if i < 32:
            shapes = f"a {sizes[i]}{rng.choice(colours)} {KINDS[i % len(KINDS)]}{places[i]}"
        else:
            shapes = " and ".join(f"a {rng.choice(colours)} {rng.choice(KINDS)}" for _ in range(2))
        prompts.append(f"{shapes} on a {ground} background")
    return prompts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--singles", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--negatives", type=int, default=60)
    parser.add_argument("--guidance", type=float, default=GUIDANCE, help="cfg_scale")
    parser.add_argument("--report", type=Path, help="a folder for scores.json and grid.png")
    options = parser.parse_args()
    pipeline = load(options.folder)
    started = time.monotonic()
    scores = evaluate(pipeline, options.singles, options.pairs, options.negatives, options.guidance)
    print(json.dumps(scores, indent=2), f"{time.monotonic() - started:.0f} s")
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)
        (options.report / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
        grid(draw(pipeline, showcase(), seed=7, guidance=options.guidance)).save(options.report / "grid.png")


if __name__ == "__main__":
    main()
