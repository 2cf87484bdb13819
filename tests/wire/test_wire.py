"""Bodies as they stand in the world: once written here, they must be read for ever.

Add files; never change one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.manifest import Img2Img, Inpainting, Text2Img, parse_manifest
from schemas.result import Result

HERE = Path(__file__).parent
BODIES = {"text2img": Text2Img, "img2img": Img2Img, "inpainting": Inpainting}


@pytest.mark.parametrize("name", sorted(BODIES))
def test_a_documented_body_is_read_as_what_it_is(name: str):
    """Every field arrives with its value, and the shape tells the task."""
    body = (HERE / "documented" / f"{name}.json").read_bytes()
    manifest = parse_manifest(body)
    assert isinstance(manifest, BODIES[name])
    said = manifest.model_dump(mode="json")
    assert {field: said[field] for field in json.loads(body)} == json.loads(body)


def test_the_documented_defaults_are_ours():
    """A prompt alone means: cfg 7, 30 steps, one image, a seed by lot, the model's own size."""
    manifest = parse_manifest(b'{"prompt": "a cat"}')
    assert isinstance(manifest, Text2Img)
    assert (manifest.cfg_scale, manifest.steps, manifest.number_of_images) == (7, 30, 1)
    assert (manifest.seed, manifest.negative_prompt) == (None, None)
    assert (manifest.width, manifest.height) == (None, None)


@pytest.mark.parametrize("path", sorted(HERE.glob("result-*.json")), ids=lambda path: path.stem)
def test_a_result_is_written_as_it_always_was(path: Path):
    """Byte for byte: other people's programs read these files."""
    assert Result.model_validate_json(path.read_bytes()).to_json() == path.read_bytes()
