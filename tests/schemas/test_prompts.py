"""Prompt syntax of other programs is told, and plain words are not taken for it."""

from __future__ import annotations

import contextlib
import time

import pytest

from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from schemas.plan import Plan, plan
from schemas.text import infotext
from schemas.text.prompts import foreign_syntax, is_weighted, parts, plain, with_weights


def planned(**fields: object) -> Plan:
    scheduler = fields.pop("drawn_with", "Euler")
    manifest = validate_manifest({"prompt": "x", **fields})
    return plan(
        manifest, model="m", revision="", native_size=(64, 64), scheduler=str(scheduler), random_seed=0
    )


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a (red:1.5) circle", [[("a ", 1), ("red", 1.5), (" circle", 1)]]),
        ("a (red :.8) circle", [[("a ", 1), ("red", 0.8), (" circle", 1)]]),
        ("a (red:1,5) circle", [[("a ", 1), ("red", 1.5), (" circle", 1)]]),
        ("((red)) circle, (a)", [[("red", 1.21), (" circle, ", 1), ("a", 1.1)]]),
        ("a [red] circle", [[("a ", 1), ("red", 0.909091), (" circle", 1)]]),
        ("(a [(b:1.1)] c:1.3)", [[("a b c", 1.3)]]),
        ("a circle BREAK on (blue)", [[("a circle ", 1)], [(" on ", 1), ("blue", 1.1)]]),
        ("(a (b:1.2) BREAK c:0.5)", [[("a ", 0.5), ("b", 0.6), (" ", 0.5)], [(" c", 0.5)]]),
        (r"miku \(vocaloid\), \[x\]", [[("miku (vocaloid), [x]", 1)]]),
        ("a (frame of 16:9, (red:2))", [[("a ", 1), ("frame of 16:9, ", 1.1), ("red", 2.2)]]),
        ("(a:1.2, (b:2))", [[("a:1.2, ", 1.1), ("b", 2.2)]]),
        ("(lens 2:1.3)", [[("lens 2", 1.3)]]),
        ("(a:1.0) b", [[("a b", 1)]]),
        ("BREAK x BREAK", [[(" x ", 1)]]),
    ],
)
def test_weights_are_read_as_a1111_reads_them(text: str, read: list[list[tuple[str, float]]]):
    """And the plan says that they are; nothing is told, because nothing is ignored."""
    assert [list(part) for part in parts(text)] == read
    for fields in ({"prompt": text}, {"negative_prompt": text}):
        one = planned(**fields)
        assert (one.weights, one.notes) == (True, ())
    assert is_weighted(text) == (len(read) > 1 or any(weight != 1 for _, weight in read[0]))
    assert plain(text) == " ".join("".join(words for words, _ in part) for part in read)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a [red:green:0.5] circle", "prompt editing such as [a:b:0.5]"),
        ("[red:.5]", "prompt editing"),
        ("a [red|green] circle", "alternation such as [a|b]"),
        ("a circle AND a square", "the keyword AND (write it in small letters)"),
        ("a square AND(a circle)", "the keyword AND"),
        ("red++ circle", "weights such as word++"),
        ("(red circle)--", "weights such as word++"),
        ("a [red] circle)", "a ) without its ("),
        ("a ((red)", ""),
        ("a (b (red:1.2)", "a ( that is not closed"),
        ("(a:-1)", "a weight of -1; it should be from 0 to 10"),
        ("(a:99)", "a weight of 99"),
        ("(" * 60 + "a:1.2" + ")" * 60, "more than 50 brackets"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_name(text: str, words: str):
    """Never drawn as words; the message quotes nothing of the prompt."""
    if not words:  # no mark is whole, so it is ordinary text
        assert not planned(prompt=text).weights
        return
    for fields, field in (({"prompt": text}, "prompt"), ({"negative_prompt": text}, "negative_prompt")):
        with pytest.raises(Rejected) as refused:
            planned(**fields)
        assert (refused.value.code, refused.value.field) == ("unsupported", field)
        assert words in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "<lora:x:1>",
        "<lyco:x:0.5>",
        "<hypernet:x>",
        "__colour__",
        "a {red|green} circle",
        "a (red:1.3 circle",
        "(a:.5, (b)",
    ],
)
def test_foreign_syntax_is_told_in_the_plan(text: str):
    """In the prompt and in the negative prompt; the message quotes nothing of it."""
    assert [(n.code, n.field) for n in planned(prompt=text).notes] == [("prompt_syntax", "prompt")]
    assert [n.field for n in planned(negative_prompt=text).notes] == ["negative_prompt"]


def test_a1111_s_clients_mean_weights_by_parentheses():
    """Elsewhere a lone pair is ordinary text."""
    assert with_weights("a (red) circle, (big one)") == "a (red:1.1) circle, (big one:1.1)"
    for text in ("a ((red)) (big)", "a [red] (big)", r"\(red\) (big)", "a () b", ":( :)"):
        assert with_weights(text) == text


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
            "a (16:9 frame",
            "a (lens f:2.8x frame",
            "a :( face: 3 tears",
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
    one = planned(prompt=text)
    assert (one.notes, one.weights) == ((), False)
    assert not {"weights"} & one.document().keys()


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
        "(a:1.2) BREAK ",
        "(a:1.2)",
    ):
        text = part * (8000 // len(part))
        with contextlib.suppress(Rejected):
            planned(prompt=text)
        with_weights(text)
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
