"""Models to measure with: three with random weights that stand for a GPU on a CPU, and the bundled one.

What batching is worth depends on how much of a device one picture fills. The *launch-bound*
stand-in is so small that a call costs nearly the same for one row as for eight, as a small picture
does on a large GPU; the *mixed* one lies between that and a device that one picture fills. The *flux* one is a
transformer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.models.cards import BUNDLED
from tests.studio import save_tiny
from tests.tiny import families

if TYPE_CHECKING:
    from pathlib import Path

SIDES = {"launch": 64, "mixed": 128, "flux": 64, "doodle": 128}  # pixels
_CHANNELS = {"launch": (8, 16), "mixed": (16, 32)}


def available(names: list[str], folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Model folders by name, and why the others cannot be measured."""
    have = {name: _stand_in(name, folder / name) for name in _CHANNELS if name in names}
    if "flux" in names:
        have["flux"] = families.save("flux", folder / "flux")
    skipped = {}
    if "doodle" in names:
        if (BUNDLED / "doodle" / "unet" / "diffusion_pytorch_model.safetensors").is_file():
            have["doodle"] = BUNDLED / "doodle"
        else:
            skipped["doodle"] = "infra/models/doodle holds no weights yet"
    return have, skipped


def _stand_in(name: str, folder: Path) -> Path:
    """A diffusers folder with random weights, whose UNet has the channels of this stand-in."""
    import torch
    from diffusers import UNet2DConditionModel

    save_tiny(folder)
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=SIDES[name] // 8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=_CHANNELS[name],
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    return folder
