"""The bundled model draws as well as its card says: the same judge and prompts, on a subset.

The floors lie just below what this subset measures, so that a few last bits of another processor do not fail it.
"""

from __future__ import annotations

import pytest

from infra.models.cards import BUNDLED

FOLDER = BUNDLED / "doodle"


@pytest.fixture(scope="module")
def scores() -> dict[str, float]:
    """Accuracies over 110 prompts, 20 steps each."""
    from training.doodle.evaluate import evaluate, load

    return evaluate(load(FOLDER), singles=60, pairs=30, negatives=20)


FLOORS = {
    "background": 0.98,
    "colour": 0.98,
    "shape": 0.98,
    "two shapes": 0.9,
    "two shapes and their colours": 0.9,
    "negative avoided": 0.8,
}


@pytest.mark.parametrize(("what", "floor"), FLOORS.items())
def test_the_model_is_as_good_as_its_card_says(scores: dict[str, float], what: str, floor: float):
    """Trained weights that were swapped, truncated or loaded wrongly fall far below these floors."""
    assert scores[what] >= floor


def test_the_judge_draws_as_the_card_says():
    """Training cannot import the worker's cards, so it has the numbers once more."""
    from infra.models.cards import Cards
    from training.doodle.evaluate import GUIDANCE, STEPS

    card = Cards.of().get("doodle")
    assert (card.steps, card.cfg_scale) == (STEPS, GUIDANCE)


def test_the_weights_are_small_and_safe():
    """fp16 safetensors, under 16 MB in all, and nothing that unpickles."""
    files = [f for f in FOLDER.rglob("*") if f.is_file()]
    assert {f.suffix for f in files} <= {".json", ".safetensors", ".md", ".png", ".txt"}
    assert sum(f.stat().st_size for f in files) < 16 << 20
