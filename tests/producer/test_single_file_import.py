"""Where `dreamdrop models import` finds the configs of a model in one file, and what it says when it finds none."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from infra.models import published
from infra.models.single_files import read_single_file
from infra.stores.memory import MemoryStore
from producer.models import single_file
from producer.models.single_file import Wishes
from schemas.errors import Rejected
from schemas.models import PublishedCard
from tests.tensor_files import write

pytestmark = pytest.mark.anyio

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler", "tokenizer", "tokenizer_2")
CROSS = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def pony(tmp_path: Path) -> Path:
    """The header of an SDXL in one file, on a machine that knows no SDXL and has no network."""
    shapes = {
        "model.diffusion_model.input_blocks.0.0.weight": [1, 4, 1, 1],
        CROSS: [1, 2048],
        "first_stage_model.encoder.conv_in.weight": [1],
        "conditioner.embedders.0.transformer.x": [1],
        "conditioner.embedders.1.model.x": [1],
    }
    tensors = {name: ("F16", shape, [0] * math.prod(shape)) for name, shape in shapes.items()}
    return write(tmp_path / "pony.safetensors", tensors)


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


async def publish(store: MemoryStore, folder: Path, name: str, prediction: str) -> None:
    """An SDXL: its JSON files, and nothing that could be drawn with."""
    classes = {part: ["diffusers", "Some"] for part in PARTS}
    documents = {
        "model_index.json": {"_class_name": "StableDiffusionXLPipeline", **classes},
        "unet/config.json": {"cross_attention_dim": 2048, "sample_size": 128},
        "scheduler/scheduler_config.json": {"prediction_type": prediction},
        **{f"{part}/config.json": {} for part in ("vae", "text_encoder", "text_encoder_2")},
        **{f"{part}/tokenizer.json": {} for part in ("tokenizer", "tokenizer_2")},
    }
    for path, document in documents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(document))
    (folder / "unet" / "a.safetensors").write_bytes(b"weights")
    card = PublishedCard(name=name, kind="full", family="sdxl", prediction_type=prediction)
    await published.publish(store, folder, card)


async def test_configs_of_a_published_model_of_the_family_are_used(pony: Path, tmp_path: Path):
    """The newest that predicts what the family usually does, unless one is named."""
    store, file = MemoryStore(), read_single_file(pony)
    with pytest.raises(Rejected, match=r"Stable Diffusion XL.*hf download stabilityai.*--configs FOLDER"):
        await single_file._configs(store, file, "", tmp_path / "none")
    await publish(store, tmp_path / "given", "usual", "epsilon")
    await publish(store, tmp_path / "given", "velocity", "v_prediction")
    folder, origin = await single_file._configs(store, file, "", tmp_path / "found")
    assert origin == "usual@1"
    assert sorted(path.name for path in folder.iterdir()) == sorted(("model_index.json", *PARTS))
    assert list(folder.rglob("*.safetensors")) == []
    _, origin = await single_file._configs(store, file, "velocity", tmp_path / "named")
    assert origin == "velocity@1"


@pytest.mark.parametrize(
    ("configs", "words"),
    [
        (
            "nonsense",
            "configs is 'nonsense': there is no such folder, and no model is published as 'nonsense'",
        ),
        ("doodle", "it is of another family: pony.safetensors is Stable Diffusion XL"),
        ("sdxl", r"hf download stabilityai/stable-diffusion-xl-base-1\.0"),
    ],
)
async def test_configs_that_cannot_be_used(pony: Path, tmp_path: Path, configs: str, words: str):
    with pytest.raises(Rejected, match=words):
        await single_file.to_folder(MemoryStore(), pony, Wishes(configs), tmp_path, print)


def test_a_conversion_that_ends_without_an_answer_is_said(pony: Path):
    """With its last line, and with what a kill by the system means."""
    with pytest.raises(Rejected, match=r"pony.safetensors: the conversion failed: no room"):
        single_file._run([sys.executable, "-c", "raise SystemExit('no room')"], pony)
    with pytest.raises(Rejected, match="is there enough memory"):
        single_file._run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], pony)
    answer = "import json; print(json.dumps({'refused': 'it does not fit'}))"
    with pytest.raises(Rejected, match="it does not fit"):
        single_file._run([sys.executable, "-c", answer], pony)
