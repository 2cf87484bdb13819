"""The `parameters` text: written for other programs, read back without loss."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.manifest import validate_manifest
from schemas.text import infotext

RECIPE: dict[str, Any] = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "steps": 20,
    "scheduler": "Euler a",
    "cfg_scale": 7.0,
    "seed": 5,
    "width": 512,
    "height": 768,
    "model": "sd15",
}

hard = st.text(st.sampled_from('ab,:"\\\n <>{}赤é😀#(0)')).map(str.strip)
prompts = (
    hard | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=80)
).filter(lambda text: "Negative prompt:" not in text and "<lora:" not in text)
recipes = st.fixed_dictionaries(
    {
        "prompt": prompts.map(str.strip),
        "negative_prompt": prompts.map(str.strip),
        "steps": st.integers(1, 150),
        "scheduler": prompts.map(str.strip),
        "cfg_scale": st.floats(0, 50),
        "seed": st.integers(0, 2**63 - 1),
        "width": st.integers(1, 256).map(lambda n: n * 8),
        "height": st.integers(1, 256).map(lambda n: n * 8),
        "model": prompts.map(str.strip),
    },
    optional={
        "strength": st.floats(0.001, 1),
        "clip_skip": st.integers(2, 12),
        "loras": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.from_regex(r"[a-z0-9_./-]{1,20}", fullmatch=True),
                    "weight": st.integers(-400, 400).map(lambda n: n / 100),
                }
            ),
            min_size=1,
            max_size=3,
        ),
    },
)


def test_the_text_is_the_community_s():
    """Prompt, negative prompt, and one line of pairs; the noise is told to be the CPU's."""
    assert infotext.write(RECIPE | {"cfg_scale": 7.5, "clip_skip": 2}) == (
        "a red circle\n"
        "Negative prompt: blue\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 5, Size: 512x768, Model: sd15, Clip skip: 2, "
        "RNG: CPU, Version: Dreamdrop"
    )


@given(recipes)
def test_what_is_written_is_read(recipe: dict[str, Any]):
    """Newlines, commas, quotes, colons and any script come back, and every number exactly."""
    expected = {key: value for key, value in recipe.items() if value != ""}
    assert infotext.read(infotext.write(recipe)) == {"prompt": ""} | expected


@given(st.text())
def test_any_text_can_be_read(text: str):
    """Whatever other programs wrote, reading it ends in a prompt, not in an error."""
    assert isinstance(infotext.read(text)["prompt"], str)


def test_loras_stand_in_the_prompt():
    """As other programs expect them; read, they are a field again and the request is valid."""
    text = infotext.write(RECIPE | {"loras": [{"name": "ink", "weight": 0.8}]})
    assert text.startswith("a red circle <lora:ink:0.8>\n")
    found = infotext.read(text)
    assert (found["prompt"], found["loras"]) == ("a red circle", [{"name": "ink", "weight": 0.8}])
    assert validate_manifest(found).loras[0].name == "ink"
    assert infotext.read("x <lora:ink>")["loras"] == [{"name": "ink", "weight": 1.0}]


def test_few_pairs_are_prompt():
    """A last line such as `style: oil, mood: calm` belongs to the prompt."""
    assert infotext.read("a cat\nstyle: oil, mood: calm") == {"prompt": "a cat\nstyle: oil, mood: calm"}


def test_a_schedule_type_names_the_scheduler():
    """Newer writers split `DPM++ 2M Karras` in two; it is put together again."""
    text = "x\nSteps: 9, Sampler: DPM++ 2M, Schedule type: Karras, Seed: 1, Strange: a:b, Size: huge"
    found = infotext.read(text)
    assert found == {"prompt": "x", "steps": 9, "scheduler": "DPM++ 2M Karras", "seed": 1}


@pytest.mark.parametrize("text", ["a" * 400_000, "a: 1, " + "b " * 200_000, "x" + " " * 400_000 + "x"])
def test_a_long_text_of_a_stranger_is_read_in_one_go(text: str):
    """A picture may carry a megabyte of text; a search that begins anew at each letter would take hours."""
    assert "Steps" not in infotext.pairs(text)


@pytest.mark.parametrize(
    "pairs",
    [
        "Size: ²x², CFG scale: nan, Steps: ²",
        "Size: 9x-9, CFG scale: inf, Denoising strength: 1e999",
        f"Size: {'9' * 20}x8, Seed: {'9' * 5000}, Steps: 1e3",
    ],
)
def test_hostile_numbers_are_left_out(pairs: str):
    """`Size: ²x²` raised ValueError, and `CFG scale: nan` became a request that is not JSON."""
    found = infotext.read(f"a red circle\n{pairs}, Model: m, Version: x")
    assert found == {"prompt": "a red circle", "model": "m"}
