"""Tiny genuine diffusers pipelines with random weights, one for each family of transformers.

Their shapes are the smallest that the classes take. `save(name, folder)` writes one.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import diffusers as d
import torch

from tests.tiny.parts import SHIFTED, clip, flow, gemma, qwen3, t5, tokenizer, vae
from tests.tiny.qwen_image import qwen_image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _flux(kind: Any = d.FluxPipeline, *, guided: bool = True) -> Any:
    transformer = d.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=guided,
    )
    return kind(
        scheduler=flow(**SHIFTED),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(),
        tokenizer=tokenizer(24),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(48),
        transformer=transformer,
    )


def _sd3() -> Any:
    transformer = d.SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        pos_embed_max_size=24,
    )
    return d.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=vae(16, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=clip(projects=True),
        tokenizer=tokenizer(24),
        text_encoder_2=clip(projects=True),
        tokenizer_2=tokenizer(24),
        text_encoder_3=t5(64),
        tokenizer_3=tokenizer(48),
    )


def _z_image() -> Any:
    transformer = d.ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[512, 32, 32],
    )
    with torch.no_grad():  # made by torch.empty
        for token in (transformer.x_pad_token, transformer.cap_pad_token):
            token.normal_(std=0.02)
    return d.ZImagePipeline(
        transformer=transformer,
        vae=vae(16, shift_factor=0.11, scaling_factor=0.36),
        scheduler=flow(shift=3.0),
        text_encoder=qwen3(),
        tokenizer=tokenizer(128, chat=True),
    )


def _pixart() -> Any:
    transformer = d.PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=32,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=24,
    )
    return d.PixArtSigmaPipeline(
        transformer=transformer,
        vae=vae(4),
        scheduler=d.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        text_encoder=t5(),
        tokenizer=tokenizer(48),
    )


def _sana() -> Any:
    transformer = d.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=16,
    )
    halves = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in (
            ("block_types", ("ResBlock", "EfficientViTBlock")),
            ("block_out_channels", (8, 8)),
            ("qkv_multiscales", ((), (5,))),
            ("layers_per_block", (1, 1)),
        )
    }
    decoder = d.AutoencoderDC(latent_channels=4, attention_head_dim=2, scaling_factor=0.41, **halves)
    return d.SanaPipeline(
        transformer=transformer,
        vae=decoder,
        scheduler=flow(shift=3.0),
        text_encoder=gemma(),
        tokenizer=tokenizer(48),
    )


def _lumina2() -> Any:
    transformer = d.Lumina2Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        axes_lens=[512, 64, 64],
        cap_feat_dim=16,
    )
    return d.Lumina2Pipeline(
        transformer=transformer,
        vae=vae(
            4, widths=(8, 8, 8, 16), shift_factor=0.06, scaling_factor=1.5
        ),  # the pipeline counts on 8 pixels
        scheduler=flow(shift=3.0),
        text_encoder=gemma(),
        tokenizer=tokenizer(256),
    )


def _chroma() -> Any:
    transformer = d.ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    return d.ChromaPipeline(
        scheduler=flow(),
        vae=vae(4, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=t5(),
        tokenizer=tokenizer(48),
        transformer=transformer,
    )


def _flux2_klein() -> Any:
    transformer = d.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )
    return d.Flux2KleinPipeline(
        scheduler=flow(**SHIFTED),
        vae=vae(4, "AutoencoderKLFlux2", use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=qwen3("Qwen3ForCausalLM", layers=28),  # layers 9, 18 and 27 are read
        tokenizer=tokenizer(128, chat=True),
        transformer=transformer,
    )


def _lcm() -> Any:
    unet = d.UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
        time_cond_proj_dim=32,
    )
    parts = (vae(4), clip(), tokenizer(24), unet, d.LCMScheduler(**_BETAS))
    return d.LatentConsistencyModelPipeline(*parts, None, None, requires_safety_checker=False)


FAMILIES: dict[str, Callable[[], Any]] = {
    "flux": _flux,
    "schnell": lambda: _flux(guided=False),
    "sd3": _sd3,
    "z_image": _z_image,
    "qwen_image": qwen_image,
    "pixart": _pixart,
    "sana": _sana,
    "lumina2": _lumina2,
    "chroma": _chroma,
    "klein": _flux2_klein,
    "lcm": _lcm,
}

EDITORS: dict[str, Callable[[], Any]] = {
    "kontext": lambda: _flux(d.FluxKontextPipeline),
    "qwen_edit": lambda: qwen_image(d.QwenImageEditPipeline),
    "qwen_edit_plus": lambda: qwen_image(d.QwenImageEditPlusPipeline),
    "klein": _flux2_klein,
}


def _aura_flow() -> Any:
    transformer = d.AuraFlowTransformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=1024,
    )
    return d.AuraFlowPipeline(
        tokenizer=tokenizer(48), text_encoder=t5(), vae=vae(4), transformer=transformer, scheduler=flow()
    )


#: Of classes that no table knows.
UNKNOWN: dict[str, Callable[[], Any]] = {"aura_flow": _aura_flow}


def save(name: str, folder: Path, *, loud: float = 3.0) -> Path:
    """Write the diffusers folder of a family.

    Args:
        loud: what the denoiser's matrices are multiplied by, so that text and time change the picture visibly.
    """
    torch.set_num_threads(1)  # tiny tensors gain nothing from more
    torch.manual_seed(4)
    pipe = (FAMILIES | EDITORS | UNKNOWN)[name]()
    denoiser = pipe.components.get("transformer") or pipe.unet
    with torch.no_grad():
        for weight in denoiser.parameters():
            if weight.ndim == 2:
                weight.mul_(loud)
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    if "processor" in index:  # the class that has videos, too, cannot be made without torchvision
        index["processor"] = ["transformers", "Qwen2VLProcessor"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder
