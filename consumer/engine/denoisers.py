"""How the calls of each denoiser are joined, by its class in diffusers. Data only, no torch: a new class is one line.

A denoiser is the module that a pipeline calls at every step. Most of its arguments have one row for each image along
their first dimension, and calls are joined by putting the rows below each other. Only what differs stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Text:
    """Text of any length, which is padded to that of its company; a mask tells what was added."""

    states: str  # (rows, tokens, width)
    mask: str  # (rows, tokens), or none where every token counts
    longest: int  # tokens: exact mode pads to multiples of it


@dataclass(frozen=True, slots=True)
class Denoiser:
    """The arguments of one class, as far as they differ from rows along the first dimension."""

    latents: str = "hidden_states"  # its length is the number of rows
    time: str = "timestep"  # one number for each row
    shared: frozenset[str] = _NONE  # without rows: only calls with equal values are joined
    lists: frozenset[str] = _NONE  # lists with an entry for each row
    ragged: frozenset[str] = _NONE  # of these, the ones whose entries may differ in length
    text: Text | None = None
    reads_length: str = (
        ""  # a mask: the text is cut to the longest of the company, so exact mode joins equal lengths
    )
    state: frozenset[str] = _NONE  # what a pipeline keeps between calls: a call with it is never joined
    answers_lists: bool = False  # the answer is a list with an entry for each row
    #: Latents of several sizes may share a call: the module pads each to a multiple of so many places
    #: (height x width), and to the largest of the company. 0: they may not.
    sizes: int = 0
    joins: bool = True


#: For the calls of text encoders and VAEs: rows along the first dimension. Pictures that a text encoder reads have
#: no such rows: all their patches follow each other.
PLAIN = Denoiser(latents="", time="", state=frozenset({"pixel_values"}))
#: For a class that no line knows: its calls are made as they come.
UNKNOWN = Denoiser(latents="", time="", joins=False)

_IDS = frozenset({"img_ids", "txt_ids"})

DENOISERS: Mapping[str, Denoiser] = {
    "UNet2DConditionModel": Denoiser(latents="sample"),
    "ControlNetModel": Denoiser(latents="sample"),
    "SD3Transformer2DModel": Denoiser(),
    "PixArtTransformer2DModel": Denoiser(),
    "SanaTransformer2DModel": Denoiser(),
    "FluxTransformer2DModel": Denoiser(shared=_IDS),
    "Flux2Transformer2DModel": Denoiser(shared=_IDS, state=frozenset({"kv_cache"})),
    "ChromaTransformer2DModel": Denoiser(shared=_IDS),
    "Lumina2Transformer2DModel": Denoiser(reads_length="encoder_attention_mask"),
    "QwenImageTransformer2DModel": Denoiser(
        lists=frozenset({"img_shapes"}),
        text=Text("encoder_hidden_states", "encoder_hidden_states_mask", longest=512),
    ),
    "ZImageTransformer2DModel": Denoiser(
        latents="x",
        time="t",
        lists=frozenset({"x", "cap_feats"}),
        ragged=frozenset({"cap_feats"}),
        answers_lists=True,
        sizes=32 * 2 * 2,  # tokens of 2 x 2 places
    ),
}
#: Of these, modules that a pipeline asks at every step before its denoiser.
SIDES = frozenset({"ControlNetModel"})
