"""LoRA files of other tools: Kohya's form, written and read. What is read becomes diffusers' form.

Kohya's keys are `lora_unet_`, `lora_te_` (SDXL: `lora_te1_`, `lora_te2_`) and a layer's name with underscores, followed
by `.lora_down.weight`, `.lora_up.weight`, `.alpha` and, for DoRA, `.dora_scale`. Layers have diffusers' names, or those
of the original Stable Diffusion code.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from schemas.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from training.bases import Base

_ENDS = {  # of our keys, and of Kohya's
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale",
}
_KNOWN = re.compile(r"^(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector)$")
_OTHER_KINDS = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "diff": "full-difference"}
_RESNET = {
    "in_layers_0": "norm1", "in_layers_2": "conv1", "emb_layers_1": "time_emb_proj",
    "out_layers_0": "norm2", "out_layers_3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def export(source: Path, target: Path, two_encoders: bool) -> None:
    """Write a LoRA in diffusers' form as a Kohya file, float16, with its true alpha."""
    tensors, metadata = _read(source)
    alphas = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    encoders = {"text_encoder": "lora_te1" if two_encoders else "lora_te", "text_encoder_2": "lora_te2"}
    written: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        found = _KNOWN.match(key)
        if not found:
            raise _refused(source, f"has the key {key!r}, which is no LoRA in diffusers' form")
        layer, end = found.groups()
        part, _, name = layer.partition(".")
        prefix = f"{encoders.get(part, 'lora_unet')}_{name.replace('.', '_')}"
        if end == "lora_magnitude_vector":  # by output, as LyCORIS writes it
            dimensions = tensors[f"{layer}.lora_A.weight"].dim()
            tensor = tensor.reshape(-1, *[1] * (dimensions - 1))
        if end == "lora_A.weight":
            rank = tensor.shape[0]
            alpha = (
                float(alphas.get(f"{part}.lora_alpha", rank)) * rank / float(alphas.get(f"{part}.r", rank))
            )
            written[f"{prefix}.alpha"] = torch.tensor(alpha)
        written[f"{prefix}.{_ENDS[end]}"] = tensor.half().contiguous()
    save_file(written, target, {"format": "pt", "ss_network_module": "networks.lora"})


def convert(source: Path, target: Path, base: Base) -> None:
    """Read a LoRA in diffusers' or Kohya's form, check every key and shape against a base, write diffusers' form.

    Raises:
        Rejected: it is damaged, of another kind, or of another family; the message names the first key.
    """
    tensors, metadata = _read(source)
    shapes = _layers(base)
    told = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    by_underscores = {_underscored(layer): layer for layer in shapes}
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind = next((name for part, name in _OTHER_KINDS.items() if f".{part}" in key), None)
        if kind:
            raise _refused(source, f"is a {kind} ({key}); LoRA and DoRA can be imported")
        layer, end = _place(key, by_underscores)
        if layer is None or layer not in shapes:
            raise _refused(source, f"has {key!r}, which belongs to no layer of {base.name} ({base.family})")
        layers.setdefault(layer, {})[end] = tensor
    written: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    dora = False
    for layer, pieces in layers.items():
        down, up = pieces.get("lora_A.weight"), pieces.get("lora_B.weight")
        if down is None or up is None:
            raise _refused(source, f"has only one of the two matrices of {layer}")
        out, into, *window = shapes[layer]
        if down.dim() == 2 and window:  # a 1 x 1 convolution as a matrix
            down, up = down[:, :, None, None], up[:, :, None, None]
        if list(down.shape[1:]) != [into, *window] or up.shape[0] != out or up.shape[1] != down.shape[0]:
            raise _refused(source, f"does not fit {base.name}: {layer} is {out} x {into} there")
        part, rank = layer.partition(".")[0], down.shape[0]
        alpha = float(pieces["alpha"]) if "alpha" in pieces else _told_alpha(told, part, rank)
        ranks[layer] = rank
        written[f"{layer}.lora_A.weight"] = down.float().contiguous()
        written[f"{layer}.lora_B.weight"] = (up.float() * (alpha / rank)).contiguous()
        if "lora_magnitude_vector" in pieces:
            if part != "unet":
                raise _refused(
                    source, f"is a DoRA of the text encoder ({layer}); loaders would drop its magnitudes"
                )
            scale, dora = pieces["lora_magnitude_vector"].float(), True
            if scale.numel() != out or (scale.dim() > 1 and scale.shape[0] != out):
                raise _refused(
                    source, f"is a DoRA scaled by inputs ({layer}); those scaled by outputs can be imported"
                )
            written[f"{layer}.lora_magnitude_vector"] = (
                scale.reshape(1, -1, 1, 1) if window else scale.reshape(-1)
            ).contiguous()
    save_file(written, target, {"format": "pt", "lora_adapter_metadata": json.dumps(_metadata(ranks, dora))})


