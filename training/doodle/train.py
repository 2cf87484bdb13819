"""Train doodle from nothing, or train it further, on pictures that it draws itself.

    python -m training.doodle.train --work ./doodle-work --out infra/models/doodle
    python -m training.doodle.train --continue-from infra/models/doodle --work ./doodle-work --unet-steps 9000

Five stages, each resumed from its checkpoint in `--work`: the text encoder learns what words
mean (attributes of the scene), the VAE learns to draw sharp edges, 49,152 scenes are encoded
once, and the UNet and the text encoder learn together to denoise. Seeds are fixed.
With `--continue-from` all parts start from a trained folder's weights, and the first stage is left out.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from training.doodle import modules
from training.doodle.autoencoder import encode_scenes, sharpen_decoder, train_vae
from training.doodle.denoiser import train_unet
from training.doodle.evaluate import load
from training.doodle.scenes import KINDS, PALETTE
from training.doodle.words import share_meanings, tokenize, train_words

SCENES = 49_152  # pictures in the training set


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
    for part in ("unet/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"):
        facts = json.loads((out / part).read_text())  # they note from which folder of this machine they came
        kept = {k: v for k, v in facts.items() if k not in ("_name_or_path", "is_local", "local_files_only")}
        (out / part).write_text(json.dumps(kept, indent=2) + "\n")


def _start(
    folder: Path | None,
) -> tuple[CLIPTokenizer, CLIPTextModel, AutoencoderKL, UNet2DConditionModel]:
    """Fresh parts, or those of a trained folder in fp32."""
    if folder is None:
        tokenizer = modules.make_tokenizer()
        return tokenizer, modules.make_text_encoder(tokenizer), modules.make_vae(), modules.make_unet()
    trained = load(folder)
    return trained.tokenizer, trained.text_encoder, trained.vae, trained.unet


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("doodle-work"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=Path("infra/models/doodle"))
    parser.add_argument(
        "--continue-from", type=Path, metavar="FOLDER", help="a trained pipeline whose weights are the start"
    )
    parser.add_argument("--scenes", type=int, default=SCENES, help="pictures in the training set")
    parser.add_argument("--word-steps", type=int, default=600)
    parser.add_argument("--vae-steps", type=int, default=3000)
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument(
        "--unet-steps",
        type=int,
        nargs="+",
        default=[7500, 9000, 24_000],
        help="where each cycle of the rate ends",
    )
    options = parser.parse_args(None if arguments is None else list(arguments))
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer, encoder, vae, unet = _start(options.continue_from)
    if (work / "vae").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae")
    else:
        vae = train_vae(vae, options.vae_steps)
        vae.save_pretrained(work / "vae")
    if not (work / "scenes.pt").exists():
        latents, captions = encode_scenes(vae, options.scenes)
        torch.save({"latents": latents, "tokens": tokenize(tokenizer, captions)}, work / "scenes.pt")
    data = torch.load(work / "scenes.pt", weights_only=True)
    if (work / "vae-sharp").exists():
        vae = AutoencoderKL.from_pretrained(work / "vae-sharp")
    else:
        sharpen_decoder(vae, options.decoder_steps)
        vae.save_pretrained(work / "vae-sharp")
    scale = 1 / float(data["latents"].float().std())
    vae.register_to_config(scaling_factor=scale)
    if options.continue_from is None:
        if not (work / "words.pt").exists():
            train_words(tokenizer, encoder, options.word_steps)
            torch.save(encoder.state_dict(), work / "words.pt")
        encoder.load_state_dict(torch.load(work / "words.pt", weights_only=True))
    empty = tokenize(tokenizer, [""])[0]
    telling = tokenize(tokenizer, [*PALETTE, *KINDS])[:, 1]
    tensors = (data["latents"] * scale, data["tokens"], empty, telling)
    for end in options.unet_steps:
        unet, encoder = train_unet(unet, encoder, tensors, work, end)
    share_meanings(tokenizer, encoder)
    save(options.out, tokenizer, encoder, vae, unet)


if __name__ == "__main__":
    main()
