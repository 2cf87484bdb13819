"""Weights in fewer bits: half the memory of a denoiser and of its text encoders, for small cards.

`fp8` needs no other package: diffusers keeps the matrices in float8_e4m3fn and converts each to the computing precision
while its layer runs. Norms, embeddings and most of what a model's own class excludes keep their precision, and so do
VAEs. The layers that make a block's scales and shifts are kept in 8 bits, too: diffusers excludes them by their name
("norm"), and in FLUX.1 they are a quarter of all weights.
LoRAs are refused: peft would round their own weights to 8 bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.loading.libraries import library

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Of text encoders. T5 compares the precision of `wo` with that of its input; `lm_head` may be the embedding once more.
_KEPT = (r"(^|\.)wo$", r"(^|\.)lm_head$")


def quantize(components: Mapping[str, Any], denoiser: str, dtype: torch.dtype) -> None:
    """Keep the weights of a pipeline's denoiser and text encoders in 8 bits.

    Args:
        components: by name; those without weights are left alone.
        denoiser: its name.
        dtype: in which is computed.
    """
    library("diffusers")
    from diffusers.hooks import apply_layerwise_casting
    from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN

    module = components[denoiser]
    own = (*(module._skip_layerwise_casting_patterns or ()), *(module._keep_in_fp32_modules or ()))
    kept = tuple({*DEFAULT_SKIP_MODULES_PATTERN, *own} - {"norm"})
    apply_layerwise_casting(module, torch.float8_e4m3fn, dtype, skip_modules_pattern=kept)
    for name, module in components.items():
        if name.startswith("text_encoder") and isinstance(module, torch.nn.Module):
            apply_layerwise_casting(
                module,
                torch.float8_e4m3fn,
                dtype,
                skip_modules_pattern=(*DEFAULT_SKIP_MODULES_PATTERN, *_KEPT),
                skip_modules_classes=(torch.nn.Embedding,),
            )
