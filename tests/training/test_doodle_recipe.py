"""doodle's recipe: scenes that say what they show, and a judge that can be trusted."""

from __future__ import annotations

import random

import pytest
from PIL import Image

from training.doodle import scenes
from training.doodle.judge import judge
from training.doodle.scenes import SIDE, Scene, Shape


def test_the_judge_is_right_about_every_true_drawing():
    """Background, count, kinds and colours of 150 drawn scenes are all read back."""
    rng = random.Random(11)
    for _ in range(150):
        scene = scenes.sample(rng)
        verdict = judge(scenes.draw(scene))
        assert verdict.background == scene.background, scene
        assert sorted((s.kind, s.colour) for s in verdict.shapes) == sorted(
            (s.kind, s.colour) for s in scene.shapes
        )


def test_the_judge_sees_nothing_on_a_plain_picture():
    """A flat colour has a background and no shapes."""
    verdict = judge(Image.new("RGB", (SIDE, SIDE), scenes.PALETTE["blue"]))
    assert verdict.background == "blue"
    assert verdict.shapes == ()


@pytest.mark.parametrize("wrong", ["square", "star", "ring"])
def test_the_judge_tells_kinds_apart(wrong: str):
    """A circle is not taken for another kind."""
    drawn = scenes.draw(Scene("white", (Shape("circle", "red", 64, 64, 40),), ""))
    assert judge(drawn).shapes[0].kind != wrong


def test_captions_use_only_known_words():
    """The tokenizer has one entry for each word that a caption can hold."""
    rng = random.Random(12)
    used = {word for _ in range(2000) for word in scenes.sample(rng).caption.split()}
    assert used <= set(scenes.WORDS)


def test_the_same_seed_draws_the_same_scene():
    """The training set is a function of its seed."""
    first, second = (scenes.sample(random.Random(4)) for _ in range(2))
    assert first == second
    assert scenes.draw(first).tobytes() == scenes.draw(second).tobytes()
