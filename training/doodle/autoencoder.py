"""Pictures to latents and back: the VAE, then its decoder alone, sharper."""

from __future__ import annotations

import math
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from training.doodle import scenes
from training.doodle.average import Average
from training.doodle.scenes import SIDE, Scene

_CONTRAST = 1.5  # a cell's colour in latents, per unit of RGB in [-1, 1]: about unit variance
_NOISE = 0.1  # added to latents of about unit variance: neighbouring latents must decode alike


def picture_tensor(scene: Scene) -> Tensor:
    """A drawn scene as (3, SIDE, SIDE) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(scenes.draw(scene)).copy()).permute(2, 0, 1).float() / 127.5 - 1


def train_vae(vae: AutoencoderKL, steps: int) -> AutoencoderKL:
    """Train the autoencoder on crops, then on whole pictures; returns the averaged weights.

    The first three latent channels are held near the mean RGB of their 8 x 8 pixels. Without that, the
    ten colours lie on one line in latent space, and every mixture of two of them decodes as a third.
    """
    rng = random.Random(2)
    torch.manual_seed(2)
    vae.to(memory_format=torch.channels_last)
    average = Average(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-3)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * _cosine(step / steps))
        rough = step < 0.85 * steps
        pictures = _crops(rng, 16) if rough else _whole(rng, 6)
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):  # nearly twice as fast with channels last
            posterior = vae.encode(pictures.to(memory_format=torch.channels_last)).latent_dist
            latents = posterior.sample()
            redrawn = vae.decode(latents + _NOISE * torch.randn_like(latents)).sample.float()
        colours = F.mse_loss(posterior.mean[:, :3].float(), _CONTRAST * F.avg_pool2d(pictures, 8))
        prior = posterior.kl().mean() / posterior.mean[0].numel()
        loss = _redrawing_loss(redrawn, pictures) + 0.5 * colours + 1e-3 * prior
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, step)
        if step % 100 == 0:
            psnr = -10 * math.log10(float((redrawn - pictures).detach().pow(2).mean()) / 4)
            print(
                f"vae {step}/{steps} loss {loss.item():.4f} colours {colours.item():.4f} "
                f"psnr {psnr:.1f} dB {time.monotonic() - started:.0f}s",
                flush=True,
            )
    separate_detail(average.module, _whole(rng, 64))
    return average.module


@torch.no_grad()
def separate_detail(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Take out of the fourth latent channel what the three colours predict of it linearly.

    The 1 x 1 convolutions around the latents absorb the change, so the VAE redraws as before.
    """
    means = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(32)])
    *colours, detail = means.permute(1, 0, 2, 3).flatten(1)
    known = torch.stack([*colours, torch.ones_like(detail)], dim=1)
    *weights, offset = torch.linalg.lstsq(known, detail[:, None]).solution[:, 0]
    share = torch.stack(weights)
    before, after = vae.quant_conv, vae.post_quant_conv
    before.weight[3] -= torch.einsum("c,cixy->ixy", share, before.weight[:3])
    before.bias[3] -= share @ before.bias[:3] + offset
    after.bias += after.weight[:, 3, 0, 0] * offset
    after.weight[:, :3] += after.weight[:, 3:] * share[:, None, None]


def _redrawing_loss(redrawn: Tensor, truth: Tensor) -> Tensor:
    """L1, squared error, and L1 of the gradients, which keeps edges sharp."""
    error = redrawn - truth
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.abs().mean() + error.pow(2).mean() + 0.25 * (across + down)


def _crops(rng: random.Random, count: int, side: int = 64) -> Tensor:
    whole = _whole(rng, count // 2)
    cut = []
    for picture in whole:
        for _ in range(2):
            x, y = rng.randrange(SIDE - side), rng.randrange(SIDE - side)
            cut.append(picture[:, y : y + side, x : x + side])
    return torch.stack(cut)


def _whole(rng: random.Random, count: int) -> Tensor:
    return torch.stack([picture_tensor(scenes.sample(rng)) for _ in range(count)])


def _cosine(part: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * part))


def sharpen_decoder(vae: AutoencoderKL, steps: int) -> None:
    """Train the decoder further behind a frozen encoder, on latents as imprecise as the UNet's are.

    The latents keep their meaning, so this may happen before, after or beside the UNet's training.
    """
    rng = random.Random(5)
    torch.manual_seed(5)
    vae.to(memory_format=torch.channels_last)
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv]).requires_grad_(True)
    average = Average(decoder, 0.998)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1.5e-3, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 50) * (0.01 + 0.99 * _cosine(step / steps))
        rough = step % 4 > 0 and step < 0.85 * steps
        pictures = _crops(rng, 16) if rough else _whole(rng, 5)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
            latents = latents + torch.rand(len(latents), 1, 1, 1) * 0.15 * latents.std() * torch.randn_like(
                latents
            )
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            redrawn = vae.decode(latents.to(memory_format=torch.channels_last)).sample.float()
        loss = _redrawing_loss(redrawn, pictures)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update(decoder, step)
        if step % 100 == 0:
            psnr = -10 * math.log10(float((redrawn - pictures).detach().pow(2).mean()) / 4)
            print(f"decoder {step}/{steps} loss {loss.item():.4f} psnr {psnr:.1f} dB", flush=True)
    vae.decoder, vae.post_quant_conv = average.module


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int) -> tuple[Tensor, list[str]]:
    """Draw and encode the training set: (count, 4, 16, 16) float16 means of unit variance, captions."""
    rng = random.Random(3)
    vae.to(memory_format=torch.channels_last)
    latents, captions = [], []
    for start in range(0, count, 64):
        batch = [scenes.sample(rng) for _ in range(64)]
        pictures = torch.stack([picture_tensor(s) for s in batch])
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(pictures.to(memory_format=torch.channels_last)).latent_dist.mean.half())
        captions += [s.caption for s in batch]
        if start % 6400 == 0:
            print(f"encoded {start}/{count}", flush=True)
    return torch.cat(latents), captions
