"""The JSON Schemas that are checked in are those of the models, and say the same as them."""

from __future__ import annotations

import jsonschema
import pytest

from schemas.errors import Rejected
from schemas.export import FOLDER, documents, text
from schemas.manifest import validate_manifest


def test_the_schemas_on_disk_are_fresh():
    """Run `python -m schemas.export` after a change of the contract."""
    on_disk = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert on_disk == {f"{name}.schema.json": text(document) for name, document in documents().items()}


@pytest.mark.parametrize("name", sorted(documents()))
def test_every_schema_is_a_schema(name: str):
    """Other tools can use it: it is valid under its own dialect."""
    jsonschema.Draft202012Validator.check_schema(documents()[name])


@pytest.mark.parametrize(
    ("document", "good"),
    [
        ({"prompt": "a cat"}, True),
        ({"prompt": "a cat", "width": 768, "height": 512, "seed": None, "cfg_scale": 7.5}, True),
        ({"prompt": "a cat", "image": "aGk=", "strength": 0.5}, True),
        ({"prompt": "a cat", "image": "aGk=", "mask_image": "aGk="}, True),
        ({"prompt": ""}, False),
        ({"prompt": "a cat", "width": 767}, False),
        ({"prompt": "a cat", "steps": 0}, False),
        ({"prompt": "a cat", "stepps": 3}, False),
        ({"prompt": "a cat", "mask_image": "aGk="}, False),
        ({"prompt": "a cat", "seed": "5"}, False),
        ({}, False),
    ],
)
def test_schema_and_models_agree(document: dict[str, object], good: bool):
    """What the schema allows, the models take, and the other way round."""
    validator = jsonschema.Draft202012Validator(documents()["manifest"])
    assert validator.is_valid(document) == good
    try:
        validate_manifest(document)
    except Rejected:
        assert not good
    else:
        assert good


@pytest.mark.parametrize(("name", "number"), [("steps", 30), ("cfg_scale", 7)])
def test_what_a_model_decides_has_no_default_that_a_client_would_send(name: str, number: int):
    """Forms and generated clients send a schema's default, and a number that is sent replaces the model's own."""
    for body in documents()["manifest"]["$defs"].values():
        if {name, "prompt"} <= body["properties"].keys():
            field = body["properties"][name]
            assert "default" not in field
            assert f"the model's own, or {number} where its card has none" in field["description"]
    left_open = validate_manifest({"prompt": "a cat"})
    assert (left_open.chosen(name), getattr(left_open, name)) == (None, number)
