"""Plain diffusers loads what was trained, and draws the pictures that training showed last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.models import lora_formats
from tests.trainings import prepare, train

PROMPT = "sks a"


def drawn(folder: Path, lora: Path | None = None, seed: int = 0) -> Any:
    """The pixels of a plain pipeline."""
    import torch
    from diffusers import DiffusionPipeline

    from training import bases, defaults

    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if lora is not None:
        pipeline.load_lora_weights(lora.parent, weight_name=lora.name)
    steps, guidance = defaults.DRAWING[bases.Base.read(folder, "base").kind]
    picture = pipeline(
        [PROMPT], num_inference_steps=steps, guidance_scale=guidance, height=32, width=32,
        generator=[torch.Generator().manual_seed(seed)],
    ).images[0]  # fmt: skip
    return np.asarray(picture, np.int16)


def last(folder: Path, step: int) -> Any:
    return np.asarray(Image.open(folder / "validation" / f"{step:06d}" / "0.png"), np.int16)


LORAS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weaker alpha": {"alpha": 1.0},
    "all layers": {"targets": "all"},
    "unet only": {"text_encoder": False},
    "dora": {"dora": True, "targets": "all", "alpha": 2.0},
    "averaged": {"ema": 0.5},
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("base", ["sd", "xl"])
@pytest.mark.parametrize("kind", LORAS)
def test_a_lora_draws_what_training_showed(
    kind: str, base: str, tiny_folder: Path, sdxl_folder: Path, pictures: Path, tmp_path: Path
):
    """Also from a reader that knows no metadata, and through Kohya's form and back."""
    from safetensors.torch import load_file, save_file

    options: dict[str, Any] = {
        "rank": 4,
        "learning_rate": 0.05,
        "text_encoder": True,
        "ema": 0.0,
        "schedule": "constant",
    }
    source = {"sd": tiny_folder, "xl": sdxl_folder}[base]
    folder = prepare(
        tmp_path / "work",
        source,
        pictures,
        steps=2,
        batch_size=1,
        resolution=32,
        validate=[PROMPT],
        validate_every=2,
        **options | LORAS[kind],
    )
    train(folder)
    shown, lora = last(folder, 2), folder / "product" / "pytorch_lora_weights.safetensors"
    assert np.abs(shown - last(folder, 0)).mean() > 1  # it does something
    assert np.abs(drawn(source, lora) - shown).max() <= 1

    bare = tmp_path / "bare.safetensors"
    save_file(load_file(lora), bare)
    assert np.abs(drawn(source, bare) - shown).max() <= 1

    foreign, back = tmp_path / "kohya.safetensors", tmp_path / "back.safetensors"
    lora_formats.convert(lora, foreign, "kohya")
    lora_formats.convert(foreign, back, "diffusers")
    first, second = load_file(lora), load_file(back)
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)
    assert np.abs(drawn(source, back) - shown).max() <= 1
    if kind != "dora":  # diffusers reads no Kohya DoRA rightly, so we convert it
        assert np.abs(drawn(source, foreign) - shown).max() <= 1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("base", ["sd", "xl"])
def test_a_full_model_is_a_diffusers_folder(
    base: str, tiny_folder: Path, sdxl_folder: Path, pictures: Path, tmp_path: Path
):
    """Its averaged weights draw what training showed; product.json says what a card needs."""
    source = {"sd": tiny_folder, "xl": sdxl_folder}[base]
    folder = prepare(
        tmp_path / "work", source, pictures, method="full", steps=2, batch_size=1, resolution=32, validate=[PROMPT],
        learning_rate=0.01, text_encoder=True, ema=0.5, schedule="constant",
    )  # fmt: skip
    events = train(folder)
    told = {name for event in events if event["event"] == "validation" for name in event["files"]}
    assert told == {str(f.relative_to(folder)) for f in (folder / "validation").rglob("*") if f.is_file()}
    assert np.abs(drawn(folder / "product") - last(folder, 2)).max() <= 1
    assert np.abs(last(folder, 2) - last(folder, 0)).mean() > 1
    facts = json.loads((folder / "product.json").read_text())
    assert facts["kind"] == "full"
    assert facts["trigger_words"] == ["sks"]
    assert facts["drift"]["with_concept"] > 1
    assert facts["files"].keys() == {
        str(f.relative_to(folder / "product")) for f in (folder / "product").rglob("*") if f.is_file()
    }
    assert str(tmp_path) not in "".join(f.read_text() for f in (folder / "product").rglob("*.json"))
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert page.count('<img src="data:') == 2 + 1 * (facts["options"]["validate_every"] == 1)
