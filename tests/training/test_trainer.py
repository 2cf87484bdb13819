"""Trainings that are dropped into a store: real trainer processes, on a directory and on S3."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infra.claims.trainings import TrainingStore
from infra.stores.open import open_store
from producer.canceling import cancel
from producer.request_state import state_of
from schemas.limits import Limits
from tests.conftest import pretend_credentials
from tests.trainings import specks
from tests.worker_process import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
TINY = {"base": "tiny", "instance_prompt": "sks", "resolution": 32, "batch_size": 2, "validate": [], "ema": 0}
LONG = 100_000  # steps; more than a test waits for


@contextlib.contextmanager
def trainer(store: Path | str, base: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A trainer process that knows the tiny model; it is ended when the block is left."""
    command = [sys.executable, "-c", "from training.cli import trainer; trainer()", "--store", str(store)]
    command += ["--models", f"tiny={base}", "--lease", "2", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        assert process.stderr is not None
        process.stderr.close()
        process.wait()


def drop(store: Path, id: str, shown: Path, /, **fields: Any) -> None:
    """Drop a training with its pictures inside."""
    inline = [
        {
            "image": base64.b64encode(file.read_bytes()).decode(),
            "name": file.name,
            "caption": file.with_suffix(".txt").read_text(),
        }
        for file in sorted(shown.glob("*.png"))
    ]
    path = store / "trainings" / f"{id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{id}.tmp")
    half.write_text(json.dumps({"name": "new", "pictures": inline, **TINY, **fields}))
    half.rename(path)


def wait_for(path: Path, timeout: float = 300.0) -> Any:
    """A JSON file, once it is there; a pattern may be part of the path."""
    ends = time.monotonic() + timeout
    while time.monotonic() < ends:
        if found := sorted(path.parent.parent.glob(f"{path.parent.name}/{path.name}")):
            return json.loads(found[-1].read_text())
        time.sleep(0.05)
    raise AssertionError(f"no {path} after {timeout} s")


def result_of(store: Path, id: str) -> dict[str, Any]:
    document: dict[str, Any] = wait_for(store / "training-results" / id / "result.json")
    return document


def weights_of(store: Path, name: str, version: int = 1) -> dict[str, str]:
    card = json.loads((store / "models" / name / str(version) / "card.json").read_text())
    return {f["path"]: f["sha256"] for f in card["files"] if f["path"].endswith(".safetensors")}


def end(process: subprocess.Popen[str], number: signal.Signals, timeout: float = 120.0) -> int:
    process.send_signal(number)
    return process.wait(timeout)


def test_a_killed_trainer_loses_nothing(tmp_path: Path, tiny_folder: Path, pictures: Path):
    """kill -9 after a checkpoint: a second trainer goes on from it, and publishes the very same weights."""
    store = tmp_path / "store"
    options = {"method": "full", "steps": 12, "checkpoint_every": 2}
    drop(store, "straight", pictures, name="straight", **options)
    with trainer(store, tiny_folder, "--once") as process:
        assert process.wait(300) == 0
    assert result_of(store, "straight")["model"] == {
        "name": "straight", "revision": "1", "source": "", "licence": "", "dtype": "",
    }  # fmt: skip

    drop(store, "killed", pictures, name="killed", **options)
    with trainer(store, tiny_folder) as process:
        wait_for(store / "training-results/killed/checkpoints/*" / "checkpoint.json")
        end(process, signal.SIGKILL)
    with trainer(store, tiny_folder, "--once") as process:
        result = result_of(store, "killed")
        assert process.wait(300) == 0  # it deletes the claims after the result
    assert (result["status"], result["attempts"]) == ("succeeded", 2)
    assert weights_of(store, "killed") == weights_of(store, "straight")
    assert not list((store / "training-claims").rglob("0*"))


def test_a_trainer_that_is_told_to_stop_saves_and_gives_back(
    tmp_path: Path, tiny_folder: Path, pictures: Path
):
    """SIGTERM: a checkpoint of this very step, a release that does not count, and the next trainer goes on."""
    store = tmp_path / "store"
    drop(store, "long", pictures, steps=LONG, checkpoint_every=LONG)
    with trainer(store, tiny_folder) as process:
        while wait_for(store / "training-status" / "long.json")["steps_done"] < 2:
            time.sleep(0.1)
        assert end(process, signal.SIGTERM) == 0
    (saved,) = (store / "training-results" / "long" / "checkpoints").iterdir()
    assert (saved / "checkpoint.json").is_file()
    assert list((store / "training-claims" / "long").glob("*.released"))
    assert not list((store / "trainers").iterdir())
    with trainer(store, tiny_folder):
        step = int(saved.name.partition(".")[0])
        while wait_for(store / "training-status" / "long.json")["steps_done"] <= step:
            time.sleep(0.1)
    claim = wait_for(store / "training-claims/long" / "000002")
    assert claim["attempt"] == 1


async def test_cancelled_stopped_early_and_continued(tmp_path: Path, tiny_folder: Path, pictures: Path):
    """A cancelled one leaves no model; one that is stopped publishes what it has; it can be gone on with."""
    from training.control import ask_to_stop, go_on_with

    store = tmp_path / "store"
    drop(store, "unwanted", pictures, name="unwanted", steps=LONG)
    with trainer(store, tiny_folder):
        wait_for(store / "training-status" / "unwanted.json")
        async with open_store(str(store)) as opened:
            await cancel(TrainingStore(opened), "unwanted", Limits())
        drop(store, "early", pictures, name="early", steps=LONG, checkpoint_every=LONG)
        while wait_for(store / "training-status" / "early.json")["steps_done"] < 2:
            time.sleep(0.1)
        assert "stops after its next step" in await ask_to_stop(str(store), "early")
        result = result_of(store, "early")
        assert result["status"] == "succeeded"
        assert weights_of(store, "early")
        reached = int(next((store / "training-results/early/checkpoints").iterdir()).name.partition(".")[0])
        assert "goes on from step" in await go_on_with(str(store), "early", 2)
        after = result_of(store, f"early-to-{reached + 2}")
    assert after["model"]["revision"] == "2"
    losses = (store / f"training-results/early-to-{reached + 2}/loss.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in losses] == list(range(1, reached + 3))
    assert result_of(store, "unwanted")["status"] == "canceled"
    assert not (store / "models" / "unwanted").exists()


BAD = {
    "no JSON": (b'{"name": ', "invalid_json", None),
    "unknown field": ({"stesp": 3}, "invalid_manifest", "stesp"),
    "unknown base": ({"base": "sd99"}, "unknown_model", "base"),
    "not a picture": ({"pictures": [{"image": "aGVsbG8="}]}, "invalid_image", "pictures.0.image"),
    "another prefix": ({"pictures": [{"image": "uploads/../requests/a.png"}]}, "invalid_manifest", "pictures.0.image"),
    "absent picture": ({"pictures": [{"image": "uploads/a.png"}]}, "invalid_manifest", "pictures.0.image"),
    "no pictures": ({"pictures": []}, "invalid_manifest", "pictures"),
    "two of a name": ({"pictures": [{"image": "PNG", "name": "a.png"}] * 2}, "invalid_manifest", "pictures.1.name"),
    "a built-in name": ({"name": "doodle"}, "invalid_manifest", "name"),
    "a size that does not fit": ({"resolution": 65}, "invalid_manifest", "resolution"),
}  # fmt: skip


def test_bad_trainings_end_with_a_sentence(tmp_path: Path, tiny_folder: Path, pictures: Path):
    """Each is answered once, at the first attempt, with its field; nothing is published; nobody else suffers."""
    store = tmp_path / "store"
    (store / "trainings").mkdir(parents=True)
    png = base64.b64encode(next(pictures.glob("*.png")).read_bytes()).decode()
    for number, (fields, _, _) in enumerate(BAD.values()):
        if isinstance(fields, bytes):
            (store / "trainings" / f"bad-{number}.json").write_bytes(fields)
        else:
            text = json.dumps(fields).replace('"PNG"', json.dumps(png))
            drop(store, f"bad-{number}", pictures, steps=1, **json.loads(text))
    drop(store, "good", pictures, steps=1, name="good")
    with trainer(store, tiny_folder, "--once") as process:
        assert process.wait(600) == 0
    for number, (kind, (_, code, field)) in enumerate(BAD.items()):
        result = result_of(store, f"bad-{number}")
        failure = result["failure"]
        assert (kind, failure["code"], failure["field"]) == (kind, code, field), failure
        assert (result["status"], result["attempts"], result["task"]) == ("failed", 1, "train")
    assert result_of(store, "good")["status"] == "succeeded"
    assert [path.name for path in (store / "models").iterdir()] == ["good"]


async def test_a_worker_neither_takes_nor_ends_a_training(tmp_path: Path, tiny_folder: Path, pictures: Path):
    """A worker beside a training whose trainer has died: its sweep does not touch it, and draws what is its own."""
    store = tmp_path / "store"
    drop(store, "long", pictures, steps=LONG, checkpoint_every=2)
    with trainer(store, tiny_folder) as process:
        wait_for(store / "training-results/long/checkpoints/*" / "checkpoint.json")
        end(process, signal.SIGKILL)
    drop(store, "waiting", pictures, steps=1)
    with worker(store):
        from tests.worker_process import drop as drop_request
        from tests.worker_process import result

        for number in range(3):  # longer than the lease of the dead trainer
            drop_request(store, f"{number}.json", {"prompt": "a fox"})
            assert result(store, str(number))["status"] == "succeeded"
            time.sleep(2)
    async with open_store(str(store)) as opened:
        states = [await state_of(TrainingStore(opened), id) for id in ("long", "waiting")]
    assert [state.status for state in states] == ["processing", "queued"]


async def test_an_archive_on_s3(tiny_folder: Path, tmp_path: Path, moto_url: str, monkeypatch):
    """Pictures as one zip in the bucket; the model comes back through the bucket."""
    import boto3

    from infra.models import published

    pretend_credentials(monkeypatch, moto_url)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="trainings")
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for file in specks(tmp_path / "photos").iterdir():
            packed.write(file, f"photos/{file.name}")
    s3.upload_file(str(archive), "trainings", "uploads/photos.zip")
    document = {"name": "from-s3", "archive": "uploads/photos.zip", "steps": 2, "rank": 2, **TINY}
    s3.put_object(Bucket="trainings", Key="trainings/a.json", Body=json.dumps(document).encode())
    with trainer("s3://trainings", tiny_folder, "--once") as process:
        assert process.wait(300) == 0
    async with open_store("s3://trainings") as store:
        state = await state_of(TrainingStore(store), "a")
        card = await published.resolve(store, "from-s3")
    assert state.result is not None
    assert state.result.status == "succeeded", state.result.failure
    assert (card.version, card.kind, card.training) == (1, "lora", "a")
    assert len(card.picture_hashes) == 5
