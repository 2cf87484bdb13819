"""Pictures by a plain diffusers pipeline around the parts: class pictures before training, validation along the way."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from diffusers.image_processor import VaeImageProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from training.dreambooth.parts import Parts


@torch.no_grad()
def draw(
    parts: Parts,
    prompts: Sequence[str],
    seeds: Sequence[int],
    side: int,
    how: tuple[int, float],
    precision: AbstractContextManager[None] | None = None,
) -> list[Image.Image]:
    """One RGB picture a prompt, each with its own seed, drawn together.

    Args:
        side: pixels.
        how: denoising steps and guidance scale.
        precision: an autocast context for the UNet; the VAE always decodes in float32.
    """
    steps, guidance = how
    modes = {module: module.training for module in parts.modules.values()}
    for module in modes:
        module.eval()
    try:
        with precision or nullcontext():
            latents = parts.pipeline()(
                list(prompts),
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=side,
                width=side,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="latent",
            ).images
        decoded = parts.vae.decode(latents.float() / parts.vae.config.scaling_factor, return_dict=False)[0]
        return VaeImageProcessor(vae_scale_factor=parts.base.factor).postprocess(decoded)
    finally:
        for module, mode in modes.items():
            module.train(mode)
