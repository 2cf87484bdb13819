"""JSON that Python would read and nobody could answer: it is refused in words, wherever it stands."""

from __future__ import annotations

import json

import pytest

from schemas.errors import Rejected
from schemas.text.strictjson import DEEPEST, load_object


def nested(levels: int) -> bytes:
    """An object with lists inside each other, `levels` containers in all."""
    return b'{"metadata": ' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize(
    "text",
    [
        r'{"prompt": "\ud83d"}',
        r'{"prompt": "x", "metadata": {"a": ["\uDE00"]}}',
        r'{"\ud83d": 1}',
        r'{"prompt": "\ude00\ud83d"}',
    ],
)
def test_half_a_character_is_refused_wherever_it_stands(text: str):
    """No answer could repeat it, as name or as value."""
    with pytest.raises(Rejected, match="unpaired surrogate") as caught:
        load_object(text.encode())
    assert caught.value.code == "invalid_json"
    caught.value.message.encode()


def test_whole_characters_are_taken_however_they_are_written():
    """An emoji as its two escapes, and a text that merely looks like half of one."""
    document = {"a": "\N{GRINNING FACE}", "b": "\\ud83d"}
    assert load_object(json.dumps(document).encode()) == document


def test_a_repeated_name_that_nobody_can_write_is_told_without_it():
    """The message shows the escape; the field, which must be text, stays empty."""
    with pytest.raises(Rejected, match=r"\\ud83d.* twice") as caught:
        load_object(rb'{"\ud83d": 1, "\ud83d": 2}')
    assert caught.value.field is None


def test_absurd_nesting_is_refused_long_before_anything_breaks_on_it():
    """Python reads nearly a thousand levels, and what writes results stops at 255."""
    assert load_object(nested(DEEPEST))
    for levels in (DEEPEST + 1, 300, 980, 100_000):
        with pytest.raises(Rejected, match="nested too deeply"):
            load_object(nested(levels))
