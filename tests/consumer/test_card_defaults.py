"""What a request leaves open, its model's card fills: in the plan, in the picture, in takeovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumer.intake.names import Meaning
from infra.claims.claims import Claim
from infra.models.cards import BUILT_IN, Cards
from infra.stores.memory import MemoryStore
from producer import AsyncClient
from producer.recipe import read_recipe
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import Text2Img, parse_manifest, validate_manifest
from schemas.plan import Plan, plan
from tests.worker_inside import TIMING, make_worker, running

ROOT = Path(__file__).parents[2]
CIRCLE = "a red circle on a blue background"


def planned(document: dict[str, Any], *models: str, limits: Limits | None = None) -> Plan:
    """The plan of a document, by a worker with these models."""
    cards = Cards.of(models)
    worker = make_worker(MemoryStore(), cards=cards, limits=limits or Limits())
    manifest = validate_manifest({"prompt": "x", "seed": 1} | document, Limits())
    return worker._inbox.claimer.plan(manifest, Meaning(cards.get(manifest.model or "doodle")))


async def left_by_a_dead_worker(store: MemoryStore, cards: Cards) -> Claim:
    """The claim of a request that says neither steps nor guidance."""
    await store.create("requests/cat.json", json.dumps({"prompt": "a cat", "width": 8, "height": 8}).encode())
    info = await store.head("requests/cat.json")
    assert info is not None
    dead = make_worker(store, cards=cards)
    dead.claims.session = "dead"
    held = (await dead._inbox.claimer.claim_object(info)).held
    assert held is not None
    return held.claim


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({}, (20, 4, "DPM++ 2M")),
        ({"cfg_scale": 7}, (20, 7, "DPM++ 2M")),
        ({"steps": 30}, (30, 4, "DPM++ 2M")),
        ({"scheduler": "ddim"}, (20, 4, "DDIM")),
        ({"scheduler": None, "steps": 30, "cfg_scale": 7}, (30, 7, "DPM++ 2M")),
        ({"model": "sd21"}, (30, 7, "DDIM")),
    ],
)
def test_a_card_fills_what_is_left_open_and_nothing_else(
    document: dict[str, Any], expected: tuple[int, float, str]
):
    """A number that is sent counts, even where it is the documented default."""
    found = planned(document)
    assert (found.steps, found.cfg_scale, found.scheduler) == expected


def test_what_is_filled_in_has_the_same_plan_as_what_is_sent():
    """So images of either stand in one result, and a model without a card's numbers plans as it always did."""
    assert planned({}).hash() == planned({"steps": 20, "cfg_scale": 4}).hash()
    documented = plan(
        validate_manifest({"prompt": "x", "seed": 1}),
        model="sd21",
        revision=next(card.revision for card in BUILT_IN if card.name == "sd21"),
        native_size=(768, 768),
        scheduler="DDIM",
        random_seed=0,
    )
    assert planned({"model": "sd21"}).hash() == documented.hash()


def test_limits_judge_what_is_drawn(tiny_folder: Path):
    """An operator with a limit below 30 steps still draws doodle by default; a default over a limit is refused."""
    assert planned({}, limits=Limits(max_steps=20)).steps == 20
    with pytest.raises(Rejected, match="steps is 20; this worker allows at most 19") as refused:
        planned({}, limits=Limits(max_steps=19))
    assert refused.value.field == "steps"
    with pytest.raises(Rejected, match="steps is 60; the scheduler LCM can do at most 50"):
        planned({"model": "mine", "scheduler": "LCM"}, f"mine={tiny_folder},steps=60")


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"width": 72, "height": 64}, "width is 72; model 'mine' draws multiples of 32, such as 64 or 96"),
        ({"width": 64, "height": 16}, "height is 16; model 'mine' draws multiples of 32, at least 32"),
    ],
)
def test_a_size_that_a_model_cannot_draw_is_refused_with_the_nearest_two(
    tiny_folder: Path, size: dict[str, int], message: str
):
    """At intake: the model need not be loaded for that."""
    with pytest.raises(Rejected, match=message):
        planned({"model": "mine", **size}, f"mine={tiny_folder},multiple=32")
    assert planned({"model": "mine", "width": 96}, f"mine={tiny_folder},multiple=32").height == 32


def test_a_body_of_the_sdk_leaves_open_what_its_author_did():
    """The bytes, and so the request's fingerprint, have only the fields that were set."""
    from producer.requests import parcel

    body = parcel(Text2Img(prompt="x", cfg_scale=7), id=None, express=False, limits=Limits()).body
    assert json.loads(body) == {"prompt": "x", "cfg_scale": 7}
    assert parse_manifest(body).chosen("steps") is None
    assert parse_manifest(body).chosen("cfg_scale") == 7


