"""Tiny genuine pipelines of Qwen-Image and its editors."""

from __future__ import annotations

from typing import Any

import diffusers as d
import torch

from tests.tiny.parts import SHIFTED, flow, picture_processor, qwen_vl, tokenizer


def qwen_image(kind: Any = d.QwenImagePipeline) -> Any:
    transformer = d.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    )
    decoder = d.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    edits = kind is not d.QwenImagePipeline
    if edits:  # an untrained decoder shows little of what a second picture changes
        with torch.no_grad():
            decoder.decoder.conv_out.weight.mul_(8)
    return kind(
        transformer=transformer,
        vae=decoder,
        scheduler=flow(**{**SHIFTED, "max_shift": 0.9, "shift": 1.0, "shift_terminal": 0.02}),
        text_encoder=qwen_vl(sees=edits),
        tokenizer=tokenizer(1024),
        **({"processor": picture_processor()} if edits else {}),
    )
