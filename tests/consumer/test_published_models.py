"""Published models in a running worker: named in a manifest, fetched while others are drawn, frozen in the plan."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from PIL import Image

import infra.models.cards as cards
from infra.models import published
from infra.stores.open import open_store
from producer.checks import doctor
from schemas.models import PublishedCard
from tests.conftest import pretend_credentials

DOODLE = cards.BUNDLED / "doodle"
pytestmark = pytest.mark.anyio

PROMPT = {"prompt": "a red circle on a blue background", "steps": 2, "cfg_scale": 4, "seed": 5}


@pytest.fixture(scope="module")
def lora_folder(tmp_path_factory):
    """A LoRA of doodle with weights that matter."""
    from tests.studio import save_lora

    return save_lora(DOODLE, tmp_path_factory.mktemp("lora")).parent


@pytest.fixture(scope="module")
def full_folder(tmp_path_factory):
    """A copy of doodle that is its own model: a UNet whose last bias is shifted."""
    import shutil

    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("full")
    for name in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae"):
        copy = shutil.copytree if (DOODLE / name).is_dir() else shutil.copy
        copy(DOODLE / name, folder / name)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["conv_out.bias"] += 0.3
    save_file(tensors, file)
    return folder


def lora_card(name="ink", **fields):
    return PublishedCard(name=name, kind="lora", base="doodle", base_revision="3", family="doodle", **fields)


def full_card(name="my-dog"):
    size = {"native_width": 64, "native_height": 64}
    return PublishedCard(name=name, kind="full", base="doodle", family="doodle", scheduler="DDIM", **size)


@contextmanager
def worker(store, *options, **environment):
    """A worker with real pipelines, in a process of its own."""
    command = [sys.executable, "-m", "consumer", "--store", str(store), "--lease", "6", "--devices", "cpu"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
    } | environment
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.said = process.communicate(timeout=60)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


async def drop(store, id, **fields):
    await store.create(f"requests/{id}.json", json.dumps(PROMPT | fields).encode())


async def result(store, id):
    import asyncio

    ends = time.monotonic() + 400
    while await store.head(f"results/{id}/result.json") is None:
        assert time.monotonic() < ends, f"no result for {id}"
        await asyncio.sleep(0.1)
    return json.loads((await store.get(f"results/{id}/result.json")).body)


async def pixels(store, ended):
    """Of its first image; the file names the model, too."""
    body = (await store.get(ended["images"][0]["key"])).body
    return Image.open(io.BytesIO(body)).tobytes()


@pytest.fixture(params=["directory", "moto"])
def place(request, tmp_path, monkeypatch):
    """A store's URL: a directory, and a bucket of another S3 server than our own."""
    monkeypatch.setenv("DREAMDROP_MODEL_CACHE", str(tmp_path / "cache"))
    if request.param == "directory":
        yield str(tmp_path / "store")
        return
    endpoint = request.getfixturevalue("moto_url")
    pretend_credentials(monkeypatch, endpoint)
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket="models-bucket")
    yield "s3://models-bucket"
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()


