"""Prompt syntax of other programs is told, and plain words are not taken for it."""

from __future__ import annotations

import time

import pytest

from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.plan import Plan, plan
from schemas.text import infotext
from schemas.text.prompts import foreign_syntax


def planned(**fields: object) -> Plan:
    scheduler = fields.pop("drawn_with", "Euler")
    manifest = validate_manifest({"prompt": "x", **fields})
    return plan(
        manifest, model="m", revision="", native_size=(64, 64), scheduler=str(scheduler), random_seed=0
    )


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a (red:1.5) circle",
            "a (red :.8) circle",
            "a (red:1,5) circle",
            "((red)) circle",
            "(a [b] c:1.3)",
        ),
        *(
            "a [red] circle",
            "a [red:green:0.5] circle",
            "[red:.5]",
            "a [red|green] circle",
            "a {red|green} circle",
        ),
        *("a circle BREAK on blue", "a circle AND a square", "a square AND(a circle)"),
        *("<lora:x:1>", "<lyco:x:0.5>", "<hypernet:x>", "red++ circle", "(red circle)--", "__colour__"),
        r"miku \(vocaloid\)",
    ],
)
def test_foreign_syntax_is_told_in_the_plan(text: str):
    """In the prompt and in the negative prompt; the message quotes nothing of it."""
    assert [(n.code, n.field) for n in planned(prompt=text).notes] == [("prompt_syntax", "prompt")]
    assert [n.field for n in planned(negative_prompt=text).notes] == ["negative_prompt"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a red circle",
            "a red circle (large)",
            "size 3:2",
            "R AND D",
            "BREAK",
            "a (16:9) frame",
            "C++ code: a book",
        ),
        *(
            "time 12:30 (noon)",
            "a: b",
            "salt and pepper",
            "a - b -- c",
            "(a) and (b)",
            "a < b > c",
            "snake_case__",
        ),
        *("[]", "1 < 2 : 3 > 2", "an em-dash -- there", "{curly}", "https://example.com/(a:b)", "1+1=2"),
    ],
)
def test_plain_words_are_not_taken_for_syntax(text: str):
    """Parentheses, ratios and capitals are ordinary text."""
    assert foreign_syntax(text) == []


def test_hostile_prompts_are_searched_at_once():
    """No pattern takes quadratic time."""
    began = time.process_time()
    for part in (
        "(",
        "((",
        "[",
        "[a|",
        "{",
        "__a",
        "<a:",
        "a:1",
        "a :  ",
        "a++",
        "\\(",
        "[a:",
        " " * 9 + "a",
    ):
        foreign_syntax(part * (8000 // len(part)))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("text", "weight"), [(".8", 0.8), ("0,8", 0.8), ("+1", 1), ("1e-1", 0.1), ("-0.5", -0.5)]
)
def test_a_tags_weight_is_read_in_any_spelling(text: str, weight: float):
    """`.8` was read as 1 without a word."""
    assert infotext.split_loras(f"a <lora:x:{text}> b") == ("a b", [{"name": "x", "weight": weight}])
    assert infotext.split_loras(f"a <lora:x: {text} :{text}>")[1] == [{"name": "x", "weight": weight}]


@pytest.mark.parametrize(
    "tag", ["<lora:x:strong>", "<lora:x:1e999>", "<lora:x:0.8:0.5>", "<lora:x:1:lbw=a>", "<lora:>"]
)
def test_a_tag_that_cannot_be_read_stays_where_it_is(tag: str):
    """Another weight for the UNet, or block weights, would draw another picture."""
    assert infotext.split_loras(f"a {tag}") == (f"a {tag}", [])


def test_seeds_that_pass_the_largest_are_told():
    """They go on from 0."""
    notes = planned(seed=2**63 - 2, number_of_images=3).notes
    assert [note.code for note in notes] == ["seed_wrapped"]
    assert planned(seed=2**63 - 3, number_of_images=3).notes == ()


def test_one_warning_does_not_replace_another():
    """A strength that text2img ignores left no other warning in the result."""
    notes = planned(seed=2**63 - 2, number_of_images=3, strength=0.5, scheduler="DPM++ 2S a").notes
    assert {note.code for note in notes} == {"seed_wrapped", "scheduler_replaced", "ignored"}


def test_a_scheduler_that_stands_in_for_another_is_told():
    """`DPM++ 2S a` is not drawn as `DPM++ 2S` without a word."""
    assert [note.code for note in planned(scheduler="DPM++ 2S a Karras").notes] == ["scheduler_replaced"]
    assert planned(scheduler="DPM++ 2S Karras").notes == ()


def test_more_steps_than_a_scheduler_can_do_are_refused():
    """LCM with 51 steps failed in the pipeline; also where LCM is the model's own."""
    assert planned(steps=50, drawn_with="LCM").steps == 50
    with pytest.raises(Rejected) as caught:
        planned(steps=51, drawn_with="LCM")
    assert (caught.value.field, caught.value.message) == (
        "steps",
        "steps is 51; the scheduler LCM can do at most 50",
    )
