"""Keys and the ids in them."""

from __future__ import annotations

import pytest

from schemas import layout


@pytest.mark.parametrize("id", ["cat", "cats/a", "batch/line-000001", "cat~0a1b2c3d"])
def test_a_result_key_names_its_id(id: str):
    """Whoever lists `results/` finds the id of each result manifest in its key."""
    assert layout.parse_result(layout.result_key(id)) == id


@pytest.mark.parametrize(
    "key",
    ["results/cat/0.png", "results/result.json", "results//result.json", "requests/cat/result.json", ""],
)
def test_other_keys_are_not_results(key: str):
    """An image, a stranger's file and another folder have no id to offer."""
    assert layout.parse_result(key) is None
