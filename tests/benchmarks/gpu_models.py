"""Models of real sizes with random weights, made on the device: what a call costs does not depend on the numbers.

Only the denoisers and the VAEs have their real sizes. Text encoders have the real widths and few layers, because
prompts are encoded once and not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers as d
import torch

from tests.studio import save_tiny, save_tiny_sdxl
from tests.tiny.families import save
from tests.tiny.parts import clip, qwen3, tokenizer

if TYPE_CHECKING:
    from pathlib import Path

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_SDXL_SIZES = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}


@dataclass(frozen=True)
class Sized:
    """A model to measure."""

    about: str
    side: int  # pixels
    sampler: str
    steps: int  # of the homogeneous backlog


SIZED = {
    "sd21": Sized("UNet of SD 2.1, 0.87 B", 768, "DDIM", 20),
    "sdxl": Sized("UNet of SDXL, 2.6 B", 1024, "DDIM", 20),
    "z_image": Sized("transformer of Z-Image, 6 B", 1024, "Flow Euler", 9),
}


def save_sized(name: str, folder: Path, device: str, dtype: torch.dtype, *, tiny: bool) -> Path:
    """Write the diffusers folder of a model, in the precision that it is measured in."""
    if tiny:
        if name == "z_image":
            return save(name, folder)
        base = save_tiny(folder if name == "sd21" else folder.with_name("base"))
        return base if name == "sd21" else save_tiny_sdxl(folder, base)
    made(name, device, dtype).save_pretrained(folder)
    return folder


def made(name: str, device: str, dtype: torch.dtype) -> Any:
    """The pipeline of a model, with random weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), torch.no_grad():
            return {"sd21": _sd21, "sdxl": _sdxl, "z_image": _z_image}[name]()
    finally:
        torch.set_default_dtype(before)


def _scheduler(name: str, **config: Any) -> Any:
    with torch.device("cpu"):  # it makes tables with numpy
        return getattr(d, f"{name}Scheduler")(**config)


def _vae(channels: int = 4, **more: Any) -> Any:
    return d.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=channels,
        sample_size=768,
        **more,
    )


def _text(width: int, heads: int, *, projects: bool = False) -> Any:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
    return clip(projects=projects, max_position_embeddings=77, projection_dim=width, **sizes)


def _sd21() -> Any:
    unet = d.UNet2DConditionModel(
        sample_size=96,
        cross_attention_dim=1024,
        attention_head_dim=[5, 10, 20, 20],
        use_linear_projection=True,
    )
    scheduler = _scheduler("DDIM", **_BETAS, clip_sample=False, steps_offset=1)
    parts = (_vae(), _text(1024, 16), tokenizer(77), unet, scheduler, None, None)
    return d.StableDiffusionPipeline(*parts, requires_safety_checker=False)


def _sdxl() -> Any:
    unet = d.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=[1, 2, 10],
        attention_head_dim=[5, 10, 20],
        cross_attention_dim=2048,
        addition_embed_type="text_time",
        use_linear_projection=True,
        **_SDXL_SIZES,
    )
    return d.StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text(768, 12),
        text_encoder_2=_text(1280, 20, projects=True),
        tokenizer=tokenizer(77),
        tokenizer_2=tokenizer(77),
        unet=unet,
        scheduler=_scheduler("DDIM", **_BETAS, clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def _z_image() -> Any:
    transformer = d.ZImageTransformer2DModel()  # its defaults are the published model's
    for token in (transformer.x_pad_token, transformer.cap_pad_token):  # made by torch.empty
        token.normal_(std=0.02)
    return d.ZImagePipeline(
        transformer=transformer,
        vae=_vae(
            16, shift_factor=0.1159, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False
        ),
        scheduler=_scheduler("FlowMatchEulerDiscrete", shift=3.0),
        text_encoder=qwen3(hidden_size=2560, intermediate_size=9728, num_attention_heads=32, head_dim=128),
        tokenizer=tokenizer(512, chat=True),
    )
