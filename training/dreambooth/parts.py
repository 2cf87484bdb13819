"""The base model's parts, loaded for training: UNet, VAE, text encoders, tokenizers, noise schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.bases import Base


@dataclass(frozen=True)
class Text:
    """Prompts as the UNet takes them."""

    hidden: Tensor  # (n, tokens, width)
    pooled: Tensor | None  # (n, width); SDXL only


@dataclass
class Parts:
    """One base model in memory. `modules` has the parts by their folders' names."""

    base: Base
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: dict[str, Any]  # text_encoder and, for SDXL, text_encoder_2
    tokenizers: list[CLIPTokenizer]
    noise: DDPMScheduler  # from the base's own config: betas, prediction type, zero SNR
    device: torch.device

    @property
    def modules(self) -> dict[str, Any]:
        return {"unet": self.unet, **self.encoders}

    @property
    def two_encoders(self) -> bool:
        return len(self.encoders) == 2

    def encode(self, prompts: Sequence[str]) -> Text:
        """Prompts to embeddings, as the base's pipeline makes them without clip_skip."""
        hidden: list[Tensor] = []
        pooled: Tensor | None = None
        for encoder, tokenizer in zip(self.encoders.values(), self.tokenizers, strict=True):
            tokens = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).to(self.device)
            mask = tokens.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
            if self.two_encoders:
                output = encoder(tokens.input_ids, output_hidden_states=True)
                hidden.append(output.hidden_states[-2])
                pooled = output[0]  # the second encoder's stays
            else:
                hidden.append(encoder(tokens.input_ids, attention_mask=mask)[0])
        return Text(torch.cat(hidden, dim=-1), pooled)

    def predict(self, noisy: Tensor, times: Tensor, text: Text, sizes: Tensor | None) -> Tensor:
        """The UNet's output, (n, channels, height, width) float32.

        Args:
            sizes: (n, 6) for SDXL: original height and width, top and left of the cut, height and width.
        """
        extra: dict[str, Any] | None = None
        if text.pooled is not None:
            extra = {"text_embeds": text.pooled, "time_ids": sizes}
        return self.unet(noisy, times, text.hidden, added_cond_kwargs=extra, return_dict=False)[0].float()

    def pipeline(self) -> DiffusionPipeline:
        """A plain pipeline around these modules, with the base's own scheduler."""
        kind = StableDiffusionXLPipeline if self.two_encoders else StableDiffusionPipeline
        extra = {} if self.two_encoders else {"safety_checker": None, "requires_safety_checker": False}
        made = kind.from_pretrained(
            self.base.folder,
            unet=self.unet,
            vae=self.vae,
            local_files_only=True,
            use_safetensors=True,
            **dict(zip(("tokenizer", "tokenizer_2"), self.tokenizers, strict=False)),
            **self.encoders,
            **extra,
        )
        made.set_progress_bar_config(disable=True)
        return made


def load(base: Base, device: torch.device, dtype: torch.dtype = torch.float32) -> Parts:
    """Load a base's parts, frozen and in evaluation mode.

    Args:
        dtype: of the weights; what learns is made float32 later.
    """
    kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    common: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    encoders = {
        name: kinds[name].from_pretrained(base.folder, subfolder=name, dtype=torch.float32, **common)
        for name in base.text_encoders
    }
    tokenizers = [
        CLIPTokenizer.from_pretrained(base.folder, subfolder=name, local_files_only=True)
        for name in ("tokenizer", "tokenizer_2")[: len(encoders)]
    ]
    unet = UNet2DConditionModel.from_pretrained(base.folder, subfolder="unet", **common)
    vae = AutoencoderKL.from_pretrained(base.folder, subfolder="vae", **common)
    for module in (unet, *encoders.values()):
        module.requires_grad_(False).eval().to(device, dtype)
    # The VAE is read once for each picture, so its precision costs little; XL's overflows in float16.
    vae.requires_grad_(False).eval().to(device, torch.float32)
    noise = DDPMScheduler.from_config(DDPMScheduler.load_config(base.folder / "scheduler"))
    return Parts(base, unet, vae, encoders, tokenizers, noise, device)
