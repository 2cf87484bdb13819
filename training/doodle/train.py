"""Train doodle from nothing, on pictures that it draws itself.

    python -m training.doodle.train --work ./doodle-work --out consumer/models/doodle

Five stages, each resumed from its checkpoint in `--work`: the text encoder learns what words
mean (attributes of the scene), the VAE learns to draw sharp edges, 49,152 scenes are encoded
once, and the UNet and the text encoder learn together to denoise. Seeds are fixed.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from training.doodle import modules, scenes
from training.doodle.scenes import KINDS, PALETTE, SIDE, Scene

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import CLIPTextModel, CLIPTokenizer

SCENES = 49_152  # pictures in the training set
CAPTION_DROPOUT = 0.1  # share of captions emptied, for classifier-free guidance
SINGLE_WORDS = 0.05  # share of captions cut to one colour or kind: what negative prompts look like


def picture_tensor(scene: Scene) -> Tensor:
    """A drawn scene as (3, SIDE, SIDE) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(scenes.draw(scene)).copy()).permute(2, 0, 1).float() / 127.5 - 1


class Average:
    """An exponential moving average of a module's weights."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        for mine, theirs in zip(self.module.parameters(), module.parameters(), strict=True):
            mine.lerp_(theirs, 1 - decay)


# 1) words ------------------------------------------------------------------------------------


def _attributes(scene: Scene) -> list[int]:
    """What the caption says, as class numbers; 0 where it is silent."""
    colours, kinds, words = list(PALETTE), list(KINDS), scene.caption.split()
    ground = colours.index(scene.background) + 1 if "background" in words else 0
    named = words[: words.index("on")] if "background" in words and len(scene.shapes) > 1 else words
    found = [ground]
    for i in range(2):
        shape = scene.shapes[i] if i < len(scene.shapes) else None
        said_kind = shape is not None and shape.kind in named
        colour_said = (
            shape is not None and f"{shape.colour} {shape.kind if said_kind else 'shape'}" in scene.caption
        )
        found.append(kinds.index(shape.kind) + 1 if shape and said_kind else 0)
        found.append(colours.index(shape.colour) + 1 if shape and colour_said else 0)
    where = [p for p in scenes.PLACES if p in scene.caption]
    found.append(list(scenes.PLACES).index(where[0]) + 1 if where else int("above" in words) * 5)
    found.append(1 if "small" in words else 2 if "large" in words else 0)
    return found


def train_words(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, steps: int) -> None:
    """Teach the text encoder the scene's attributes, so that the UNet meets meaning, not noise."""
    rng = random.Random(1)
    torch.manual_seed(1)
    sizes = [11, 7, 11, 7, 11, 6, 3]
    heads = nn.ModuleList(nn.Linear(encoder.config.hidden_size, n) for n in sizes)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3, weight_decay=0.01)
    for step in range(steps):
        batch = [scenes.sample(rng) for _ in range(128)]
        hidden = encoder(tokenize(tokenizer, [s.caption for s in batch])).last_hidden_state[:, -1]
        truth = torch.tensor([_attributes(s) for s in batch])
        loss = sum(F.cross_entropy(head(hidden), truth[:, i]) for i, head in enumerate(heads)) / len(sizes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"words {step}/{steps} loss {float(loss):.4f}", flush=True)


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Captions to (n, MAX_TOKENS) token numbers, padded and cut as Stable Diffusion does."""
    return tokenizer(
        captions, padding="max_length", max_length=modules.MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


# 2) pictures to latents ----------------------------------------------------------------------


def train_vae(vae: AutoencoderKL, steps: int) -> AutoencoderKL:
    """Train the autoencoder on crops, then on whole pictures; returns the averaged weights."""
    rng = random.Random(2)
    torch.manual_seed(2)
    average = Average(vae, 0.998)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-3)
    started = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * (0.02 + 0.98 * _cosine(step / steps))
        pictures = _crops(rng, 16) if step < 0.85 * steps else _whole(rng, 6)
        posterior = vae.encode(pictures).latent_dist
        redrawn = vae.decode(posterior.sample()).sample
        loss = _redrawing_loss(redrawn, pictures) + 2e-4 * posterior.kl().mean() / posterior.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update(vae, step)
        if step % 100 == 0:
            psnr = -10 * math.log10(float((redrawn - pictures).detach().pow(2).mean()) / 4)
            print(
                f"vae {step}/{steps} loss {loss.item():.4f} psnr {psnr:.1f} dB {time.monotonic() - started:.0f}s",
                flush=True,
            )
    return average.module


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
    decoder = nn.ModuleList([vae.decoder, vae.post_quant_conv])
    average = Average(decoder, 0.998)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1.5e-3, weight_decay=1e-3)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 50) * (0.01 + 0.99 * _cosine(step / steps))
        pictures = _crops(rng, 16) if step % 4 else _whole(rng, 5)
        with torch.no_grad():
            latents = vae.encode(pictures).latent_dist.mean
            latents = latents + torch.rand(len(latents), 1, 1, 1) * 0.15 * latents.std() * torch.randn_like(
                latents
            )
        redrawn = vae.decode(latents).sample
        loss = _redrawing_loss(redrawn, pictures)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        average.update(decoder, step)
        if step % 100 == 0:
            psnr = -10 * math.log10(float((redrawn - pictures).detach().pow(2).mean()) / 4)
            print(f"decoder {step}/{steps} loss {loss.item():.4f} psnr {psnr:.1f} dB", flush=True)
    vae.decoder, vae.post_quant_conv = average.module[0], average.module[1]


# 3) the training set -------------------------------------------------------------------------


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, count: int) -> tuple[Tensor, list[str]]:
    """Draw and encode the training set: (count, 4, 16, 16) float16 means of unit variance, captions."""
    rng = random.Random(3)
    latents, captions = [], []
    for start in range(0, count, 64):
        batch = [scenes.sample(rng) for _ in range(64)]
        pictures = torch.stack([picture_tensor(s) for s in batch])
        latents.append(vae.encode(pictures).latent_dist.mean.half())
        captions += [s.caption for s in batch]
        if start % 6400 == 0:
            print(f"encoded {start}/{count}", flush=True)
    return torch.cat(latents), captions


# 4) denoising --------------------------------------------------------------------------------


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
        work: where `unet.pt` is written every 500 steps and resumed from.
    """
    latents, tokens, empty, telling = data
    both = nn.ModuleList([unet, encoder])
    average = Average(both, 0.9995)
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
        lots = torch.rand(batch)
        words[lots < CAPTION_DROPOUT] = empty
        for row in (lots > 1 - SINGLE_WORDS).nonzero().flatten().tolist():
            said = words[row][torch.isin(words[row], telling)]
            if len(said):
                words[row] = empty
                words[row, 1] = said[torch.randint(len(said), ())]
        loss = _denoising_loss(unet, encoder, noise_schedule, clean, words)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        average.update(both, step)
        lately = 0.98 * lately + 0.02 * loss.item() if step > start else loss.item()
        if step % 100 == 0:
            print(f"unet {step}/{steps} loss {lately:.4f} {time.monotonic() - clock:.0f}s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == steps:
            state = {
                "model": both.state_dict(),
                "average": average.module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }
            torch.save(state, work / "unet.pt.new")
            (work / "unet.pt.new").replace(work / "unet.pt")
    return average.module[0], average.module[1]


LEARNING_RATE = 1e-3


def _denoising_loss(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    noise_schedule: DDPMScheduler,
    clean: Tensor,
    words: Tensor,
) -> Tensor:
    """Squared error of v at timesteps drawn with density growing towards noise, where layout is decided."""
    times = (1000 * torch.rand(len(clean)).sqrt()).long().clamp(max=999)
    noise = torch.randn_like(clean)
    noisy = noise_schedule.add_noise(clean, noise, times)
    target = noise_schedule.get_velocity(clean, noise, times)
    return F.mse_loss(unet(noisy, times, encoder(words).last_hidden_state).sample, target)


# all together --------------------------------------------------------------------------------


def save(
    out: Path,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
) -> None:
    """Write the pipeline as a diffusers folder of fp16 safetensors."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=modules.make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    copy.deepcopy(pipeline).to(torch.float16).save_pretrained(out)


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("doodle-work"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("consumer/models/doodle"))
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--unet-steps", type=int, default=7000)
    options = parser.parse_args(None if arguments is None else list(arguments))
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = modules.make_tokenizer()
    encoder, vae, unet = modules.make_text_encoder(tokenizer), modules.make_vae(), modules.make_unet()
    if (work / "vae").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae")
    else:
        vae = train_vae(vae, options.vae_steps)
        vae.save_pretrained(work / "vae")
    if not (work / "scenes.pt").exists():
        latents, captions = encode_scenes(vae, SCENES)
        torch.save({"latents": latents, "tokens": tokenize(tokenizer, captions)}, work / "scenes.pt")
    data = torch.load(work / "scenes.pt", weights_only=True)
    if (work / "vae-sharp").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae-sharp")
    else:
        sharpen_decoder(vae, options.decoder_steps)
        vae.save_pretrained(work / "vae-sharp")
    scale = 1 / float(data["latents"].float().std())
    vae.register_to_config(scaling_factor=scale)
    if not (work / "words.pt").exists():
        train_words(tokenizer, encoder, 600)
        torch.save(encoder.state_dict(), work / "words.pt")
    encoder.load_state_dict(torch.load(work / "words.pt", weights_only=True))
    empty = tokenize(tokenizer, [""])[0]
    telling = tokenize(tokenizer, [*PALETTE, *KINDS])[:, 1]
    tensors = (data["latents"] * scale, data["tokens"], empty, telling)
    unet, encoder = train_unet(unet, encoder, tensors, work, options.unet_steps)
    save(options.out, tokenizer, encoder, vae, unet)


if __name__ == "__main__":
    main()
