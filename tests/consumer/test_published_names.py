"""What names in a manifest mean, and that a slow or impossible download costs nobody else anything."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest

from consumer.intake.claiming import RequestClaimer
from consumer.intake.fleet import Capabilities, Fleet
from consumer.intake.names import Names
from consumer.jobs.models import ModelFetcher
from infra.claims.claim import Claim
from infra.models import published
from infra.models.cache import ModelCache
from infra.models.cards import BUILT_IN, Cards
from infra.stores.memory import MemoryStore
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from schemas.models import BUILT_IN_NAMES, PublishedCard
from schemas.plan import Plan
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
async def shelf():
    """A store that counts its listings, and may hold downloads up."""
    return SlowStore()


class SlowStore(MemoryStore):
    gate = None
    fetched = 0
    listed = 0

    async def fetch_file(self, key, path, *, progress=None):
        self.fetched += 1
        if self.gate is not None:
            await self.gate.wait()
        return await super().fetch_file(key, path, progress=progress)

    async def list(self, prefix, *, start_after=""):
        self.listed += prefix.startswith("models/")
        async for info in super().list(prefix, start_after=start_after):
            yield info


@pytest.fixture
def publish(shelf, tmp_path):
    async def make(name, kind="full", **fields):
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        (folder / "a.safetensors").write_bytes(name.encode())
        card = PublishedCard(name=name, kind=kind, **{"base": "doodle", "family": "doodle", **fields})
        return await published.publish(shelf, folder, card)

    return make


def manifest(**fields):
    return validate_manifest({"prompt": "x", "seed": 1, **fields})


def planner(store, cards=None, clock=None, default="doodle"):
    claimer = RequestClaimer(
        store, None, cards or Cards.of(), default, Limits(), clock or Clock(), random.Random(1)
    )

    async def plan(seen=0.0, **fields):
        asked = manifest(**fields)
        return claimer.plan(asked, await claimer.names.read(asked, seen))

    return plan


def test_the_built_in_names_are_known_everywhere():
    assert tuple(sorted(card.name for card in BUILT_IN)) == BUILT_IN_NAMES
    assert all(card.family for card in BUILT_IN)


async def test_versions_are_frozen_in_the_plan(shelf, publish):
    """By number, and a LoRA by its hash too; a plan without published models is what it always was."""
    await publish("dog")
    ink = await publish("ink", kind="lora", weight=0.7)
    plan = planner(shelf)
    both = await plan(model="dog", loras=[{"name": "ink"}])
    assert (both.model, both.model_version, both.model_revision) == ("dog", 1, "1")
    assert (both.loras[0].name, both.loras[0].weight) == ("ink", 0.7)
    assert (both.lora_versions, both.lora_hashes) == ({"ink": 1}, {"ink": ink.files[0].sha256})
    assert Plan.model_validate(both.document()) == both
    bare = (await plan()).document()
    assert not {"model_version", "lora_versions", "lora_hashes"} & bare.keys()
    as_model = await plan(model="ink")
    assert (as_model.model, as_model.model_version) == ("doodle", None)
    assert (as_model.loras[0].weight, as_model.lora_versions) == (0.7, {"ink": 1})


async def test_a_popular_name_means_what_was_published_as_a_refiner_too(shelf, publish):
    """As it does as the model; before that it is of a family that refines nothing."""
    plan = planner(shelf)
    with pytest.raises(Rejected, match="'flux-dev'; a refiner must be an SDXL model"):
        await plan(model="sdxl", refiner={"model": "flux-dev"})
    await publish("flux-dev", base="sdxl", family="sdxl")
    assert (await plan(seen=-1.0, model="sdxl", refiner={"model": "flux-dev"})).refiner.version == 1


async def test_a_popular_name_that_is_published_means_what_was_published(shelf, publish, tmp_path):
    """Nobody's name changes its meaning with an upgrade; a model of the operator's own goes first, as always."""
    plan = planner(shelf)
    before = await plan(model="z-image-turbo")
    assert (before.model_version, before.steps, before.scheduler) == (None, 9, "Flow Euler")
    await publish("z-image-turbo")
    after = await plan(model="z-image-turbo")
    assert (after.model_version, after.steps, after.scheduler) == (1, 20, "DPM++ 2M")
    (tmp_path / "model_index.json").write_text("{}")
    await publish("shine", kind="lora", base="z-image-turbo")
    shine = await plan(model="shine")
    assert (shine.model, shine.model_version) == ("z-image-turbo", 1)
    own = planner(shelf, cards=Cards.of([f"z-image-turbo={tmp_path}"]))
    assert (await own(model="z-image-turbo")).model_version is None


async def test_a_model_is_drawn_as_its_base_where_its_card_says_nothing(shelf, publish):
    """Steps, guidance and size of doodle for what was trained from it; what the card says comes first."""
    await publish("dog")
    plan = planner(shelf)
    like = await plan(model="dog")
    assert (like.steps, like.cfg_scale, like.scheduler, like.width) == (20, 4, "DPM++ 2M", 128)
    await publish("cat", scheduler="DDIM", steps=9, cfg_scale=0, native_width=64, native_height=64)
    own = await plan(model="cat")
    assert (own.steps, own.cfg_scale, own.scheduler, own.width) == (9, 0, "DDIM", 64)
    await publish("cow", base="elsewhere", scheduler="Oiler")
    assert (await plan(model="cow")).steps == 30


async def test_manifests_share_a_look_that_began_after_they_came(shelf, publish):
    """What was published before a manifest was dropped is found; an explicit version never moves."""
    clock = Clock()
    plan = planner(shelf, clock=clock)
    with pytest.raises(Rejected, match="no model named 'dog'"):
        await plan(model="dog")
    await publish("dog")
    clock.now = 1.0
    assert (await plan(model="dog", seen=0.5)).model_version == 1
    listed = shelf.listed
    assert (await plan(model="dog", seen=0.9)).model_version == 1
    assert shelf.listed == listed
    await publish("dog")
    assert (await plan(model="dog", seen=1.0)).model_version == 2
    assert (await plan(model="dog@1", seen=1.0)).model_version == 1


async def test_a_workers_own_name_comes_first(shelf, publish, tmp_path):
    """An operator's --models wins over what is published under that name; a version says which is meant."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model_index.json").write_text("{}")
    await publish("dog")
    plan = planner(shelf, Cards.of([f"dog={tmp_path / 'own'}"]))
    assert (await plan(model="dog")).model_version is None
    assert (await plan(model="dog@1")).model_version == 1


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model": "dgo"}, "unknown_model", "did you mean 'dog'"),
        ({"model": "dog@2"}, "unknown_model", "dog@2"),
        ({"model": "dog@x"}, "unknown_model", "names no version"),
        ({"loras": [{"name": "inc"}]}, "unknown_lora", "ink"),
        ({"loras": [{"name": "dog"}]}, "unsupported", "name it as the model"),
        (
            {"loras": [{"name": "old"}]},
            "unsupported",
            "made for models of the family sd1; doodle is of doodle",
        ),
        ({"model": "dog", "loras": [{"name": "old"}]}, "unsupported", "the family sd1; dog is of doodle"),
        ({"model": "ink", "loras": [{"name": "ink"}]}, "unsupported", "'ink' twice"),
        ({"loras": [{"name": "ink"}, {"name": "ink@1"}]}, "unsupported", "'ink' twice"),
        ({"model": "lost"}, "unknown_model", "a LoRA for 'nowhere'"),
    ],
)
async def test_what_is_refused_at_intake(shelf, publish, fields, code, words):
    """Before anything is fetched or loaded, in the names that the caller used."""
    await publish("dog")
    await publish("ink", kind="lora")
    await publish("old", kind="lora", family="sd1", base="sd15")
    await publish("lost", kind="lora", base="nowhere")
    with pytest.raises(Rejected) as refused:
        await planner(shelf)(**fields)
    assert refused.value.code == code
    assert words in refused.value.message


