"""The names of a LoRA's tensors in two spellings: diffusers' and Kohya's.

diffusers writes `unet.mid_block.attentions.0.proj_in.lora_A.weight`, Kohya's tools
`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`. Those that train SDXL name the layers after its original
code instead (`lora_unet_middle_block_1_proj_in`). A DoRA has the magnitude of each output beside the two matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Format = Literal["diffusers", "kohya"]
Piece = Literal["down", "up", "alpha", "magnitude"]  # what of a layer a tensor is

_DIFFUSERS = re.compile(
    r"(?P<layer>.+?)\.(?:(?P<down>lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)\.weight"
    r"|(?P<up>lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up)\.weight"
    r"|(?P<magnitude>lora_magnitude_vector(?:\.default)?(?:\.weight)?)|(?P<alpha>alpha))"
)
_KOHYA = re.compile(
    r"(?P<layer>lora_(?:unet|te1|te2|te)_.+?)\."
    r"(?:(?P<down>lora_down\.weight)|(?P<up>lora_up\.weight)|(?P<alpha>alpha)|(?P<magnitude>dora_scale))"
)
_ENDS: dict[Format, dict[Piece, str]] = {
    "diffusers": {
        "down": "lora_A.weight",
        "up": "lora_B.weight",
        "alpha": "alpha",
        "magnitude": "lora_magnitude_vector",
    },
    "kohya": {
        "down": "lora_down.weight",
        "up": "lora_up.weight",
        "alpha": "alpha",
        "magnitude": "dora_scale",
    },
}
_PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_PARTS = {
    "lora_unet_": "unet",
    "lora_te2_": "text_encoder_2",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
}
#: Names that have an underscore, so that it is not read as a dot.
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "text_model", "self_attn", "q_proj", "k_proj",
    "v_proj", "out_proj", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "time_emb_proj", "conv_shortcut",
    "conv_in", "conv_out", "time_embedding", "add_embedding", "linear_1", "linear_2", "position_embedding",
    "token_embedding", "text_projection",
)  # fmt: skip
_SPLIT = re.compile("|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True)) + "|[a-z0-9]+")
_ORIGINAL = re.compile(r"(input_blocks|output_blocks|middle_block|time_embed_|label_emb|out_)")
_BLOCK = re.compile(r"(input|output)_blocks_(\d+)_(\d)_(.+)")
_MIDDLE = re.compile(r"middle_block_(\d)_(.+)")
_RESNET = {
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_SINGLE = {
    "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2",
    "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
    "input_blocks_0_0": "conv_in",
    "out_2": "conv_out",
}


def format_of(names: Iterable[str]) -> Format | None:
    """How the tensors of a LoRA are spelled; None when they are not a LoRA's."""
    for name in names:
        if _KOHYA.fullmatch(name):
            return "kohya"
        if _DIFFUSERS.fullmatch(name):
            return "diffusers"
    return None


def split(name: str, spelling: Format) -> tuple[str, Piece] | None:
    """(the layer's name in this spelling, what of it the tensor is); None when it is not a LoRA's tensor."""
    found = (_KOHYA if spelling == "kohya" else _DIFFUSERS).fullmatch(name)
    if found is None:
        return None
    pieces: tuple[Piece, ...] = ("down", "up", "alpha", "magnitude")
    piece = next(piece for piece in pieces if found.groupdict().get(piece))
    return found["layer"], piece


def join(layer: str, piece: Piece, spelling: Format) -> str:
    """The tensor's name."""
    return f"{layer}.{_ENDS[spelling][piece]}"


def to_kohya(layer: str, *, two_encoders: bool) -> str:
    """A layer's name, such as `unet.mid_block.attentions.0.proj_in`, for Kohya's tools.

    Raises:
        ValueError: it has none; the message says why.
    """
    part, _, inner = layer.removeprefix("base_model.model.").partition(".")
    if part not in _PREFIXES:
        raise ValueError(f"it belongs to {part!r}, for which Kohya's tools have no name")
    prefix = "lora_te1_" if part == "text_encoder" and two_encoders else _PREFIXES[part]
    if part != "unet" and not inner.startswith(("text_model.", "text_projection")):
        inner = f"text_model.{inner}"
    return prefix + inner.replace(".", "_")


def to_diffusers(layer: str) -> str:
    """A layer's name of Kohya's, such as `lora_unet_mid_block_attentions_0_proj_in`, as diffusers has it.

    Raises:
        ValueError: no layer that is known here has this name.
    """
    prefix = next(prefix for prefix in _PARTS if layer.startswith(prefix))
    part, inner = _PARTS[prefix], layer.removeprefix(prefix)
    if part == "unet" and _ORIGINAL.match(inner):
        inner = _from_original(inner)
    words = _SPLIT.findall(inner)
    if "_".join(words) != inner or _ORIGINAL.match(inner):
        raise ValueError("no layer that is known here has this name")
    return ".".join([part, *words])


def _from_original(name: str) -> str:
    """A UNet layer's name in the original code as diffusers', with underscores; blocks have two layers."""
    if found := _BLOCK.fullmatch(name):
        side, block, part, rest = found[1], int(found[2]), int(found[3]), found[4]
        level, layer = divmod(block - (side == "input"), 3)
        if side == "input" and rest == "op":
            return f"down_blocks_{level}_downsamplers_0_conv"
        if side == "output" and rest == "conv":
            return f"up_blocks_{level}_upsamplers_0_conv"
        return f"{'down' if side == 'input' else 'up'}_blocks_{level}_{_inside(part, layer, rest)}"
    if found := _MIDDLE.fullmatch(name):
        part = int(found[1])
        return f"mid_block_{_inside(part % 2, part // 2, found[2])}"
    return _SINGLE.get(name, name)


def _inside(part: int, layer: int, rest: str) -> str:
    return f"attentions_{layer}_{rest}" if part == 1 else f"resnets_{layer}_{_RESNET.get(rest, rest)}"
