"""Publishing models: numbers, names, races, removal and damage, over every store."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from infra.models import published, removal
from infra.stores.store import WrongContent
from schemas.errors import Rejected
from schemas.models import BUILT_IN_NAMES, PublishedCard, card_key, split_reference

if TYPE_CHECKING:
    from pathlib import Path

    from infra.stores.open import OpenableStore

pytestmark = pytest.mark.anyio


def card(name: str = "my-dog", **fields: object) -> PublishedCard:
    return PublishedCard.model_validate({"name": name, "kind": "full", "base": "doodle", **fields})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder, with what has no place in a store beside it."""
    made = tmp_path / "model"
    (made / "unet").mkdir(parents=True)
    (made / "unet" / "model.safetensors").write_bytes(b"weights")
    (made / "model_index.json").write_text("{}")
    (made / ".DS_Store").write_bytes(b"x")
    return made


async def test_a_published_name_means_its_newest_version(store: OpenableStore, folder: Path):
    """Files first, the card last; the second publication moves the name; both versions can be named."""
    first = await published.publish(store, folder, card())
    (folder / "unet" / "model.safetensors").write_bytes(b"better weights")
    second = await published.publish(store, folder, card())

    assert (first.version, second.version) == (1, 2)
    assert [f.path for f in first.files] == ["model_index.json", "unet/model.safetensors"]
    assert (await published.resolve(store, "my-dog")).version == 2
    assert (await published.resolve(store, "my-dog@1")) == first
    assert (await store.get("models/my-dog/1/unet/model.safetensors")).body == b"weights"
    assert [m.version for m in await published.history(store, "my-dog")] == [1, 2]


async def test_names_can_be_moved_and_moved_back(store: OpenableStore, folder: Path):
    for _ in range(3):
        await published.publish(store, folder, card())
    await published.use(store, "my-dog@1")
    assert (await published.resolve(store, "my-dog")).version == 1
    await published.rollback(store, "my-dog")
    assert (await published.resolve(store, "my-dog")).version == 3
    assert [m.version for m in await published.history(store, "my-dog")] == [1, 2, 3, 1, 3]
    await published.publish(store, folder, card("cat"))
    with pytest.raises(Rejected, match="no earlier version"):
        await published.rollback(store, "cat")


async def test_a_name_moves_only_to_another_version(store: OpenableStore, folder: Path):
    """That it means a version already is no move; a name without a version says nothing."""
    for _ in range(2):
        await published.publish(store, folder, card())
    assert (await published.use(store, "my-dog@2")).number == 2
    assert len(await published.history(store, "my-dog")) == 2
    with pytest.raises(Rejected, match="name the version too, as in my-dog@1"):
        await published.use(store, "my-dog")


async def test_two_publishers_at_once_get_two_numbers(
    store: OpenableStore, folder: Path, request: pytest.FixtureRequest
):
    """Eight publications of one name: eight versions, and the name means the highest."""
    if "moto" in request.node.callspec.id:
        pytest.skip("moto checks and then acts, so it is no referee for races")
    cards = await asyncio.gather(*(published.publish(store, folder, card()) for _ in range(8)))
    assert sorted(c.version for c in cards) == list(range(1, 9))
    assert (await published.resolve(store, "my-dog")).version == 8
    moves = [m.number for m in await published.history(store, "my-dog")]
    assert moves == list(range(1, len(moves) + 1))


async def test_moves_at_once_each_have_their_place(
    store: OpenableStore, folder: Path, request: pytest.FixtureRequest
):
    """Moves, rollbacks and publications of one name: no number twice or missing, and the highest one decides."""
    if "moto" in request.node.callspec.id:
        pytest.skip("moto checks and then acts, so it is no referee for races")
    for _ in range(3):
        await published.publish(store, folder, card())
    moves = [published.use(store, f"my-dog@{version}") for version in (1, 2, 1, 2)]
    moves += [published.rollback(store, "my-dog") for _ in range(2)]
    await asyncio.gather(*moves, published.publish(store, folder, card()))
    history = await published.history(store, "my-dog")
    assert [move.number for move in history] == list(range(1, len(history) + 1))
    assert all(move.version in (1, 2, 3, 4) for move in history)
    assert (await published.resolve(store, "my-dog")).version == history[-1].version


async def test_a_slow_publisher_does_not_move_the_name_back(store: OpenableStore, folder: Path):
    """Version 1 is finished after version 2: the name goes on meaning version 2."""
    number = await published._take_number(store, "my-dog", "slow", "")
    await published.publish(store, folder, card())
    slow = await published.publish(store, folder, card(), nonce="slow")
    assert (number, slow.version) == (1, 1)
    assert (await published.resolve(store, "my-dog")).version == 2


async def test_a_retry_finds_its_number(store: OpenableStore, folder: Path):
    """Broken off after some files: the same nonce goes on; when it was complete nothing is written again."""
    await published._take_number(store, "my-dog", "training/300", "training")
    await store.create("models/my-dog/1/unet/model.safetensors", b"weights", metadata={})
    with pytest.raises(WrongContent):  # not known to be the same
        await published.publish(store, folder, card(), nonce="training/300")
    await store.delete("models/my-dog/1/unet/model.safetensors")
    one = await published.publish(store, folder, card(), nonce="training/300")
    again = await published.publish(store, folder, card(), nonce="training/300")
    assert one == again
    assert one.version == 1
    with pytest.raises(Rejected):
        await published.resolve(store, "my-dog@2")


