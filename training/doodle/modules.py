"""doodle's parts: genuine Stable Diffusion components, only small.

The layout is Stable Diffusion's (Rombach et al. 2022, arXiv:2112.10752): a VAE that shrinks
pictures 8 times to 4 latent channels, a CLIP text encoder (causal, padded to a fixed length),
and a UNet with cross-attention. As in Stable Diffusion 2.1 the UNet predicts v (Salimans and
Ho 2022, arXiv:2202.00512).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.doodle.scenes import SIDE, WORDS

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TOKENS = 32  # tokens in a prompt, start and end included
_WIDTH = 128  # channels of a text token


def make_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """A byte-level BPE tokenizer with one entry for each given word; other words fall into pieces."""
    alphabet = _byte_alphabet()
    vocabulary = [*alphabet, *(c + "</w>" for c in alphabet)]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces = [pair[0] + pair[1], *pieces[2:]]
            if pair not in merges:
                merges.append(pair)
                vocabulary.append(pieces[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(dict.fromkeys(vocabulary))},
        merges=merges,
        model_max_length=MAX_TOKENS,
    )


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A two-layer CLIP text model; output (batch, MAX_TOKENS, 128)."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=4 * _WIDTH,
            projection_dim=_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )


def make_vae() -> AutoencoderKL:
    """An 8x autoencoder: (b, 3, h, w) in [-1, 1] to (b, 4, h/8, w/8) latents."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,  # more groups lose flat colours: each is normalised away
        mid_block_add_attention=False,
        sample_size=SIDE,
        force_upcast=False,
    )
    _start_as_identity(vae)
    return vae


def make_unet() -> UNet2DConditionModel:
    """A three-level UNet on (b, 4, 16, 16) latents; text attention on the two coarser levels."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        cross_attention_dim=_WIDTH,
        attention_head_dim=4,  # diffusers reads this as the number of heads
        norm_num_groups=8,
        use_linear_projection=True,
    )
    _start_as_identity(unet)
    nn.init.zeros_(unet.conv_out.weight)
    return unet


def make_scheduler() -> DPMSolverMultistepScheduler:
    """Stable Diffusion 2.1's noise schedule, sampled by DPM-Solver++ (Lu et al. 2022)."""
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
    )


def _start_as_identity(model: nn.Module) -> None:
    """Zero the last layer of each residual branch; diffusers does not, and small nets need it."""
    for name, module in model.named_modules():
        if name.endswith(("conv2", "proj_out")) and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _byte_alphabet() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
