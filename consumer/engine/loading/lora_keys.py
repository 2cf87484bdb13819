"""What a LoRA's file changes, told from the names and shapes of its tensors alone.

diffusers leaves out the tensors that it cannot place, without a word, and draws with the rest. So every
tensor is placed here first, and a file that does not fit this model as a whole is refused.
"""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import nn

Shape = tuple[int, ...]
Place = tuple[str, str]  # the part of the pipeline, and the flattened name of a layer in it

_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
#: The end of a tensor's name, in the spellings of diffusers, PEFT and Kohya: which half of the product it is.
_HALF = re.compile(
    r"[._](?:(?P<down>lora_A(?:\.default)?|lora[._]down|lora_linear_layer\.down)"
    r"|(?P<up>lora_B(?:\.default)?|lora[._]up|lora_linear_layer\.up))\.weight$"
)
_BESIDE = re.compile(r"\.(?:alpha|lora_magnitude_vector(?:\.default)?(?:\.weight)?)$")
_KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
#: Kohya's names inside an SDXL block, after its blocks were renamed.
_INSIDE = (
    ("in_layers_2", "conv1"), ("out_layers_3", "conv2"), ("emb_layers_1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"), ("samplers_0_op", "samplers_0_conv"),
    ("time_embed_0", "time_embedding_linear_1"), ("time_embed_2", "time_embedding_linear_2"),
    ("label_emb_0_0", "add_embedding_linear_1"), ("label_emb_0_2", "add_embedding_linear_2"),
    ("input_blocks_0_0", "conv_in"), ("out_2", "conv_out"),
)  # fmt: skip
_FOREIGN = (
    (r"lokr_|hada_|\.oft_|\.diff(_b)?$|glora|\.ia3", "it is a LyCORIS file, not a LoRA"),
    (r"dora_scale$", "it is a DoRA in Kohya's spelling, which `dreamdrop models import` converts"),
    (r"lora_mid", "its layers have three parts (LoCon with CP), which is not offered"),
    (r"double_blocks|single_blocks|single_transformer_blocks", "it is made for Flux"),
    (r"^(base_model\.model\.)?(diffusion_model|transformer)\.|lora_transformer|joint_blocks|lora_te3",
     "it is made for another family (a transformer, such as SD 3 or Flux)"),
    (r"text_encoder_2|lora_te2|label_emb|add_embedding", "it is made for SDXL"),
)  # fmt: skip
_NOT_OURS = "it is made for another model, or its layers do not have diffusers' names (transformer.…)"
_FAMILIES = {
    768: "SD 1.x",
    1024: "SD 2.x",
    2048: "SDXL",
}  # by the width of the text that cross attention reads


class Misfit(ValueError):
    """The file does not fit the model; the message says why and names the first tensor that does not."""


def layers(shapes: Mapping[str, Shape], pipe: Any) -> set[Place]:
    """The layers of the pipeline's denoiser and text encoders that the tensors change.

    Raises:
        Misfit: a tensor has no layer in this model, or not its shape.
    """
    weights = _weights(pipe)
    renamed = _renamed(shapes, pipe)
    halves: dict[Place, dict[str, tuple[str, Shape]]] = {}
    beside: list[tuple[str, Place]] = []
    for key, shape in shapes.items():
        for pattern, why in _FOREIGN[:3]:
            if re.search(pattern, key):
                raise Misfit(f"{why} ({key})")
        name = renamed.get(key, key)
        half, extra = _HALF.search(name), _BESIDE.search(name)
        found = half or extra
        place = _place(name[: found.start()]) if found else None
        if place is None or place not in weights:
            theirs = _family(shapes) if hasattr(pipe, "unet") else _NOT_OURS
            raise Misfit(f"{theirs}: this model has no layer for {key}")
        if half:
            halves.setdefault(place, {})["down" if half["down"] else "up"] = (key, shape)
        else:
            beside.append((key, place))
    for key, place in beside:
        if place not in halves:
            raise Misfit(f"it has {key}, and no weights for that layer")
        if "magnitude" in key and place[0] != "unet":
            raise Misfit(f"it is a DoRA of a text encoder, whose magnitudes diffusers leaves out ({key})")
    for place, parts in halves.items():
        _check(parts, tuple(weights[place].shape), shapes)
    return set(halves)