async def test_a_version_without_a_card_is_none(store: OpenableStore, folder: Path):
    """What a publisher that died has left is not listed, and cannot be named."""
    await published._take_number(store, "my-dog", "dead", "")
    await store.create("models/my-dog/1/unet/model.safetensors", b"half")
    assert await published.list_models(store) == []
    with pytest.raises(Rejected, match="no model is published as 'my-dog'"):
        await published.resolve(store, "my-dog")
    with pytest.raises(Rejected, match="doodle is a built-in model"):
        await published.resolve(store, "doodle@2")
    assert (await published.publish(store, folder, card())).version == 2


@pytest.mark.parametrize("name", ["", "a b", "a/b", "..", "dog@2", ".dog", "n" * 101, *BUILT_IN_NAMES])
async def test_names_that_nobody_may_publish_under(store: OpenableStore, folder: Path, name: str):
    with pytest.raises(Rejected, match="name is"):
        await published.publish(store, folder, card(name))
    assert [info async for info in store.list("models/")] == []


@pytest.mark.parametrize("file", ["model.bin", "code.py", "a b.json", "card.ckpt", "unet/x.pt"])
async def test_files_that_are_not_published(store: OpenableStore, folder: Path, file: str):
    """Pickles and code, by name, before anything is stored."""
    (folder / file).write_bytes(b"x")
    with pytest.raises(Rejected, match="no pickles, no code"):
        await published.publish(store, folder, card())
    assert [info async for info in store.list("models/")] == []


@pytest.mark.parametrize("text", ["dog@", "dog@0", "dog@x", "dog@1@2", "dog@-1"])
def test_references_that_name_no_version(text: str):
    with pytest.raises(Rejected, match="names no version"):
        split_reference(text)


async def test_removal_spares_what_is_needed(store: OpenableStore, folder: Path):
    """Not what the name means, nor what a claim's plan names; the numbers are not used again."""
    for _ in range(3):
        await published.publish(store, folder, card())
    with pytest.raises(Rejected, match="is what my-dog means now"):
        await removal.remove(store, "my-dog@3")
    plan = {"model": "my-dog", "model_version": 2, "lora_versions": {}}
    await store.create("claims/a/000001", json.dumps({"plan": plan}).encode())
    other = {"model": "doodle", "lora_versions": {"my-dog": 1}}
    await store.create("claims/b/000001", json.dumps({"plan": other}).encode())
    for version, request in ((2, "a"), (1, "b")):
        with pytest.raises(Rejected, match=f"my-dog@{version} is needed by {request}"):
            await removal.remove(store, f"my-dog@{version}")
    with pytest.raises(Rejected, match="is needed by"):
        await removal.remove(store, "my-dog")
    assert (await published.resolve(store, "my-dog")).version == 3

    for key in ("claims/a/000001", "claims/b/000001"):
        await store.delete(key)
    base = {"base": {"name": "my-dog", "revision": "1"}, "pictures": {}}
    await store.create("training-claims/t/000001", b"{}")
    await store.create("training-results/t/frozen.json", json.dumps(base).encode())
    with pytest.raises(Rejected, match="my-dog@1 is needed by the training t"):
        await removal.remove(store, "my-dog@1")
    await store.delete("training-claims/t/000001")  # it has ended
    await removal.remove(store, "my-dog@1")
    assert [c.version for c in await published.list_models(store)] == [2, 3]
    assert [c.version for c in await removal.remove(store, "my-dog")] == [2, 3]
    with pytest.raises(Rejected, match="no model is published"):
        await published.resolve(store, "my-dog")
    assert [i.key async for i in store.list("models/my-dog/3/")] == []
    assert (await published.publish(store, folder, card())).version == 4
    assert (await published.resolve(store, "my-dog")).version == 4


async def test_damage_is_found(store: OpenableStore, folder: Path):
    """A file that was replaced, and one that is missing, by key."""
    await published.publish(store, folder, card())
    assert await removal.verify(store, "my-dog") == []
    await store.put("models/my-dog/1/unet/model.safetensors", b"Weights")
    await store.delete("models/my-dog/1/model_index.json")
    faults = await removal.verify(store, "my-dog@1")
    assert len(faults) == 2
    assert "models/my-dog/1/model_index.json is missing" in faults
    assert any("models/my-dog/1/unet/model.safetensors is damaged" in fault for fault in faults)
    await store.put("models/my-dog/1/card.json", b"{")
    for reference in ("my-dog", "my-dog@1"):
        [fault] = await removal.verify(store, reference)
        assert fault.startswith("models/my-dog/1/card.json cannot be read")
    for reference in ("my-dog@2", "my-cat", "my dog"):
        with pytest.raises(Rejected, match="no model is published"):
            await removal.verify(store, reference)


async def test_a_card_of_a_newer_program_is_read(store: OpenableStore, folder: Path):
    """Unknown fields are ignored; a damaged card is no version."""
    made = await published.publish(store, folder, card())
    document = json.loads(made.to_json()) | {"colour": "green"}
    await store.put(card_key("my-dog", 1), json.dumps(document).encode())
    assert await published.resolve(store, "my-dog") == made
    document["files"][0]["path"] = "../../etc/passwd"
    await store.put(card_key("my-dog", 1), json.dumps(document).encode())
    with pytest.raises(Rejected):
        await published.resolve(store, "my-dog")
