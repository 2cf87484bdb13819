"""A real worker draws images of two passes, says which models drew them, and its pictures can be drawn again."""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from consumer.intake.claiming import RequestClaimer
from consumer.intake.fleet import Capabilities
from infra.models import published
from infra.models.cards import Cards
from infra.models.removal import remove
from infra.stores.memory import MemoryStore
from infra.stores.open import open_store
from producer.recipe import read_recipe
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from schemas.models import PublishedCard
from schemas.plan import Plan
from tests.studio import save_tiny_refiner, save_tiny_sdxl
from tests.worker_process import drop, result, worker

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio
ASKED: dict[str, Any] = {
    "model": "base",
    "prompt": "a red dot",
    "steps": 4,
    "seed": 3,
    "width": 32,
    "height": 32,
}


def picture(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def drawn(store: Path, name: str) -> Any:
    with Image.open(store / "results" / name / "0.png") as image:
        return np.asarray(image.convert("RGB")).astype(int)


async def test_two_passes_from_a_file_to_a_picture_and_back(tiny_folder: Path, tmp_path: Path) -> None:
    """With the worker's own models and a published refiner; what cannot be ends with its field."""
    base = save_tiny_sdxl(tmp_path / "models" / "base", tiny_folder)
    refiner = save_tiny_refiner(tmp_path / "models" / "refiner", base)
    shared = shutil.copytree(refiner, tmp_path / "models" / "shared")
    store = tmp_path / "store"
    store.mkdir()
    async with open_store(str(store)) as opened:
        card = PublishedCard(name="shared", kind="full", base="refiner", family="unet-x", licence="MIT")
        await published.publish(opened, shared, card)
    from_picture = {k: v for k, v in ASKED.items() if k not in ("width", "height")} | {
        "image": picture(40, 32)
    }
    requests: dict[str, dict[str, Any]] = {
        "large": {**ASKED, "upscale": {"scale": 1.5, "strength": 0.6}},
        "both": {**ASKED, "upscale": {}, "refiner": {"model": "refiner", "at": 0.5}},
        "shared": {**ASKED, "refiner": {"model": "shared", "at": 0.5}},
        "picture": {**from_picture, "upscale": {"scale": 2}},
        "words": {**ASKED, "prompt": "a red dot"},
        "weighed": {**ASKED, "prompt": "a (red:3) dot", "strict": True},
        "odd": {**from_picture, "upscale": {"scale": 1.3}},
        "odd-list": {**from_picture, "image": [from_picture["image"]], "upscale": {"scale": 1.3}},
        "unknown": {**ASKED, "refiner": {"model": "nobody"}},
        "other": {**ASKED, "refiner": {"model": "doodle"}},
    }
    for name, request in requests.items():
        drop(store, f"{name}.json", request)
    options = ("--model", "base", "--models", f"base={base}", "--models", f"refiner={refiner}")
    with worker(store, "--renderer", "diffusers", *options):
        ended = {name: result(store, name) for name in requests}
        again = {
            name: read_recipe(store / "results" / name / "0.png").manifest for name in ("both", "shared")
        }
        for name, manifest in again.items():
            drop(store, f"{name}-again.json", manifest)
            ended[f"{name}-again"] = result(store, f"{name}-again")

    failures = {name: one["failure"]["field"] for name, one in ended.items() if one["status"] != "succeeded"}
    assert failures == {
        **dict.fromkeys(("odd", "odd-list"), "upscale.scale"),
        **dict.fromkeys(("unknown", "other"), "refiner.model"),
    }
    for name in ("odd", "odd-list"):
        assert ended[name]["failure"]["message"].endswith("draws multiples of 8: 2 (80 x 64)")
    assert "known are base, doodle" in ended["unknown"]["failure"]["message"]
    assert "'doodle' is of the family doodle" in ended["other"]["failure"]["message"]
    assert abs(drawn(store, "words") - drawn(store, "weighed")).max() > 1
    assert (ended["words"]["parameters"].get("weights"), ended["weighed"]["parameters"]["weights"]) == (
        None,
        True,
    )
    sizes = {name: drawn(store, name).shape[:2] for name in ("large", "both", "shared", "picture")}
    assert sizes == {"large": (48, 48), "both": (64, 64), "shared": (32, 32), "picture": (64, 80)}
    assert [ended["large"]["images"][0][side] for side in ("width", "height")] == [48, 48]
    assert "refiner" not in ended["large"]
    assert (ended["both"]["model"]["name"], ended["both"]["refiner"]["name"]) == ("base", "refiner")
    told = ended["shared"]["refiner"]
    assert (told["name"], told["revision"], told["source"], told["licence"]) == (
        "shared",
        "1",
        "models/shared/1",
        "MIT",
    )
    assert again["shared"]["refiner"] == {"model": "shared@1", "at": 0.5}
    for name in again:
        assert abs(drawn(store, name) - drawn(store, f"{name}-again")).max() <= 1
    plan = ended["both"]["parameters"]
    assert plan["upscale"] == {"scale": 2.0, "strength": 0.5, "steps": 4}
    assert plan["refiner"] == {"model": "refiner", "at": 0.5, "revision": "", "version": None}


async def test_a_refiner_is_frozen_in_the_plan_and_kept(tmp_path: Path) -> None:
    """By its version, which is not removed while the claim needs it; a worker without it leaves the claim alone."""
    store, folder = MemoryStore(), tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"x")
    for _ in range(2):
        card = PublishedCard(
            name="fine", kind="full", base="", family="unet-1", native_width=8, native_height=8
        )
        await published.publish(store, folder, card)
    claimer = RequestClaimer(store, None, Cards.of(), "sdxl", Limits(), lambda: 0.0, random.Random(1))  # type: ignore[arg-type]

    async def planned(**fields: Any) -> Plan:
        asked = validate_manifest({"prompt": "x", **fields})
        return claimer.plan(asked, await claimer.names.read(asked, 0.0))

    plan = await planned(refiner={"model": "fine@1"})
    assert plan.refiner is not None
    assert (plan.refiner.reference, plan.refiner.revision) == ("fine@1", "1")
    await store.put("claims/a/000001", json.dumps({"plan": plan.document()}).encode())
    with pytest.raises(Rejected, match="needed by a"):
        await remove(store, "fine@1")
    ink = PublishedCard(name="ink", kind="lora", base="sdxl", family="sdxl")
    await published.publish(store, folder, ink)
    for fields, words in (
        ({"refiner": {"model": "fine"}, "model": "sd15"}, "goes on from an SDXL model, and 'sd15'"),
        ({"refiner": {"model": "sd21"}}, "must be an SDXL model, and 'sd21'"),
        ({"refiner": {"model": "ink"}}, "name a whole model"),
        ({"refiner": {"model": "fone"}}, "known are .*did you mean 'fine'"),
    ):
        with pytest.raises(Rejected, match=words) as refused:
            await planned(**fields)
        assert refused.value.field == "refiner.model"


def test_a_worker_that_knows_the_refiner_may_have_the_request() -> None:
    """The name that counts is the refiner's, not the model's."""
    ours = Capabilities.own(["sdxl"], [], Limits())
    other = Capabilities.own(["sdxl", "fine"], [], Limits())
    error = Rejected("unknown_model", "no model named 'fine'", field="refiner.model")
    body = b'{"prompt": "x", "model": "sdxl", "refiner": {"model": "fine"}}'
    assert other.can_draw(error, body, len(body), batch=False, refused_by=ours)
    assert not ours.can_draw(error, body, len(body), batch=False, refused_by=ours)
