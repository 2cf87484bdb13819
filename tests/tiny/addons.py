"""Tiny genuine ControlNets and IP-Adapters with random weights, for the models of `tests.studio`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import diffusers as d
import torch
import transformers as t
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from safetensors.torch import save_file

from consumer.renderer.protocol import RawPicture

if TYPE_CHECKING:
    from pathlib import Path

_CLIP = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}


def save_controlnet(model: Path, folder: Path, seed: int = 0, **config: Any) -> Path:
    """Write a ControlNet for a model's UNet; what it adds is loud enough to be seen."""
    torch.manual_seed(seed)
    unet = d.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    net = d.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 16))
    with torch.no_grad():  # its last layers begin with zeros
        for layer in (
            *net.controlnet_down_blocks,
            net.controlnet_mid_block,
            net.controlnet_cond_embedding.conv_out,
        ):
            layer.weight.normal_(std=0.3)
    net.register_to_config(**config)
    net.save_pretrained(folder)
    return folder


def save_ip_adapter(model: Path, folder: Path, *, plus: bool = False) -> Path:
    """Write an IP-Adapter for a model's UNet, and the image encoder beside it; returns the file of weights."""
    torch.manual_seed(9)
    unet = d.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    width, tokens = unet.config.cross_attention_dim, 4
    encoder = t.CLIPVisionModelWithProjection(
        t.CLIPVisionConfig(**_CLIP, image_size=16, patch_size=8, projection_dim=24)
    )
    encoder.save_pretrained(folder / "image_encoder")
    state = {}
    if plus:
        made = d.models.embeddings.IPAdapterPlusImageProjection(
            embed_dims=32, output_dims=width, hidden_dims=64, depth=4, heads=1, num_queries=tokens
        )
        state |= _as_published(made)
    else:
        state["image_proj.proj.weight"] = torch.randn(tokens * width, 24)
        state["image_proj.proj.bias"] = torch.randn(tokens * width)
        state["image_proj.norm.weight"], state["image_proj.norm.bias"] = torch.ones(width), torch.zeros(width)
    places = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(places):
        layer = IPAdapterAttnProcessor2_0(
            unet.get_submodule(name.removesuffix(".processor")).to_q.out_features, width
        )
        for part in ("to_k_ip", "to_v_ip"):
            state[f"ip_adapter.{2 * number + 1}.{part}.weight"] = 4 * getattr(layer, part)[0].weight.detach()
    save_file(state, folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def _as_published(projection: Any) -> dict[str, torch.Tensor]:
    """The names that the authors' files have for the plus kind: the other way round than diffusers reads them."""
    state = {"image_proj.latents": torch.randn_like(projection.latents)}
    for name, tensor in projection.state_dict().items():
        if name == "latents":
            continue
        if name.startswith("layers."):
            _, layer, inner = name.split(".", 2)
            renamed = {
                "ln0": "0.norm1", "ln1": "0.norm2", "attn.to_q": "0.to_q", "attn.to_out.0": "0.to_out",
                "ff.0": "1.0", "ff.1.net.0.proj": "1.1", "ff.1.net.2": "1.3",
            }  # fmt: skip
            for ours, theirs in renamed.items():
                if inner.startswith(f"{ours}."):
                    state[f"image_proj.layers.{layer}.{theirs}.{inner.removeprefix(f'{ours}.')}"] = (
                        tensor.contiguous()
                    )
            if inner == "attn.to_k.weight":
                value = projection.state_dict()[f"layers.{layer}.attn.to_v.weight"]
                state[f"image_proj.layers.{layer}.0.to_kv.weight"] = torch.cat([tensor, value])
        else:
            state[f"image_proj.{name}"] = tensor.contiguous()
    return state


def picture(seed: int, width: int = 32, height: int = 32) -> RawPicture:
    """Random pixels."""
    torch.manual_seed(seed)
    return RawPicture(width, height, 3, bytes(torch.randint(0, 256, (width * height * 3,)).tolist()))
