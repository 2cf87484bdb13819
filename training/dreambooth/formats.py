"""The product's files: a diffusers folder, or a LoRA that every reader applies with the same strength."""

from __future__ import annotations

import copy
import json
import shutil
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import save_file

from training.dreambooth import adapters

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from training.dreambooth.parts import Parts
    from training.recipe import Recipe

LORA_FILE = "pytorch_lora_weights.safetensors"
_MACHINE = ("_name_or_path", "is_local", "local_files_only")  # what a config notes about this machine


def save(folder: Path, recipe: Recipe, parts: Parts) -> None:
    """Write the product with the weights that are in the parts."""
    folder.mkdir(parents=True)
    if recipe.options.method == "lora":
        save_lora(folder / LORA_FILE, parts, recipe.options.text_encoder or False)
    else:
        save_pipeline(folder, parts)


def save_lora(file: Path, parts: Parts, text_encoder: bool) -> None:
    """Write UNet's and text encoders' LoRA in diffusers' form, float32.

    alpha / rank is multiplied into the second matrix, and alpha is written as the rank: readers that take a missing
    alpha for the rank agree with those that read it.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {}
    for part, module in parts.modules.items():
        if part != "unet" and not text_encoder:
            continue
        config = module.peft_config[adapters.NAME]
        scale = config.lora_alpha / config.r
        # No embedding learns, so peft need not look for a changed vocabulary.
        state = get_peft_model_state_dict(module, adapter_name=adapters.NAME, save_embedding_layers=False)
        for key, tensor in state.items():
            folded = (
                tensor.detach().cpu() * scale if ".lora_B." in key and scale != 1 else tensor.detach().cpu()
            )
            tensors[f"{part}.{_usual(part, key)}"] = folded.float().contiguous()
        metadata |= {
            f"{part}.r": config.r,
            f"{part}.lora_alpha": config.r,
            f"{part}.lora_dropout": 0.0,
            f"{part}.use_dora": config.use_dora,
            f"{part}.bias": "none",
            # Without `text_model.`: peft compares the ends of names, so old and new transformers find them.
            f"{part}.target_modules": sorted(n.removeprefix("text_model.") for n in config.target_modules),
        }
    save_file(tensors, file, {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, sort_keys=True)})


def _usual(part: str, key: str) -> str:
    """A text encoder's layers as files name them; newer transformers left `text_model.` out of its modules."""
    return key if part == "unet" or key.startswith("text_model.") else f"text_model.{key}"


def save_pipeline(folder: Path, parts: Parts) -> None:
    """Write a diffusers folder: what learned, in the base's own precision, and the base's other parts as they are."""
    base = parts.base
    index = {k: v for k, v in base.index.items() if k not in _MACHINE}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    for name, module in (*parts.modules.items(), ("vae", parts.vae)):
        stored = _copy_on_cpu(module).to(getattr(torch, base.dtype(name)))
        stored.save_pretrained(folder / name, safe_serialization=True)
        del stored
        config = folder / name / "config.json"
        facts = {k: v for k, v in json.loads(config.read_text()).items() if k not in _MACHINE}
        config.write_text(json.dumps(facts, indent=2) + "\n")
    for name, kind in base.index.items():
        if (
            isinstance(kind, list)
            and kind[0]
            and not (folder / name).exists()
            and (base.folder / name).is_dir()
        ):
            shutil.copytree(
                base.folder / name,
                folder / name,
                ignore=shutil.ignore_patterns("*.bin", "*.ckpt", "*.msgpack"),
            )


def _copy_on_cpu(module: nn.Module) -> Any:
    """A copy that can be cast and written while the original goes on learning."""
    if next(module.parameters()).device.type == "cpu":
        return copy.deepcopy(module)
    device = next(module.parameters()).device
    made = copy.deepcopy(module.cpu())
    module.to(device)
    return made