async def import_checkpoint(place, folder):
    """`dreamdrop models import` of doodle in one file, with a network that answers nothing."""
    import asyncio

    from tests.single_files import write_checkpoint

    file = write_checkpoint(DOODLE, folder / "shapes.safetensors")
    command = [sys.executable, "-m", "producer.cli", "models", "import", str(file), "--name", "shapes"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = await asyncio.create_subprocess_exec(*command, "--store", place, env=environment, stderr=-1)
    _, said = await process.communicate()
    assert process.returncode == 0, said
    assert b"configs and tokenizers are those of doodle" in said


async def test_models_that_are_published_while_a_worker_runs(place, lora_folder, full_folder, tmp_path):
    """By the next manifest: a full model, a file that is one, a LoRA as a model and as a LoRA; newest, version."""
    async with open_store(place) as store:
        with worker(place):
            await drop(store, "plain")
            plain = await result(store, "plain")
            await published.publish(store, full_folder, full_card())
            await published.publish(store, lora_folder, lora_card(weight=0.5))
            if not place.startswith("s3:"):
                await import_checkpoint(place, tmp_path)
                await drop(store, "file", model="shapes")
                same = await pixels(store, await result(store, "file"))
                assert same == await pixels(store, plain)
            await drop(store, "full", model="my-dog")
            await drop(store, "asmodel", model="ink")
            await drop(store, "aslora", loras=[{"name": "ink", "weight": 0.5}])
            await drop(store, "weaker", loras=[{"name": "ink@1", "weight": 0.25}])
            await drop(store, "both", model="my-dog@1", loras=[{"name": "ink"}])
            await drop(store, "typo", model="my-dgo")
            await drop(store, "nolora", loras=[{"name": "inc"}])
            await drop(store, "nover", model="my-dog@9")
            await drop(store, "whole", loras=[{"name": "my-dog"}])
            ended = {
                id: await result(store, id)
                for id in ("full", "asmodel", "aslora", "weaker", "both", "typo", "nolora", "nover", "whole")
            }
            await published.publish(store, full_folder, full_card())
            await drop(store, "newest", model="my-dog")
            newest = await result(store, "newest")

    assert plain["status"] == "succeeded"
    assert "model_version" not in plain["parameters"]
    full = ended["full"]
    assert full["status"] == "succeeded", full["failure"]
    used = {"name": "my-dog", "revision": "1", "source": "models/my-dog/1"}
    assert used.items() <= full["model"].items()
    assert (full["parameters"]["model_version"], full["parameters"]["model_revision"]) == (1, "1")
    assert (full["images"][0]["width"], full["parameters"]["scheduler"]) == (64, "DDIM")

    pictures = {id: end["images"][0]["sha256"] for id, end in ended.items() if end["images"]}
    assert pictures["asmodel"] != plain["images"][0]["sha256"]
    asmodel = ended["asmodel"]["parameters"]
    assert (asmodel["model"], asmodel["loras"]) == ("doodle", [{"name": "ink", "weight": 0.5}])
    for id in ("asmodel", "aslora", "weaker", "both"):
        assert ended[id]["status"] == "succeeded", ended[id]["failure"]
        assert ended[id]["parameters"]["lora_versions"] == {"ink": 1}
        assert len(ended[id]["parameters"]["lora_hashes"]["ink"]) == 64
    assert asmodel == ended["aslora"]["parameters"]
    assert len({pictures[id] for id in ("full", "both", "aslora", "weaker")}) == 4

    assert ended["typo"]["failure"]["code"] == ended["nover"]["failure"]["code"] == "unknown_model"
    assert "did you mean 'my-dog'?" in ended["typo"]["failure"]["message"]
    assert ended["nolora"]["failure"]["code"] == "unknown_lora"
    assert "ink" in ended["nolora"]["failure"]["message"]
    assert "name it as the model" in ended["whole"]["failure"]["message"]
    assert newest["parameters"]["model_version"] == 2
    assert newest["model"]["revision"] == "2"


async def test_a_plan_that_was_frozen_keeps_its_version(tmp_path, full_folder, monkeypatch):
    """Interrupted by kill -9; when another worker takes it over, the name means the next version."""
    monkeypatch.setenv("DREAMDROP_MODEL_CACHE", str(tmp_path / "cache"))
    place = str(tmp_path / "store")
    async with open_store(place) as store:
        first = await published.publish(store, full_folder, full_card())
        with worker(place) as process:
            await drop(store, "long", model="my-dog", steps=100, number_of_images=20)
            await _until(store, "claims/long/000001")
            process.kill()
            process.wait()
        await published.publish(store, full_folder, full_card())
        with worker(place, "--model", "my-dog") as process:
            await drop(store, "short")  # by the worker's default model
            short = await result(store, "short")
            claim = await _until(store, "claims/long/000002")
            plan = json.loads((await store.get(claim.key)).body)["plan"]
            found = [finding.found for finding in await doctor._workers(store, place)]
    assert found[-1].endswith("default models: doodle, my-dog")  # of the dead worker, and of this one
    assert 0 < process.said.index("model=my-dog@2") < process.said.index(" ready "), (
        "loaded before a request comes"
    )
    assert short["parameters"]["model_version"] == 2
    assert (plan["model"], plan["model_version"]) == ("my-dog", first.version)


async def _until(store, key):
    import asyncio

    ends = time.monotonic() + 300
    while (info := await store.head(key)) is None:
        assert time.monotonic() < ends, key
        await asyncio.sleep(0.1)
    return info
