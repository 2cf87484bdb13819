"""ControlNets and IP-Adapters in a manifest and in a plan: what is wrong is said in the author's words."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import Rejected
from schemas.manifest import Text2Img, validate_manifest
from schemas.plan import Plan, plan, read_plan

NET = {"name": "canny", "image": "aGk="}
PICTURE = "iVBORw0KGgo" * 20


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"controlnet": NET}, "controlnet", "is an object; it should be a list [...]"),
        ({"controlnet": [{"image": "x"}]}, "controlnet.0.name", "is missing"),
        ({"controlnet": [{"name": "canny"}]}, "controlnet.0.image", "is missing"),
        ({"controlnet": [NET | {"image": ""}]}, "controlnet.0.image", "is empty"),
        ({"controlnet": [NET | {"image": [PICTURE]}]}, "controlnet.0.image", "is a list; it should be a valid string"),
        ({"controlnet": PICTURE}, "controlnet", "is a text; it should be a list [...]"),
        ({"controlnet": [PICTURE]}, "controlnet.0", "is a text; it should be an object {...} with name, scale"),
        ({"controlnet": [NET, NET | {"weight": 1}]}, "controlnet.1.weight", "known fields: end, image, name, scale"),
        ({"controlnet": [NET | {"scale": 3}]}, "controlnet.0.scale", "is 3; it should be less than or equal to 2"),
        ({"controlnet": [NET | {"start": 0.5, "end": 0.5}]}, "controlnet.0.end",
         "is 0.5; it should be more than start, which is 0.5"),
        ({"controlnet": [NET, NET | {"start": 1}]}, "controlnet.1.end", "is 1; it should be more than start"),
        ({"controlnet": [NET] * 5}, "controlnet", "names 5; at most 4 can be combined"),
        ({"ip_adapter": PICTURE}, "ip_adapter", "is a text; it should be an object {...} with name, scale, image"),
        ({"ip_adapter": {"scale": 1}}, "ip_adapter.image", "is missing"),
        ({"image": PICTURE, "mask_image": [PICTURE]}, "mask_image", "is a list of 1; inpainting repaints one"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_by_its_field(fields: dict[str, Any], field: str, words: str) -> None:
    """And no message holds a part of a picture."""
    with pytest.raises(Rejected) as caught:
        validate_manifest({"prompt": "x"} | fields)
    assert caught.value.field == field
    assert words in caught.value.message
    assert PICTURE[:8] not in caught.value.message


def made(**fields: Any) -> Plan:
    manifest = validate_manifest({"prompt": "x", "seed": 1} | fields)
    found = plan(
        manifest,
        model="m",
        revision="",
        native_size=(64, 64),
        scheduler="DDIM",
        random_seed=1,
        ip_adapter="face",
    )
    read = read_plan(found.document())
    assert read == found
    return found


def test_a_plan_holds_names_and_numbers_and_no_picture() -> None:
    """Without them it is written as before, so that older workers read it and its hash is theirs."""
    guided = made(controlnet=[NET | {"end": 0.5}], ip_adapter={"image": "aGk="})
    assert guided.document()["controlnet"] == [{"name": "canny", "scale": 1.0, "start": 0.0, "end": 0.5}]
    assert guided.document()["ip_adapter"] == {"name": "face", "scale": 0.6}
    assert "aGk=" not in str(guided.document())
    assert not {"controlnet", "ip_adapter"} & made().document().keys()
    assert len({made(controlnet=[NET | {"scale": s}]).hash() for s in (0.5, 1)} | {made().hash()}) == 3


def test_all_three_bodies_may_be_guided() -> None:
    for body in ({}, {"image": "aGk="}, {"image": "aGk=", "mask_image": "aGk="}):
        found = validate_manifest(
            {"prompt": "x", "controlnet": [NET], "ip_adapter": {"image": "aGk="}} | body
        )
        assert found.controlnet[0].name == "canny"
    assert Text2Img(prompt="x").controlnet == ()
