"""Where a request's pictures are found: whatever else is wrong with it, none goes unseen."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.manifest_parts import pictures_in


@pytest.mark.parametrize(
    ("document", "found"),
    [
        ({"prompt": "a"}, {}),
        ({"image": "i", "mask_image": "m"}, {"image": "i", "mask_image": "m"}),
        ({"image": ["a", "b"]}, {"image.0": "a", "image.1": "b"}),
        (
            {"controlnet": [{"name": "canny", "image": "c"}, {"name": "depth"}, {"image": "d"}]},
            {"controlnet.0.image": "c", "controlnet.2.image": "d"},
        ),
        ({"ip_adapter": {"image": "f", "scale": 1}}, {"ip_adapter.image": "f"}),
        ({"controlnet": {"image": "c"}, "ip_adapter": "i", "image": None, "metadata": {"image": "x"}}, {}),
        ({"controlnet": [7, ["image"], {"image": {"url": "s3://b/k.png"}}]},
         {"controlnet.2.image": {"url": "s3://b/k.png"}}),
    ],
)  # fmt: skip
def test_pictures_are_found_by_their_paths(document: dict[str, Any], found: dict[str, Any]) -> None:
    assert pictures_in(document) == found
