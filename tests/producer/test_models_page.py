"""The page of published models and the model picker, over HTTP in front of a store."""

from __future__ import annotations

import httpx
import pytest

from infra.models import published
from infra.stores.open import open_store
from producer.recipe import _request_of
from producer.web.app import create_app
from producer.web.settings import FacadeSettings
from schemas.models import PublishedCard

pytestmark = pytest.mark.anyio


async def test_published_models_are_shown_with_a_picture(tmp_path):
    """Name, kind, trigger words, versions; the picture that the card names, and no other file."""
    folder = tmp_path / "model"
    (folder / "validation").mkdir(parents=True)
    (folder / "validation" / "0.png").write_bytes(b"\x89PNG picture")
    (folder / "lora.safetensors").write_bytes(b"weights")
    card = PublishedCard(
        name="ink", kind="lora", base="doodle", trigger_words=("<sks>",), validation=("validation/0.png",)
    )
    async with open_store(str(tmp_path / "store")) as store:
        await published.publish(store, folder, card)
        await published.publish(store, folder, card)
        await published.use(store, "ink@1")
    app = create_app(FacadeSettings(store=str(tmp_path / "store")))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client,
    ):
        page = (await client.get("/m")).text
        home = (await client.get("/")).text
        picture = await client.get("/m/ink/1/validation/0.png")
        others = [
            (await client.get(f"/m/ink/{rest}")).status_code
            for rest in ("1/lora.safetensors", "1/card.json", "3/validation/0.png", "1/validation/1.png")
        ]
    assert "now version 1; published: 2, 1" in page
    assert "&lt;sks&gt;" in page
    assert "LoRA of doodle" in page
    assert '<option value="ink" data-picture="/m/ink/1/validation/0.png" data-defaults="{' in home
    assert ">ink (LoRA, version 1)</option>" in home
    assert (picture.content, picture.headers["content-type"]) == (b"\x89PNG picture", "image/png")
    assert others == [404] * 4


def test_a_recipe_names_the_versions_that_drew_it():
    """So that the same again is drawn with the same weights, also when the names mean others by then."""
    recipe = {"task": "text2img", "prompt": "x", "model": "my-dog", "model_version": 2, "model_revision": "2"}
    recipe |= {
        "loras": [{"name": "ink", "weight": 0.5}, {"name": "own", "weight": 1}],
        "lora_versions": {"ink": 3},
    }
    again = _request_of(recipe).manifest
    assert again["model"] == "my-dog@2"
    assert again["loras"] == [{"name": "ink@3", "weight": 0.5}, {"name": "own", "weight": 1}]
