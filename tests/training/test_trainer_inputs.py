"""What a trainer does about its store and its inputs, in this process; nothing is trained."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from infra.claims.claims import Timing
from infra.claims.trainings import TrainingStore
from infra.models import published
from infra.models.cards import BUNDLED
from infra.stores.memory import MemoryStore
from infra.stores.open import open_store
from schemas import layout
from schemas.errors import Rejected, StoreUnavailable
from schemas.models import PublishedCard
from schemas.result import Frozen, Result, utc_now
from schemas.training import parse_training, validate_training
from tests.trainings import specks
from training.control import go_on_with
from training.lease.base_models import BaseModels
from training.lease.inputs import Inputs
from training.lease.job import Job
from training.lease.trainer import Trainer, TrainerSettings, make_claims
from training.pictures import read_folder

pytestmark = pytest.mark.anyio

BODY = {"name": "new", "base": "doodle", "instance_prompt": "sks"}
SOON = Timing(beat=0.05, lease=0.5, sweep=(0.05, 0.1), max_attempts=1)


def trainer_on(store: Any, work: Path, patience: float = 60.0) -> Trainer:
    view = TrainingStore(store)
    settings = TrainerSettings(timing=SOON, work=work, once=True, patience=patience)
    inputs = Inputs(store, BaseModels.of(()).on(store))
    return Trainer(make_claims(view, "me", SOON, utc_now), view, inputs, settings, versions={})


class WithoutUploads(MemoryStore):
    """A store in which one prefix cannot be read."""

    async def fetch_file(self, key: str, path: Path, **options: Any) -> str:
        raise StoreUnavailable(f"{key}: access denied")


async def test_a_training_that_the_store_interrupts_is_given_back(tmp_path: Path):
    """The trainer lives on and beats, so nobody else would ever take what it keeps."""
    store = WithoutUploads()
    body = {**BODY, "pictures": [{"image": "uploads/a.png"}]}
    await store.create("trainings/a.json", json.dumps(body).encode())
    trainer = trainer_on(store, tmp_path)
    async with asyncio.timeout(60):
        await trainer.run()
    result = json.loads((await store.get("training-results/a/result.json")).body)
    assert (result["status"], result["failure"]["code"]) == ("failed", "worker_crashed")
    assert "access denied" in result["failure"]["message"]


async def test_a_training_that_another_took_over_is_left_to_it(tmp_path: Path):
    """Such as on a computer that slept for longer than its lease."""
    store = MemoryStore()
    trainer, view = trainer_on(store, tmp_path), TrainingStore(store)
    shown = specks(tmp_path / "shown", 1)
    picture = base64.b64encode((shown / "0.png").read_bytes()).decode()
    body = json.dumps({**BODY, "pictures": [{"image": picture, "name": "1.png"}]}).encode()
    await view.create(layout.request_key("a"), body)
    info = await view.head(layout.request_key("a"))
    held = await trainer.claims.take(info, body, id="a", plan={"task": "train"})
    assert held is not None
    others = held.claim.model_copy(update={"epoch": 2, "session": "other", "attempt": 2})
    (tmp_path / "work").mkdir()
    job = Job(
        held, trainer.claims, view, trainer._inputs, tmp_path / "work", "me", versions={}, draining=True
    )
    await job.look()
    await view.create(layout.claim_key("a", 2), others.body())
    await job.look()
    assert await job.run() == "lost"
    assert await view.head(layout.released_key("a", 1)) is None


async def test_other_files_among_the_trainings_do_not_keep_a_trainer(tmp_path: Path):
    store = MemoryStore()
    await store.create("trainings/notes.txt", b"buy milk")
    async with asyncio.timeout(60):
        await trainer_on(store, tmp_path).run()
    assert await store.head("trainings/notes.txt")


async def test_pictures_of_one_stem_keep_their_captions(tmp_path: Path):
    files = sorted(specks(tmp_path / "shown", 2).glob("*.png"))
    images = [base64.b64encode(file.read_bytes()).decode() for file in files]
    rows = [
        {"image": images[0], "name": "1.png", "caption": "one"},
        {"image": images[1], "name": "1.jpg", "caption": "two"},
        {"image": images[1], "name": "2.png"},
    ]
    store = MemoryStore()
    training = validate_training({**BODY, "pictures": rows})
    work, base = await Inputs(store, BaseModels.of(()).on(store)).fetch("a", training, tmp_path)
    base.release()
    found = read_folder(Path(work.pictures_folder), training.instance_prompt).pictures
    assert {one.name: one.caption for one in found} == {"1.png": "one", "1.jpg": "two", "2.png": "sks"}


async def test_a_training_with_long_inline_pictures_can_be_gone_on_with(tmp_path: Path):
    """Its result has only the beginning of such a request; the rest lies beside it."""
    picture = base64.b64encode(bytes(100_000)).decode()
    body = json.dumps({**BODY, "pictures": [{"image": picture, "name": "1.png"}]}).encode()
    async with open_store(str(tmp_path)) as store:
        view = TrainingStore(store)
        await view.create(layout.request_key("a"), body)
        claims = make_claims(view, "me", SOON, utc_now)
        info = await view.head(layout.request_key("a"))
        assert info is not None
        held = await claims.take(info, body, id="a", plan={"task": "train"})
        assert held is not None
        result = Result.ended(
            "a", "succeeded", None, request=Frozen.of(body), fingerprint=layout.fingerprint(body)
        )
        await claims.commit(held, result)
        await store.create("training-results/a/checkpoints/000000005.000001/checkpoint.json", b"{}")
    assert "to step 7" in await go_on_with(str(tmp_path), "a", 2)
    dropped = parse_training((tmp_path / "trainings/a-to-7.json").read_bytes())
    assert (dropped.steps, dropped.resume_from, dropped.pictures[0].image) == (7, "a", picture)

    assert (
        await go_on_with(str(tmp_path), "a", 2)
        == "a-to-7 was dropped before: it goes on from step 5 to step 7"
    )
    async with open_store(str(tmp_path)) as store:
        await store.delete("trainings/a-to-7.json")
        await store.create("training-results/a-to-7/result.json", b"{}")
    assert "a-to-7 has ended already; nothing new was dropped" in await go_on_with(str(tmp_path), "a", 2)
    assert not (tmp_path / "trainings/a-to-7.json").exists()


@pytest.mark.parametrize(("flags", "method"), [((), "full"), (("--lora",), "lora"), (("--full",), "full")])
def test_the_command_line_wins_over_the_options_file(flags: tuple[str, ...], method: str, tmp_path: Path):
    from training.cli import train

    options = tmp_path / "options.json"
    options.write_text(json.dumps({**BODY, "method": "full"}))
    shown = specks(tmp_path / "shown")
    command = ["dreambooth", "--options", str(options), "--instance-images", str(shown), *flags]
    command += ["--store", str(tmp_path / "store"), "--detach"]
    result = CliRunner().invoke(train, command)
    assert result.exit_code == 0, result.output
    (dropped,) = (tmp_path / "store/trainings").glob("*.json")
    assert parse_training(dropped.read_bytes()).method == method


async def test_a_model_in_one_file_is_imported_before_it_is_a_base(tmp_path: Path):
    from tests.single_files import write_checkpoint

    file = write_checkpoint(BUNDLED / "doodle", tmp_path / "pony.safetensors")
    with pytest.raises(Rejected, match=f"'pony' is a model in one file; publish it .*import {file}"):
        await BaseModels.of([f"pony={file}"]).fetch("pony")
    with pytest.raises(Rejected, match=r"built in are .*; did you mean 'doodle'"):
        await BaseModels.of(()).on(MemoryStore()).fetch("doodel")


def commanded(tmp_path: Path, *flags: str) -> Any:
    from training.cli import train

    shown = specks(tmp_path / "shown")
    command = ["dreambooth", "--name", "new", "--instance-images", str(shown), "--instance-prompt", "sks"]
    return CliRunner().invoke(train, [*command, "--store", str(tmp_path / "store"), *flags])


def test_a_dry_run_leaves_no_trace(tmp_path: Path):
    """Neither of a store that is missing, nor in a folder that is none yet."""
    result = commanded(tmp_path, "--base", "doodle", "--dry-run")
    assert result.exit_code == 0, result.output
    assert "5 pictures" in result.output
    assert not (tmp_path / "store").exists()
    (tmp_path / "store").mkdir()
    assert commanded(tmp_path, "--base", "doodle", "--dry-run").exit_code == 0
    assert not list((tmp_path / "store").iterdir())


def test_a_refusal_calls_a_field_as_it_was_given(tmp_path: Path):
    """By its flag, or by its name in the file of --options."""
    flag = commanded(tmp_path, "--base", "doodle", "--learning-rate", "-1", "--dry-run")
    assert str(flag.exception).startswith("--learning-rate is -1")
    file = tmp_path / "options.json"
    file.write_text('{"learning_rate": -1}')
    named = commanded(tmp_path, "--base", "doodle", "--options", str(file), "--dry-run")
    assert str(named.exception).startswith("learning_rate is -1")


def test_a_dry_run_from_a_base_that_no_store_has(tmp_path: Path):
    result = commanded(tmp_path, "--base", "my-model", "--dry-run")
    assert isinstance(result.exception, Rejected)
    assert "the store has no models" in result.exception.message
    assert not (tmp_path / "store").exists()


async def test_a_name_of_another_family_is_refused(tmp_path: Path):
    """By the plan, and by the trainer: requests that use the name would be drawn by another kind of model."""
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "weights.safetensors").write_bytes(b"1")
    async with open_store(str(tmp_path / "store")) as store:
        await published.publish(
            store, weights, PublishedCard(name="new", version=1, kind="lora", family="sdxl")
        )
        shown = specks(tmp_path / "inline", 3)
        rows = [{"image": base64.b64encode(file.read_bytes()).decode()} for file in shown.glob("*.png")]
        training = validate_training({**BODY, "pictures": rows})
        (tmp_path / "work").mkdir()
        with pytest.raises(Rejected) as refused:
            await Inputs(store, BaseModels.of(()).on(store)).fetch("a", training, tmp_path / "work")
    assert refused.value.field == "name"
    assert "new@1 is of family sdxl" in refused.value.message
    planned = await asyncio.to_thread(commanded, tmp_path, "--base", "doodle", "--dry-run")
    assert isinstance(planned.exception, Rejected)
    assert planned.exception.field == "name"


def test_the_bar_has_loss_and_speed():
    from training.run_here import _bar, _show

    bar = _bar()
    task = bar.add_task("waiting", total=None, loss="")
    _show(bar, task, {"event": "step", "step": 3, "steps": 9, "loss": 0.123456, "seconds": 0.514})
    assert (bar.tasks[0].description, bar.tasks[0].completed, bar.tasks[0].total) == ("training", 3, 9)
    assert bar.tasks[0].fields["loss"] == "loss 0.1235, 0.51 s a step"
    _show(bar, task, {"event": "step", "step": 4, "steps": 9, "loss": None, "seconds": 0.5})
    assert bar.tasks[0].fields["loss"] == "loss no number, 0.50 s a step"


def test_how_many_processes_train_together_is_checked_before(tmp_path: Path):
    """They are the trainer's business where it is left to one, and they share the rows of a step."""
    detached = commanded(tmp_path, "--base", "doodle", "--detach", "--processes", "2")
    assert detached.exit_code == 2
    assert "dreamdrop trainer --processes" in " ".join(detached.output.split())
    uneven = commanded(tmp_path, "--base", "doodle", "--batch-size", "3", "--processes", "2", "--dry-run")
    assert isinstance(uneven.exception, Rejected)
    assert uneven.exception.field == "batch_size"
    assert not (tmp_path / "store").exists()


async def test_the_trainer_fetches_bases_into_a_cache_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`--model-cache-gb`: a base that is not in use leaves for the next one."""
    monkeypatch.setenv("DREAMDROP_MODEL_CACHE", str(tmp_path / "cache"))
    store = MemoryStore()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(name.encode() * 1000)
        await published.publish(store, folder, PublishedCard(name=name, version=1, kind="full"))
    bases = BaseModels.of((), cache_bytes=4000).on(store)
    for name in ("one", "two"):
        (await bases.fetch(name)).release()
    assert [path.stat().st_size for path in (tmp_path / "cache").glob("sha256/*/*")] == [3000]
