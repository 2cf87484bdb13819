"""Whatever is dropped, the keys that the protocol makes of it can stand side by side in a directory."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from schemas import layout

segments = st.sampled_from(
    ["a", "b", "000001", "0.png", "result.json", "batch.json", "a.json", "é", "..", "000001.released"]
)
paths = st.lists(segments, min_size=1, max_size=4).map("/".join)


def written_for(id: str) -> set[str]:
    return {
        layout.claim_key(id, 1),
        layout.released_key(id, 1),
        layout.status_key(id),
        layout.result_key(id),
        layout.image_key(id, 0, "png"),
        f"{layout.result_folder(id)}batch.json",
    }


@given(one=paths, other=paths, row=st.one_of(st.none(), segments))
@example(one="cats", other="cats/000001", row="000001")
def test_no_key_is_another_ones_folder(one: str, other: str, row: str | None):
    """Two dropped files, and a row of the first as a batch: no object stands where a folder must be."""
    ids = [layout.request_id(f"requests/{one}.json"), layout.request_id(f"requests/{other}.json")]
    ids.append(layout.row_id(ids[0], row, 3))
    keys = set().union(*(written_for(id) for id in ids))
    for key in keys:
        assert not any(k.startswith(f"{key}/") for k in keys), key
    assert all(layout.is_id(id) for id in ids)
