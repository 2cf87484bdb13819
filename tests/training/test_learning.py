"""doodle learns a shape that it does not know, and the judge sees it.

The judge is the project's own with one more template. All figures are for one seed; the bounds leave room for other
versions of torch.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.trainings import DOODLE, plus, pluses, prepare, train
from training.doodle.scenes import KINDS, PALETTE, colours_for

pytestmark = pytest.mark.slow

OLD = [
    f"a {colour} {kind} on a {ground} background"
    for colour, ground in (("red", "white"), ("blue", "yellow"), ("green", "pink"), ("black", "orange"))
    for kind in KINDS
]


@contextmanager
def judging_pluses() -> Iterator[None]:
    """The judge, who knows one shape more."""
    from training.doodle import judge

    def template(picture: Image.Image) -> Any:
        mask = np.asarray(picture.convert("L")) < 128
        rows, columns = np.nonzero(mask)
        cut = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        small = Image.fromarray(cut).convert("L").resize((32, 32), Image.Resampling.BOX)
        return np.asarray(small, float) / 255

    known = judge._templates()
    known["plus"] = template(plus("black", "white", radius=50))
    try:
        yield
    finally:
        del known["plus"]


def seen(pipeline: Any, prompts: list[str], seed: int) -> list[str]:
    """The kind of the largest shape of each picture; "" for none that is like any."""
    from training.doodle.evaluate import draw
    from training.doodle.judge import judge

    verdicts = [judge(picture) for picture in draw(pipeline, prompts, seed=seed)]
    largest = [max(v.shapes, key=lambda s: s.area, default=None) for v in verdicts]
    return [s.kind if s is not None and s.likeness >= 0.7 else "" for s in largest]


def examined(pipeline: Any) -> tuple[int, int, int]:
    """Of 12 prompts with the concept, how many show a plus; of 18 others, how many their shape, and a plus."""
    rng = random.Random(5)
    new, old = [], []
    for _ in range(12):
        ground = rng.choice(list(PALETTE))
        new.append(f"a {rng.choice(colours_for(ground))} sks shape on a {ground} background")
    for number in range(18):
        ground = rng.choice(list(PALETTE))
        kind, colour = KINDS[number % 6], rng.choice(colours_for(ground))
        old.append((kind, f"a {colour} {kind} on a {ground} background"))
    with judging_pluses():
        learned = seen(pipeline, new, 500)
        kept = seen(pipeline, [prompt for _, prompt in old], 700)
    right = sum(kind == wanted for kind, (wanted, _) in zip(kept, old, strict=True))
    return learned.count("plus"), right, kept.count("plus")


def test_the_judge_knows_the_plus():
    """Drawn ones are seen, and none of the old shapes is taken for one."""
    from training.doodle.judge import judge
    from training.doodle.scenes import Scene, Shape, draw

    with judging_pluses():
        for colour, ground in (("red", "white"), ("blue", "yellow"), ("white", "black")):
            (shape,) = judge(plus(colour, ground)).shapes
            assert (shape.kind, shape.colour) == ("plus", colour)
            assert shape.likeness > 0.9
        for kind in KINDS:
            (shape,) = judge(draw(Scene("white", (Shape(kind, "red", 64, 64, 38),), ""))).shapes
            assert shape.kind == kind


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pluses(tmp_path_factory.mktemp("pictures") / "pluses")


@pytest.fixture(scope="module")
def class_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The class pictures of the first training, for the others."""
    return tmp_path_factory.mktemp("class") / "class"


def trained(folder: Path, pictures: Path, kept: Path, /, **options: Any) -> Path:
    if kept.exists():
        shutil.copytree(kept, folder / "class")
    prepare(folder, DOODLE, pictures, instance_prompt="a sks shape", checkpoint_every=1000, **options)
    train(folder)
    if (folder / "class").exists() and not kept.exists():
        shutil.copytree(folder / "class", kept)
    return folder / "product"


def test_full_training_learns_and_keeps(pictures: Path, class_pictures: Path, tmp_path: Path):
    """With the family's defaults and class pictures."""
    from training.doodle.evaluate import load

    options = {"method": "full", "class_prompts": OLD, "class_pictures": 48}
    new, kept, spilled = examined(load(trained(tmp_path, pictures, class_pictures, **options)))
    assert new >= 7  # measured: 10; the untouched model draws none
    assert kept >= 14  # measured: 17
    assert spilled <= 1


def test_lora_training_learns_and_keeps(pictures: Path, class_pictures: Path, tmp_path: Path):
    """With the family's defaults and class pictures."""
    from training.doodle.evaluate import load

    options = {"method": "lora", "class_prompts": OLD, "class_pictures": 48}
    product = trained(tmp_path, pictures, class_pictures, **options)
    pipeline = load(DOODLE)
    pipeline.load_lora_weights(product)
    new, kept, spilled = examined(pipeline)
    assert new >= 7  # measured: 10
    assert kept >= 13  # measured: 16
    assert spilled <= 1


def test_without_a_prior_old_shapes_are_harmed(pictures: Path, tmp_path: Path):
    """At a high rate, the new shape spills into old prompts: what class pictures are for."""
    from training.doodle.evaluate import load

    options = {"learning_rate": 5e-3, "ema": 0.0, "schedule": "constant_with_warmup", "steps": 90}
    product = trained(tmp_path / "work", pictures, tmp_path / "none", method="lora", **options)
    pipeline = load(DOODLE)
    pipeline.load_lora_weights(product)
    new, kept, spilled = examined(pipeline)
    assert new >= 7  # measured: 9
    assert kept <= 11  # measured: 3
    assert spilled >= 2  # measured: 10
