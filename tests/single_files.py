"""Writes a pipeline as one file with the names of the original code, as community sites share models.

Blocks of the UNet have one layer each, as in the small models of the tests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
SINGLE = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
    "conv_out": "out.2", "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip
VAE = {
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2", "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
}  # fmt: skip


def write_checkpoint(folder: Path, file: Path, *, open_clip: bool = False) -> Path:
    """Write the weights of a diffusers folder into one file.

    Args:
        open_clip: with the names of Stable Diffusion 2, whose text encoder is one of OpenCLIP.
    """
    tensors: dict[str, Any] = {}
    unet = _weights(folder / "unet")
    for name, tensor in unet.items():
        tensors[f"model.diffusion_model.{_unet(name, unet)}"] = tensor
    vae = _weights(folder / "vae")
    levels = len({name.split(".")[2] for name in vae if name.startswith("decoder.up_blocks.")})
    for name, tensor in vae.items():
        old = _vae(name, levels)
        matrix = ".attn_1." in old and old.endswith("weight") and tensor.dim() == 2
        tensors[f"first_stage_model.{old}"] = tensor[:, :, None, None] if matrix else tensor
    two = (folder / "text_encoder_2").is_dir()
    place = "conditioner.embedders.0.transformer" if two else "cond_stage_model.transformer"
    if open_clip:
        tensors |= _open_clip(_weights(folder / "text_encoder"), "cond_stage_model.model")
    encoder = {} if open_clip else _weights(folder / "text_encoder")
    for name, tensor in encoder.items():
        tensors[f"{place}.text_model.{name.removeprefix('text_model.')}"] = tensor
    if two:
        tensors |= _open_clip(_weights(folder / "text_encoder_2"), "conditioner.embedders.1.model")
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
    return file


def _weights(part: Path) -> dict[str, Any]:
    [file] = part.glob("*.safetensors")
    return load_file(file)


def _unet(name: str, all_names: dict[str, Any]) -> str:
    found = re.fullmatch(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name
    )
    if found:
        side, level, kind, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if side == "down":
            block = 2 * level + 1 + layer if kind != "downsamplers" else 2 * level + 2
            prefix = f"input_blocks.{block}"
        else:
            prefix = f"output_blocks.{2 * level + (layer if kind != 'upsamplers' else 1)}"
        if kind == "downsamplers":
            return f"{prefix}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            attends = any(other.startswith(f"up_blocks.{level}.attentions") for other in all_names)
            return f"{prefix}.{2 if attends else 1}.{rest}"
        return f"{prefix}.{1 if kind == 'attentions' else 0}.{_resnet(rest) if kind == 'resnets' else rest}"
    for ours, theirs in SINGLE.items():
        if name.startswith(f"{ours}."):
            rest = name.removeprefix(f"{ours}.")
            return f"{theirs}.{_resnet(rest) if 'resnets' in ours else rest}"
    raise AssertionError(name)


def _resnet(rest: str) -> str:
    part, _, end = rest.partition(".")
    return f"{RESNET[part]}.{end}"


def _vae(name: str, levels: int) -> str:
    for ours, theirs in VAE.items():
        name = name.replace(f"{ours}.", f"{theirs}.")
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name).replace("down_blocks", "down")
    name = re.sub(r"up_blocks\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)
    return name.replace(".resnets.", ".block.")


def _open_clip(weights: dict[str, Any], place: str) -> dict[str, Any]:
    """A text encoder of OpenCLIP, whose three matrices of attention are one."""
    tensors: dict[str, Any] = {}
    flat = {name.removeprefix("text_model."): tensor for name, tensor in weights.items()}
    tensors[f"{place}.token_embedding.weight"] = flat["embeddings.token_embedding.weight"]
    tensors[f"{place}.positional_embedding"] = flat["embeddings.position_embedding.weight"]
    if "text_projection.weight" in flat:
        tensors[f"{place}.text_projection"] = flat["text_projection.weight"].T
    for end in ("weight", "bias"):
        tensors[f"{place}.ln_final.{end}"] = flat[f"final_layer_norm.{end}"]
    for number in {int(name.split(".")[2]) for name in flat if name.startswith("encoder.layers.")}:
        layer, block = f"encoder.layers.{number}", f"{place}.transformer.resblocks.{number}"
        for end in ("weight", "bias"):
            heads = [flat[f"{layer}.self_attn.{which}_proj.{end}"] for which in "qkv"]
            tensors[f"{block}.attn.in_proj_{end}"] = torch.cat(heads)
            for theirs, ours in {
                "attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
            }.items():  # fmt: skip
                tensors[f"{block}.{theirs}.{end}"] = flat[f"{layer}.{ours}.{end}"]
    return tensors
