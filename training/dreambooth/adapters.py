"""LoRA layers by peft: put into the base's parts, switched off for the base's own predictions, read out again."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schemas.training import Training
    from training.dreambooth.chance import Chance
    from training.dreambooth.parts import Parts

NAME = "default"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj")
_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")  # of a UNet; other tools know no LoRA outside them


def add(parts: Parts, options: Training, chance: Chance) -> None:
    """Give UNet, and text encoders if they learn, a LoRA that changes nothing yet; its first weights are by seed."""
    names = [*(parts.encoders if options.text_encoder else ()), "unet"]
    for number, name in enumerate(names):
        module = parts.modules[name]
        torch.manual_seed(chance.number("adapter", number))  # peft draws from the global generator
        module.add_adapter(
            LoraConfig(
                r=options.rank,
                lora_alpha=options.alpha,
                lora_dropout=options.lora_dropout,
                # Loaders drop the magnitudes of a text encoder's DoRA without a word (transformers 5.23).
                use_dora=options.dora and name == "unet",
                init_lora_weights=True,
                target_modules=layers(module, options.targets or "attention"),
            )
        )
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


def layers(module: nn.Module, targets: str) -> list[str]:
    """The full names of the layers that get a LoRA."""
    unet = any(name.startswith("down_blocks") for name, _ in module.named_children())
    found = []
    for name, layer in module.named_modules():
        if (unet and not name.startswith(_BLOCKS)) or not isinstance(layer, (nn.Linear, nn.Conv2d)):
            continue
        if not unet and name.endswith("text_projection"):
            continue
        attends = name.endswith(tuple(f".{end}" for end in _ATTENTION))
        if attends or targets == "all" or (targets == "linear" and isinstance(layer, nn.Linear)):
            found.append(name)
    return found


@contextmanager
def switched_off(parts: Parts) -> Iterator[None]:
    """The base as it was, inside this context."""
    tuned = [m for part in parts.modules.values() for m in part.modules() if isinstance(m, BaseTunerLayer)]
    learning = [(p, p.requires_grad) for layer in tuned for p in layer.parameters()]
    for layer in tuned:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in tuned:
            layer.enable_adapters(True)
        for parameter, learns in learning:  # peft changes them on its way
            parameter.requires_grad_(learns)