def _metadata(ranks: dict[str, int], dora: bool) -> dict[str, Any]:
    """What peft needs to know, with every alpha equal to its rank."""
    told: dict[str, Any] = {}
    for part in sorted({layer.partition(".")[0] for layer in ranks}):
        mine = {
            layer.partition(".")[2].removeprefix("text_model."): rank
            for layer, rank in ranks.items()
            if layer.startswith(f"{part}.")
        }
        usual = max(mine.values(), key=list(mine.values()).count)
        odd = {f"{name}": rank for name, rank in mine.items() if rank != usual}
        told |= {
            f"{part}.r": usual,
            f"{part}.lora_alpha": usual,
            f"{part}.rank_pattern": odd,
            f"{part}.alpha_pattern": odd,
            f"{part}.lora_dropout": 0.0,
            f"{part}.use_dora": dora and part == "unet",
            f"{part}.bias": "none",
            f"{part}.target_modules": sorted(mine),
        }
    return told


def _told_alpha(told: dict[str, Any], part: str, rank: int) -> float:
    """The alpha that the metadata has for layers of this rank; without metadata alpha is the rank."""
    return float(told.get(f"{part}.lora_alpha", rank)) * rank / float(told.get(f"{part}.r", rank))


def _place(key: str, by_underscores: dict[str, str]) -> tuple[str | None, str]:
    """The layer and the end of our own key that a foreign one means."""
    found = _KNOWN.match(key)
    if found:
        layer = found[1]
        part, _, name = layer.partition(".")
        if part != "unet" and not name.startswith("text_model."):
            layer = f"{part}.text_model.{name}"
        return layer, found[2]
    stem, _, end = key.partition(".")
    ours = {"alpha": "alpha", **{theirs: mine for mine, theirs in _ENDS.items()}}.get(end)
    if ours is None:
        return None, end
    for prefix, part in (("lora_unet_", "unet"), ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"),
                         ("lora_te_", "text_encoder")):  # fmt: skip
        if stem.startswith(prefix):
            name = stem.removeprefix(prefix)
            found_layer = by_underscores.get(f"{part}_{name}")
            if found_layer is None and part == "unet":
                found_layer = by_underscores.get(f"unet_{_from_original(name)}")
            return found_layer, ours
    return None, ours


def _from_original(name: str) -> str:
    """A UNet layer's name in the original code to diffusers' with underscores, for two layers a block."""
    found = re.match(r"^(input|output)_blocks_(\d+)_(\d+)_(.+)$", name)
    if found:
        kind, block, part, rest = found[1], int(found[2]), int(found[3]), found[4]
        if kind == "input":
            level, layer = divmod(block - 1, 3)
            if rest == "op":
                return f"down_blocks_{level}_downsamplers_0_conv"
            return f"down_blocks_{level}_{_inner(part, layer, rest)}"
        level, layer = divmod(block, 3)
        if rest == "conv":
            return f"up_blocks_{level}_upsamplers_0_conv"
        return f"up_blocks_{level}_{_inner(part, layer, rest)}"
    found = re.match(r"^middle_block_(\d)_(.+)$", name)
    if found:
        part = int(found[1])
        return f"mid_block_{_inner(part % 2, part // 2, found[2])}"
    return {"time_embed_0": "time_embedding_linear_1", "time_embed_2": "time_embedding_linear_2"}.get(
        name, name
    )


def _inner(part: int, layer: int, rest: str) -> str:
    return f"attentions_{layer}_{rest}" if part == 1 else f"resnets_{layer}_{_RESNET.get(rest, rest)}"


def _underscored(layer: str) -> str:
    return layer.replace(".", "_")


def _layers(base: Base) -> dict[str, tuple[int, ...]]:
    """The shape of each layer of UNet and text encoders, by its name in a LoRA file."""
    found = {}
    for part in ("unet", *base.text_encoders):
        for key, (shape, _) in base.shapes[part].items():
            if key.endswith(".weight") and len(shape) in (2, 4):
                name = key.removesuffix(".weight")
                if part != "unet" and not name.startswith(("text_model.", "text_projection")):
                    name = f"text_model.{name}"
                found[f"{part}.{name}"] = shape
    return found


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise _refused(file, f"is not a whole safetensors file: {error}") from error


def _refused(file: Path, text: str) -> Rejected:
    return Rejected("unsupported", f"LoRA {file.name} {text}", field="loras")
