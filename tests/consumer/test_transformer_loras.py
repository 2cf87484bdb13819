"""LoRAs of transformers: drawn side by side with and without, and refused where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, Lora
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.families import save


def save_lora(model: Path, folder: Path) -> Path:
    """Write a LoRA of a folder's transformer, as diffusers saves it, with weights that matter."""
    torch.manual_seed(8)
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(model)
    pipe.transformer.add_adapter(
        LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"])
    )
    pipe.save_lora_weights(folder, transformer_lora_layers=get_peft_model_state_dict(pipe.transformer))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("name", ["flux", "z_image", "qwen_image"])
def test_a_lora_acts_on_the_images_that_ask_for_it(name: str, tmp_path: Path) -> None:
    """At its weight, in company and alone; the others are drawn without."""
    folder = save(name, tmp_path / "model")
    file = save_lora(folder, tmp_path / "lora")
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]), loras={"ink": file})
    sets = {"bare": (), "ink": (Lora("ink", 1.0),), "faint": (Lora("ink", 0.3),)}
    tasks = [
        make_task(kind, steps=2, cfg_scale=2.0, scheduler="Flow Euler", loras=loras)
        for kind, loras in sets.items()
    ]
    ended = Studio(registry, max_rows=16).draw(*tasks)

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    pictures = {task.request: ended[task.request, 0].picture for task in tasks}
    assert all(grey_levels_apart(pictures[t.request], draw_alone(registry, t)) <= 1 for t in tasks)
    assert grey_levels_apart(pictures["bare"], pictures["ink"]) > 1
    assert grey_levels_apart(pictures["faint"], pictures["ink"]) > 1


def test_a_lora_of_another_family_is_refused(tiny_folder: Path, lora_file: Path, tmp_path: Path) -> None:
    """One of a UNet for a transformer, and the other way round; where diffusers loads none, that is said."""
    flux, pixart = save("flux", tmp_path / "flux"), save("pixart", tmp_path / "pixart")
    file = save_lora(flux, tmp_path / "lora")
    cards = Cards.of([f"flux={flux}", f"tiny={tiny_folder}", f"pixart={pixart}"])
    registry = ModelRegistry(cards, loras={"unet": lora_file, "flux": file})
    room = Studio(registry)
    ended = room.draw(
        make_task("a", model="flux", scheduler="Flow Euler", loras=(Lora("unet", 1.0),)),
        make_task("b", model="tiny", loras=(Lora("flux", 1.0),)),
        make_task("c", model="pixart", loras=(Lora("flux", 1.0),)),
    )

    assert {event.field for event in ended.values()} == {"loras"}
    assert (
        "do not have diffusers' names (transformer.…): this model has no layer for" in ended["a", 0].message
    )
    assert "it is made for Flux: this model has no layer for transformer." in ended["b", 0].message
    assert "diffusers loads none into a PixArtSigmaPipeline" in ended["c", 0].message
