"""What `dreamdrop clean --trainings` removes, and what it never touches."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infra.stores.directory.store import DirectoryStore
from infra.stores.open import open_store
from producer.cli import app, mount_all
from producer.trainings.retention import Unreadable, remove, survey
from schemas import layout
from schemas.models import PublishedCard, card_key
from tests.producer.training_store import FakeTrainer, drop

pytestmark = pytest.mark.anyio

DAY = 86_400.0
PICTURE = layout.TRAINING_UPLOADS + "{}.png"


def picture(name: str) -> dict[str, object]:
    """Fields of a training with one uploaded picture."""
    return {"archive": None, "pictures": [{"image": PICTURE.format(name)}]}


def put(root: Path, key: str, body: bytes = b"x") -> None:
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


def grow(root: Path, days: float) -> None:
    """Let everything in the store be so old."""
    for folder, _, names in os.walk(root):
        for name in names:
            os.utime(Path(folder, name), (time.time() - days * DAY,) * 2)


async def end(store: DirectoryStore, id: str, *, well: bool, **fields: object) -> None:
    """A training that has ended, with a checkpoint, class pictures, a report and an uploaded picture."""
    drop(store.root, id, **fields)
    trainer = FakeTrainer(store)
    held = await trainer.take(id)
    folder = f"{layout.TRAINING_RESULTS}{id}/"
    for name in ("model.safetensors", layout.CHECKPOINT_COMMIT):
        put(store.root, f"{folder}{layout.CHECKPOINTS}000000004.000001/{name}")
    put(store.root, f"{folder}{layout.CLASS_PICTURES}0.png")
    put(store.root, f"{folder}frozen.json", b"{}")
    if well:
        await trainer.draw(id, 4)
        await trainer.publish(held)
    else:
        await trainer.fail(held, "no picture can be read")


def card(store: DirectoryStore, training: str) -> None:
    """A published model that names a training."""
    facts = PublishedCard(name="my-dog", version=2, kind="lora", base="sd21", training=training)
    put(store.root, card_key("my-dog", 2), facts.to_json())


def files(root: Path, prefix: str = "") -> set[str]:
    return {
        str(p.relative_to(root)) for p in (root / prefix).rglob("*") if p.is_file() and ".meta" not in p.parts
    }


@pytest.fixture
async def store(tmp_path: Path):
    async with open_store(str(tmp_path / "store")) as opened:
        assert isinstance(opened, DirectoryStore)
        yield opened


async def clean(store: DirectoryStore, days: float = 30, *, failed: bool = False) -> list[str]:
    found = await survey(store, days * DAY, failed=failed)
    await remove(store, found)
    return [old.id for old in found.going]


async def test_an_old_training_goes_with_all_that_it_left(store: DirectoryStore):
    """Also a nested one, and the pictures that were uploaded for them; what is younger, and strangers' files, stay."""
    for id in ("old", "cats/old", "cats"):
        await end(store, id, well=id == "old", **picture(id.replace("/", "-")))
        put(store.root, PICTURE.format(id.replace("/", "-")))
    put(store.root, PICTURE.format("nobodys"))
    put(store.root, "uploads/a.zip")  # not of our client: a lifecycle rule's
    put(store.root, "training-results/strangers/notes.txt")
    grow(store.root, 31)
    await end(store, "young", well=False, **picture("old"))
    young = files(store.root, "training-results/young")
    assert await clean(store) == ["cats", "cats/old", "old"]
    left = {key for key in files(store.root) if key.startswith(("training", "uploads"))}
    assert left == young | {
        "uploads/a.zip", "training-results/strangers/notes.txt", PICTURE.format("old")
    }  # fmt: skip
    assert not (store.root / "training-results" / "cats").exists()


async def test_what_can_go_on_by_itself_stays(store: DirectoryStore):
    """Trainings that wait or are claimed, what they go on from, and their pictures, however old they are."""
    for id in ("source", "claimed-source", "again"):
        await end(store, id, well=False, **picture(id))
    drop(store.root, "again", **picture("again"))  # somebody drops it once more
    drop(store.root, "waiting", resume_from="source", **picture("waiting"))
    drop(store.root, "claimed", resume_from="claimed-source", **picture("claimed"))
    await FakeTrainer(store).take("claimed")
    put(store.root, "training-results/claimed/checkpoints/000000004.000001/checkpoint.json")
    for name in ("source", "claimed-source", "again", "waiting", "claimed"):
        put(store.root, PICTURE.format(name))
    before = files(store.root)
    grow(store.root, 400)
    found = await survey(store, 30 * DAY)
    assert (found.going, found.open) == ([], ["again", "claimed-source", "source"])
    await remove(store, found)
    assert files(store.root) == before


