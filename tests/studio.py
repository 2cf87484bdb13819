"""What tests of the engine share: a tiny Stable Diffusion, tasks for it, and an engine that records its events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from consumer.engine.engine import Engine
from consumer.engine.loading import pipelines
from consumer.engine.passes import passes_of
from consumer.renderer.protocol import Drawn, ImageTask, RawPicture, Undrawable

if TYPE_CHECKING:
    from pathlib import Path

    from consumer.engine.loading.registry import ModelRegistry


def save_tiny(folder: Path) -> Path:
    """Write a diffusers folder with random weights: UNet (16, 32), 8x VAE, prompts of 16 tokens."""
    torch.set_num_threads(1)  # tiny tensors gain nothing from more, and lose much on a busy machine
    torch.manual_seed(0)
    letters = "abcdefghijklmnopqrstuvwxyz,.0123456789"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=16)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    pipe = StableDiffusionPipeline(
        vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_sdxl(folder: Path, tiny: Path, *, second_width: int = 32) -> Path:
    """Write a tiny SDXL around the parts of `save_tiny`: two text encoders, size conditioning, random weights."""
    torch.manual_seed(5)
    base = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    config = CLIPTextConfig(
        **{**base.text_encoder.config.to_dict(), "projection_dim": 32, "hidden_size": second_width}
    )
    unet = UNet2DConditionModel(
        sample_size=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=32 + second_width,
        attention_head_dim=4,
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
    )
    pipe = StableDiffusionXLPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=base.tokenizer,
        tokenizer_2=base.tokenizer,
        unet=unet,
        scheduler=base.scheduler,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def save_tiny_refiner(folder: Path, base: Path) -> Path:
    """Write a tiny SDXL refiner beside a tiny SDXL: one text encoder, aesthetic scores, a UNet of its own."""
    torch.manual_seed(6)
    parts = StableDiffusionXLPipeline.from_pretrained(base, add_watermarker=False)
    width = parts.text_encoder_2.config.hidden_size
    config = {
        **parts.unet.config,
        "cross_attention_dim": width,
        "projection_class_embeddings_input_dim": 32 + 5 * 8,
    }
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=parts.vae,
        text_encoder=None,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=None,
        tokenizer_2=parts.tokenizer_2,
        unet=UNet2DConditionModel.from_config(config),
        scheduler=parts.scheduler,
        requires_aesthetics_score=True,
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def save_lora(model: Path, folder: Path) -> Path:
    """Write a LoRA of a folder's UNet and text encoder with weights that matter; returns its file."""
    torch.manual_seed(3)
    unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    text = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    unet.add_adapter(LoraConfig(r=4, init_lora_weights=False, target_modules=["to_q", "to_k", "to_v"]))
    text.add_adapter(
        LoraConfig(r=4, init_lora_weights=False, target_modules=["q_proj", "v_proj", "out_proj"])
    )
    layers = [
        convert_state_dict_to_diffusers(get_peft_model_state_dict(part, save_embedding_layers=False))
        for part in (unet, text)
    ]
    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=layers[0], text_encoder_lora_layers=layers[1]
    )
    return folder / "pytorch_lora_weights.safetensors"


def make_task(request: str = "r", **fields: Any) -> ImageTask:
    """A task; every field has a default, pictures included."""
    kind = fields.get("task", "text2img")
    width, height = fields.get("width", 32), fields.get("height", 32)
    defaults: dict[str, Any] = {
        "request": request,
        "index": 0,
        "task": kind,
        "model": "tiny",
        "prompt": "a red dot",
        "negative_prompt": None,
        "width": width,
        "height": height,
        "steps": 3,
        "cfg_scale": 5.0,
        "seed": 1,
        "scheduler": "DDIM",
    }
    if kind != "text2img":
        defaults |= {"image": _gradient(width, height), "strength": 0.8}
    if kind == "inpainting":
        defaults["mask"] = _half_mask(width, height)
    return ImageTask(**{**defaults, **fields})


class Studio:
    """An engine that records its events."""

    def __init__(self, registry: ModelRegistry, **settings: Any) -> None:
        self.events: list[Any] = []
        self.engine = Engine(registry, emit=self.events.append, **{"max_rows": 8, **settings})

    def draw(self, *tasks: ImageTask) -> dict[tuple[str, int], Any]:
        """Submit, run until nothing is left, and return what became of each image."""
        for task in tasks:
            self.engine.submit(task)
        while self.engine.step():
            pass
        return self.ended()

    def ended(self) -> dict[tuple[str, int], Any]:
        return {(e.request, e.index): e for e in self.events if isinstance(e, Drawn | Undrawable)}


def draw_alone(registry: ModelRegistry, task: ImageTask) -> RawPicture:
    """Draw by the plain diffusers pipelines, with no engine near them."""
    noise, made = torch.Generator("cpu").manual_seed(task.seed), None
    for one in passes_of(task):
        model = registry.get(one.model)
        model.adapters.ensure(one.loras)
        model.adapters.switch(one.loras)
        pipe = pipelines.prepare(model.plain[one.task], one, model.scheduler_config)
        made = pipelines.draw(pipe, one, noise, made)
    return made


def grey_levels_apart(one: RawPicture, other: RawPicture) -> int:
    """The greatest difference between two pictures."""
    a, b = (np.frombuffer(p.data, np.uint8).astype(int) for p in (one, other))
    return int(abs(a - b).max())


def _gradient(width: int, height: int) -> RawPicture:
    data = bytes(v for y in range(height) for x in range(width) for v in (x * 7 % 256, y * 7 % 256, 128))
    return RawPicture(width, height, 3, data)


def _half_mask(width: int, height: int) -> RawPicture:
    """White on the right half."""
    row = bytes(0 if x < width // 2 else 255 for x in range(width))
    return RawPicture(width, height, 1, row * height)