async def test_a_base_that_was_changed_is_said(shelf, publish):
    await publish("ink", kind="lora", base_revision="1")
    plan = await planner(shelf)(model="ink")
    assert [note.code for note in plan.notes] == ["base_changed"]


async def test_every_worker_may_take_over_a_published_model(shelf, publish):
    """None announces it, and each that knows of published models can draw it; an older one is not asked."""
    await publish("dog")
    plan = await planner(shelf)(model="dog")
    own = Capabilities.own(["doodle"], [], Limits())
    clock = Clock()
    fleet = Fleet(shelf, "me", own, lease=30, clock=clock)
    claim = Claim.model_validate(
        {
            "id": "a", "epoch": 1, "session": "dead", "nonce": "n", "fingerprint": "f", "attempt": 1,
            "frozen": {"text": '{"prompt": "x", "model": "dog"}'}, "plan": plan.document(),
        }
    )  # fmt: skip
    assert await fleet.may_take_over(claim)
    facts = json.loads(json.dumps(own.facts()))
    assert Capabilities.read(facts).published
    assert not Capabilities.read({k: v for k, v in facts.items() if k != "published"}).published


async def test_a_slow_download_holds_nobody_up(shelf, publish, tmp_path):
    """Its requests wait; others are drawn meanwhile, more of them than the worker has room for; it beats on."""
    await publish("dog")
    shelf.gate = asyncio.Event()
    fetcher = ModelFetcher(shelf, ModelCache(tmp_path / "cache"))
    for n in range(6):
        body = {"prompt": "x", "model": "dog", "seed": n, "steps": 1}
        await shelf.create(f"requests/express/slow{n}.json", json.dumps(body).encode())
    worker = make_worker(shelf, models=fetcher, ahead=2)
    async with running(worker):
        await until(lambda: shelf.fetched)
        for n in range(8):
            await shelf.create(f"requests/other{n}.json", b'{"prompt": "x", "steps": 1}')
        for n in range(8):
            await until_over(shelf, f"other{n}")
        beats = await shelf.head("workers/inside")
        await until(lambda: shelf._objects["workers/inside"].info.etag != beats.etag)
        assert await shelf.head("results/slow0/result.json") is None
        shelf.gate.set()
        slow = [await until_over(shelf, f"slow{n}") for n in range(6)]
    assert {end["status"] for end in slow} == {"succeeded"}
    assert {end["model"]["source"] for end in slow} == {"models/dog/1"}
    assert shelf.fetched == 1
    assert not fetcher.cache._used


