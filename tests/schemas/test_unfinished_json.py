"""JSON that ends too early is told apart from JSON that is wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import Rejected
from schemas.text.strictjson import load_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=4), st.booleans(), st.integers(min_value=0))
def test_every_beginning_of_a_document_is_unfinished(document: dict[str, object], ascii: bool, cut: int):
    """Wherever a copy stops, the text so far is not refused as wrong."""
    whole = json.dumps(document, ensure_ascii=ascii).encode("utf-8", "surrogatepass")
    part = whole[: cut % len(whole)]
    with pytest.raises(Rejected) as refused:
        load_object(part)
    assert refused.value.unfinished


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1,}',
        "{'a': 1}",
        '{"a" 1}',
        '{"a": truth}',
        '{"a": 1} {"b": 2}',
        '{"a": 1}\n{"b": 2',
        "[1, 2]",
        '{"a": NaN}',
        '{"a": "\\x41"}',
        '{"a": "\n"}',
        '{"a": 01}',
        "\x00\x00\x00",
    ],
)
def test_wrong_json_is_not_taken_for_unfinished(text: str):
    """More text could not make these right, so they are answered at once."""
    with pytest.raises(Rejected) as refused:
        load_object(text.encode())
    assert not refused.value.unfinished
