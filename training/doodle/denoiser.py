"""Latents out of noise, as a caption says: the UNet and the text encoder, learning together."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from training.doodle import modules
from training.doodle.average import Average

if TYPE_CHECKING:
    from transformers import CLIPTextModel

CAPTION_SHARE = 0.5  # of a caption's effect that the UNet learns: guidance scales act as if this much smaller
CAPTION_DROPOUT = 0.2  # share of captions emptied, for classifier-free guidance
SINGLE_WORDS = 0.05  # share of captions cut to one colour or kind: what negative prompts look like
LEARNING_RATE = 1e-3


def train_unet(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    data: tuple[Tensor, Tensor, Tensor, Tensor],
    work: Path,
    steps: int,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Train UNet and text encoder jointly on v-prediction; returns their averaged weights.

    The rate is constant and falls to zero over the last fifth of `steps`, so a run can be made
    longer by resuming an earlier checkpoint with more steps.

    Args:
        data: latents (n, 4, 16, 16), token numbers (n, MAX_TOKENS), the empty caption's (MAX_TOKENS,),
            and the token numbers of colours and kinds.
        work: where `unet.pt` is written every 250 steps and resumed from.
    """
    latents, tokens, empty, telling = data
    both = nn.ModuleList([unet, encoder]).requires_grad_(True)
    average = Average(both, 0.999)
    optimizer = torch.optim.AdamW(both.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=0.01)
    noise_schedule = DDPMScheduler.from_config(modules.make_scheduler().config)
    start = 0
    if (work / "unet.pt").exists():
        saved = torch.load(work / "unet.pt", weights_only=True)
        both.load_state_dict(saved["model"])
        average.module.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start = saved["step"]
    lately, clock = 0.0, time.monotonic()
    for step in range(start, steps):
        torch.manual_seed(10_000 + step)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 200, (steps - step) / (0.2 * steps))
        batch = 64 if step < 500 else 32  # larger ones at first: they let the high rate settle
        chosen = torch.randint(len(latents), (batch,))
        clean, words = latents[chosen].float(), tokens[chosen].clone()
        share = _shorten(words, empty, telling)
        loss = _denoising_loss(unet, encoder, noise_schedule, clean, words, share, empty)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update(both, step)
        lately = 0.98 * lately + 0.02 * loss.item() if step > start else loss.item()
        if step % 100 == 0:
            print(f"unet {step}/{steps} loss {lately:.4f} {time.monotonic() - clock:.0f}s", flush=True)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            state = {
                "model": both.state_dict(),
                "average": average.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, work / "unet.pt.new")
            (work / "unet.pt.new").replace(work / "unet.pt")
    unet, encoder = average.module
    return unet, encoder


def _shorten(words: Tensor, empty: Tensor, telling: Tensor) -> Tensor:
    """Empty some captions, and cut some to one of their telling words, in place.

    Returns:
        (len(words),) how much of the truth each row learns: CAPTION_SHARE for a whole caption, 1 for the others.
        So a negative prompt of one word acts in full.
    """
    lots = torch.rand(len(words))
    words[lots < CAPTION_DROPOUT] = empty
    for row in (lots > 1 - SINGLE_WORDS).nonzero().flatten().tolist():
        said = words[row][torch.isin(words[row], telling)]
        if len(said):
            words[row] = empty
            words[row, 1] = said[torch.randint(len(said), ())]
    whole = (lots >= CAPTION_DROPOUT) & (lots <= 1 - SINGLE_WORDS)
    return torch.where(whole, CAPTION_SHARE, 1.0)


def _denoising_loss(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    noise_schedule: DDPMScheduler,
    clean: Tensor,
    words: Tensor,
    share: Tensor,
    empty: Tensor,
) -> Tensor:
    """Squared error of v at timesteps drawn with density growing towards noise, where layout is decided.

    So small a model draws best at a guidance scale of about 2; at the usual 4 to 7 its colours run into
    each other. So a captioned picture's target is part truth, part what the UNet draws without a caption:
    guidance 4 then acts as 4 * CAPTION_SHARE. It is the target of model guidance (Tang et al. 2025,
    arXiv:2502.12154) with a negative weight.
    """
    times = (1000 * torch.rand(len(clean)).sqrt()).long().clamp(max=999)
    noise = torch.randn_like(clean)
    noisy = noise_schedule.add_noise(clean, noise, times)
    target = noise_schedule.get_velocity(clean, noise, times)
    told = share < 1
    with torch.no_grad():
        silence = encoder(empty[None]).last_hidden_state.expand(int(told.sum()), -1, -1)
        untold = unet(noisy[told], times[told], silence).sample
    target[told] = torch.lerp(untold, target[told], share[told, None, None, None])
    return F.mse_loss(unet(noisy, times, encoder(words).last_hidden_state).sample, target)
