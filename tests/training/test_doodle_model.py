"""The bundled model obeys: the same judge and prompts as its model card, on a subset."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "consumer" / "models" / "doodle"


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    """Accuracies over 84 prompts, 20 steps each."""
    from training.doodle.evaluate import evaluate, load

    return evaluate(load(FOLDER), singles=40, pairs=20, negatives=12)


def test_backgrounds_and_colours_are_obeyed(scores: dict[str, float]):
    """At least 95 in 100 pictures have the background and the colour that the prompt names."""
    assert scores["background"] >= 0.95
    assert scores["colour"] >= 0.95


def test_shapes_are_obeyed(scores: dict[str, float]):
    """At least 90 in 100 pictures show the shape that the prompt names."""
    assert scores["shape"] >= 0.9


def test_both_shapes_of_a_pair_are_drawn(scores: dict[str, float]):
    """At least 70 in 100 pictures show both shapes of a two-shape prompt, in order."""
    assert scores["two shapes"] >= 0.7


def test_a_negative_prompt_is_avoided(scores: dict[str, float]):
    """A colour that a seed draws on its own is not drawn once it is forbidden."""
    assert scores["negative avoided"] >= 0.9


def test_the_weights_are_small_and_safe():
    """fp16 safetensors, under 16 MB in all, and nothing that unpickles."""
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md", ".png", ".txt"}
    assert sum(f.stat().st_size for f in files) < 16 << 20