OLDER = Cards({card.name: replace(card, steps=30, cfg_scale=7) for card in BUILT_IN})


@pytest.mark.anyio
async def test_a_takeover_draws_what_the_first_claim_froze():
    """An older worker planned 30 steps at guidance 7; today's goes on with them."""
    store = MemoryStore()
    await left_by_a_dead_worker(store, OLDER)
    async with running(make_worker(store)), AsyncClient(store) as client:
        ended = await client.wait("cat", timeout=TIMING.lease + 120)
    assert (ended.status, ended.attempts) == ("succeeded", 2)
    assert (ended.parameters["steps"], ended.parameters["cfg_scale"]) == (30, 7)


@pytest.mark.anyio
async def test_a_takeover_is_judged_by_the_plan():
    """The body says nothing of steps; the plan has more than this worker allows."""
    claim = await left_by_a_dead_worker(MemoryStore(), OLDER)
    for most, may in ((30, True), (29, False)):
        worker = make_worker(MemoryStore(), limits=Limits(max_steps=most))
        assert await worker._fleet.may_take_over(claim) is may


@pytest.mark.parametrize("cfg_scale", [8.0, 1.0])
def test_a_negative_prompt_that_a_distilled_model_never_reads_is_told(
    tmp_path: Path, task: Any, studio: Any, cfg_scale: float
):
    """An LCM takes guidance as a number, so whatever the guidance there is no second row."""
    from diffusers import UNet2DConditionModel

    from consumer.engine.loading.registry import ModelRegistry
    from tests.studio import save_tiny

    folder = save_tiny(tmp_path / "lcm")
    config = UNet2DConditionModel.load_config(folder, subfolder="unet")
    UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 16}).save_pretrained(folder / "unet")
    cards = Cards.of([f"tiny={folder}"])
    assert (cards.get("tiny").steps, cards.get("tiny").cfg_scale) == (4, 7)
    ended = studio(ModelRegistry(cards)).draw(
        task("a", steps=2, cfg_scale=cfg_scale, negative_prompt="blue"),
        task("b", steps=2, cfg_scale=cfg_scale, negative_prompt=None),
    )
    text = "negative_prompt has no effect with model 'tiny', which is distilled"
    assert [one.warnings for one in (ended["a", 0], ended["b", 0])] == [(("ignored", text),), ()]


def test_a_real_worker_draws_by_the_cards(tmp_path: Path, tiny_folder: Path):
    """Dropped files, a batch's rows and the express lane: doodle 20 and 4, a plain SD 30 and 7, a turbo 4 and 0."""
    store = tmp_path / "store"
    bodies: dict[str, dict[str, Any]] = {
        "open": {"prompt": CIRCLE},
        "guided": {"prompt": CIRCLE, "cfg_scale": 7},
        "express/now": {"prompt": CIRCLE, "steps": 3},
        "sdlike": {"prompt": "x", "model": "sdlike"},
        "turbo": {"prompt": "x", "model": "turbo", "negative_prompt": "y"},
        "strict": {"prompt": "x", "model": "turbo", "negative_prompt": "y", "strict": True},
    }
    for name, body in bodies.items():
        path = store / "requests" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body))
    (store / "requests" / "wall.jsonl").write_text(json.dumps({"custom_id": "row", "prompt": CIRCLE}) + "\n")
    models = [f"sdlike={tiny_folder}", f"turbo={tiny_folder},steps=4,cfg=0"]
    options = [part for model in models for part in ("--models", model)]
    command = [
        "producer.cli",
        "worker",
        "--store",
        str(store),
        "--once",
        "--model",
        "doodle",
        "--devices",
        "cpu",
    ]
    subprocess.run(
        [sys.executable, "-m", *command, *options],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        timeout=600,
        check=True,
    )

    def result(id: str) -> dict[str, Any]:
        document: dict[str, Any] = json.loads((store / "results" / id / "result.json").read_text())
        return document

    def numbers(id: str) -> tuple[int, float]:
        assert result(id)["status"] == "succeeded", result(id)
        return result(id)["parameters"]["steps"], result(id)["parameters"]["cfg_scale"]

    assert {id: numbers(id) for id in ("open", "guided", "now", "wall/row", "sdlike", "turbo")} == {
        "open": (20, 4),
        "guided": (20, 7),
        "now": (3, 4),
        "wall/row": (20, 4),
        "sdlike": (30, 7),
        "turbo": (4, 0),
    }
    assert [note["code"] for note in result("turbo")["warnings"]] == ["ignored"]
    assert result("strict")["status"] == "failed"
    assert "negative_prompt has no effect" in result("strict")["failure"]["message"]
    again = read_recipe(store / "results" / "open" / "0.png").manifest
    assert (again["steps"], again["cfg_scale"], again["scheduler"]) == (20, 4, "DPM++ 2M")