async def test_a_drain_does_not_wait_for_a_download(shelf, publish, tmp_path):
    """Its requests are given back, without counting as an attempt."""
    await publish("dog")
    shelf.gate = asyncio.Event()
    await shelf.create("requests/a.json", b'{"prompt": "x", "model": "dog", "steps": 1}')
    worker = make_worker(shelf, models=ModelFetcher(shelf, ModelCache(tmp_path / "cache")))
    async with running(worker):
        await until(lambda: shelf.fetched)
    released = json.loads((await shelf.get("claims/a/000001.released")).body)
    assert released["reason"] == "drain"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (
            lambda store: store.put("models/dog/1/a.safetensors", b"x"),
            "models/dog/1/a.safetensors is damaged",
        ),
        (lambda store: store.delete("models/dog/1/a.safetensors"), "dog@1 is not whole in the store"),
    ],
)
async def test_what_cannot_be_fetched_ends_the_request_by_name(shelf, publish, tmp_path, harm, words):
    await publish("dog")
    await harm(shelf)
    await shelf.create("requests/a.json", b'{"prompt": "x", "model": "dog", "steps": 1}')
    worker = make_worker(shelf, models=ModelFetcher(shelf, ModelCache(tmp_path / "cache")))
    async with running(worker):
        end = await until_over(shelf, "a")
    assert (end["status"], end["failure"]["code"]) == ("failed", "model_unavailable")
    assert words in end["failure"]["message"]


async def test_names_without_a_store_are_the_workers_own():
    names = Names(Cards.of(), "doodle", None, Clock())
    assert (await names.read(manifest(), 0.0)).card.name == "doodle"
    with pytest.raises(Rejected):
        await names.read(manifest(model="dog"), 0.0)


async def until_over(store, id):
    await until(lambda: f"results/{id}/result.json" in store._objects)
    return json.loads(store._objects[f"results/{id}/result.json"].body)


async def test_a_published_default_model_is_fetched_at_the_start(shelf, publish, tmp_path):
    """Of a LoRA its base; what is not published is named with what is."""
    await publish("dog")
    await publish("ink", kind="lora")
    fetcher = ModelFetcher(shelf, ModelCache(tmp_path / "cache"))
    name, fetched = await fetcher.fetch_default("dog", Cards.of())
    assert (name, Path(fetched.folder).is_dir()) == ("dog@1", True)
    fetched.release()
    assert (await fetcher.fetch_default("ink@1", Cards.of()))[0] == "doodle"
    assert (await fetcher.fetch_default("z-image-turbo", Cards.of()))[0] == "z-image-turbo"  # of the hub
    await publish("z-image-turbo")
    assert (await fetcher.fetch_default("z-image-turbo", Cards.of()))[0] == "z-image-turbo@1"
    with pytest.raises(Rejected, match=r"no model named 'dgo'; known are .*dog.*did you mean 'dog'"):
        await fetcher.fetch_default("dgo", Cards.of())
    plan = planner(shelf, default="dog")
    assert (await plan()).model_version == 1