def _check(parts: Mapping[str, tuple[str, Shape]], whole: Shape, shapes: Mapping[str, Shape]) -> None:
    """Whether the two halves make up a matrix of the layer's shape."""
    if len(parts) < 2:
        raise Misfit(f"{next(iter(parts.values()))[0]} has no other half")
    (key, down), (_, up) = parts["down"], parts["up"]
    fits = len(down) == len(up) == len(whole) and down[1:] == whole[1:]
    if not (fits and up[0] == whole[0] and up[1] == down[0] and set(up[2:]) <= {1}):
        raise Misfit(f"{_family(shapes)}: {key} has the shape {list(down)}, and the layer has {list(whole)}")


def layers_with(adapter: str, pipe: Any) -> set[Place]:
    """The layers that a loaded LoRA acts on, by the name that it has inside them."""
    return {
        (part, _flat(name))
        for part in _PARTS
        for name, layer in _named_modules(pipe, part)
        if adapter in getattr(layer, "lora_A", ())
    }


def _weights(pipe: Any) -> dict[Place, torch.Tensor]:
    """The weights of the denoiser's and the text encoders' layers."""
    found = {}
    for part in _PARTS:
        for name, layer in _named_modules(pipe, part):
            layer = getattr(layer, "base_layer", layer)  # one that has a LoRA already
            weight: torch.Tensor | None = getattr(layer, "weight", None)
            if weight is not None and "lora_" not in name:
                found[part, _flat(name.removesuffix(".base_layer"))] = weight
    return found


def _named_modules(pipe: Any, part: str) -> Iterable[tuple[str, nn.Module]]:
    module = getattr(pipe, part, None)
    return module.named_modules() if module is not None else ()


def _place(name: str) -> Place:
    """(part, flattened name) of the layer that a tensor belongs to."""
    for prefix, part in _KOHYA.items():
        if name.startswith(prefix):
            return part, _flat(name.removeprefix(prefix))
    name = name.removeprefix("base_model.model.")
    part, _, inner = name.partition(".")
    return (part, _flat(inner)) if part in _PARTS else ("", name)


def _flat(name: str) -> str:
    """A name as all spellings have it: `attn1.processor.to_out_lora` and `attn1_to_out_0` are one layer."""
    flat = name.replace(".", "_").removeprefix("text_model_").replace("_processor_", "_")
    flat = re.sub(r"_to_out$", "_to_out_0", flat)
    return re.sub(r"_self_attn_to_([qkv])$", r"_self_attn_\1_proj", flat)


def _renamed(shapes: Iterable[str], pipe: Any) -> dict[str, str]:
    """Kohya's names of SDXL layers, which follow the original code, as diffusers names them."""
    old = [key for key in shapes if re.match(r"lora_unet_(input|middle|output|time_embed_|label_|out_)", key)]
    if not old or not (hasattr(pipe, "text_encoder_2") and hasattr(pipe, "unet")):
        return {}
    conversion = importlib.import_module("diffusers.loaders.lora_conversion_utils")
    try:
        new = {
            old_key: name
            for name, old_key in conversion._maybe_map_sgm_blocks_to_diffusers(
                {key: key for key in old}, pipe.unet.config
            ).items()
        }
    except (ValueError, IndexError, KeyError) as error:
        raise Misfit(f"this model has no layer for {old[0]}") from error
    for key, name in new.items():
        for theirs, ours in _INSIDE:
            name = name.replace(theirs, ours)
        new[key] = (
            name.replace("middle_block", "mid_block")
            .replace("input_blocks", "down_blocks")
            .replace("output_blocks", "up_blocks")
        )
    return new


def _family(shapes: Mapping[str, Shape]) -> str:
    """What a file seems to be made for, in words."""
    for pattern, why in _FOREIGN[3:]:
        if any(re.search(pattern, key) for key in shapes):
            return why
    for key, shape in shapes.items():
        if re.search(r"attn2.*to_k.*(down|lora_A)", key) and len(shape) == 2 and shape[1] in _FAMILIES:
            return f"it is made for {_FAMILIES[shape[1]]}"
    return "it is not made for this model"