async def test_what_a_published_model_names_stays_readable(store: DirectoryStore):
    """Its result, request, report and pictures stay; its checkpoints and class pictures go, as does its upload."""
    await end(store, "dog", well=True, **picture("dog"))
    put(store.root, PICTURE.format("dog"))
    card(store, "dog")
    grow(store.root, 31)
    before = files(store.root)
    assert (await survey(store, 30 * DAY)).totals()["checkpoints_of_published"] == 1
    assert await clean(store) == ["dog"]
    folder = "training-results/dog/"
    assert before - files(store.root) == {
        f"{folder}checkpoints/000000004.000001/model.safetensors",
        f"{folder}checkpoints/000000004.000001/checkpoint.json",
        f"{folder}class/0.png",
        PICTURE.format("dog"),
    }
    assert await clean(store) == []
    (store.root / card_key("my-dog", 2)).unlink()  # `models remove`
    assert await clean(store) == ["dog"]
    assert files(store.root, folder) == set()


async def test_failed_takes_only_what_published_nothing(store: DirectoryStore):
    """A training that went well keeps its checkpoints, and so its pictures."""
    for id, well in (("good", True), ("bad", False)):
        await end(store, id, well=well, **picture(id))
        put(store.root, PICTURE.format(id))
    grow(store.root, 31)
    good = files(store.root, "training-results/good") | {PICTURE.format("good")}
    assert await clean(store, failed=True) == ["bad"]
    assert {key for key in files(store.root) if key.startswith(("training", "uploads"))} == good


async def test_a_training_that_cannot_be_read_might_need_anything(store: DirectoryStore):
    """Half a file: nothing goes, and the error names it."""
    await end(store, "old", well=False)
    grow(store.root, 31)
    put(store.root, "trainings/half.json", b'{"name": "x", "resume_')
    with pytest.raises(Unreadable, match=r"trainings/half\.json cannot be read"):
        await clean(store)
    assert (store.root / "training-results/old/result.json").exists()


async def test_what_is_asked_for_since_the_survey_stays(store: DirectoryStore):
    """`train continue` comes between the dry look and the removal; a picture is named again."""
    for id in ("a", "b"):
        await end(store, id, well=False)
    put(store.root, PICTURE.format("shared"))
    grow(store.root, 31)
    found = await survey(store, 30 * DAY)
    assert len(found.uploads) == 1
    drop(store.root, "a-to-8", resume_from="a", **picture("shared"))
    await remove(store, found)
    assert (store.root / "training-results/a/checkpoints/000000004.000001/checkpoint.json").exists()
    assert (store.root / PICTURE.format("shared")).exists()
    assert files(store.root, "training-results/b") == set()


async def test_what_waits_is_read_once_for_all_that_goes(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """It may hold megabytes of pictures; its key is looked at before each removal all the same."""
    for id in ("a", "b", "c"):
        await end(store, id, well=False)
    drop(store.root, "waiting")
    grow(store.root, 31)
    found = await survey(store, 30 * DAY)
    reads = []
    real = store.get

    async def noted(key: str, **options: object) -> object:
        reads.append(key)
        return await real(key, **options)

    monkeypatch.setattr(store, "get", noted)
    await remove(store, found)
    assert reads == ["trainings/waiting.json"]
    assert [old.id for old in found.going] == ["a", "b", "c"]


async def test_a_crash_leaves_no_half_checkpoint_and_no_free_id(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """After each delete: a checkpoint's commit file goes before its files, the result last; the next run ends it."""
    await end(store, "old", well=False)
    grow(store.root, 31)
    order = []
    real = store.delete

    async def noted(key: str, *, etag: str | None = None) -> None:
        order.append(key)
        await real(key, etag=etag)

    monkeypatch.setattr(store, "delete", noted)
    await clean(store)
    order = [key for key in order if key.startswith(layout.TRAINING_RESULTS)]
    assert order[0].endswith(layout.CHECKPOINT_COMMIT)
    assert order[-1] == "training-results/old/result.json"
    assert len(order) == 5


def test_the_command_says_what_would_go_and_then_removes_it(tmp_path: Path):
    """The dry run changes nothing; requests are not touched."""
    mount_all()
    put(tmp_path, "results/cat/result.json", b"{}")
    put(tmp_path, PICTURE.format("old"), b"12345")
    grow(tmp_path, 40)
    words = ["clean", "--trainings", "--older-than", "30d", "--store", str(tmp_path)]
    dry = CliRunner().invoke(app, words)
    assert dry.exit_code == 0
    assert "0 trainings, checkpoints of 0 with published models, and 1 uploaded pictures" in dry.output
    assert (tmp_path / PICTURE.format("old")).exists()
    document = json.loads(CliRunner().invoke(app, [*words, "--apply", "--json"]).output)
    assert (document["removed"], document["uploads"], document["bytes"]) == (True, 1, 5)
    assert not (tmp_path / PICTURE.format("old")).exists()
    assert (tmp_path / "results/cat/result.json").exists()
