"""What is refused before the first step, each with its field, and estimates of memory and disk. No torch here."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING

from schemas.errors import Rejected
from schemas.models import check_name
from training import tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.training import Training
    from training.bases import Base
    from training.recipe import View

FEWEST = 3  # pictures
_LIBRARIES = 443 << 20  # bytes of a process that has imported torch, diffusers, transformers and peft
_FEW_PIXELS = 0.25  # of the resolution: such a picture is a blur when it is enlarged
_LORA_ONLY = ("rank", "alpha", "targets", "dora", "lora_dropout", "weight")
_PLAIN = frozenset(
    [
        "a",
        "an",
        "the",
        "of",
        "on",
        "in",
        "at",
        "with",
        "and",
        "or",
        "by",
        "for",
        "from",
        "to",
        "photo",
        "picture",
        "image",
        "painting",
        "drawing",
        "photograph",
    ]
)


def options_as_given(training: Training, base: Base) -> None:
    """Refuse options that do not fit one another or the base."""
    check_name(training.name)
    fields = type(training).model_fields
    if training.method == "full":
        for name in _LORA_ONLY:
            if getattr(training, name) != fields[name].default:
                raise Rejected.of_field(name, "is for method lora only; leave it out, or train a lora")
        if training.prior == "adapter_off":
            raise Rejected.of_field("prior", "adapter_off needs method lora; use pictures")
    if training.prior and not training.class_prompts:
        raise Rejected.of_field(
            "class_prompts", f"is empty; prior {training.prior} needs at least one prompt"
        )
    if training.prior != "adapter_off" and training.class_pictures < len(training.class_prompts):
        raise Rejected.of_field(
            "class_pictures",
            f"is {training.class_pictures}, and there are {len(training.class_prompts)} class prompts; draw at least "
            "one picture of each",
        )
    if training.schedule == "constant" and training.warmup_steps:
        raise Rejected.of_field(
            "warmup_steps", "has no effect with schedule constant; use constant_with_warmup"
        )


def options_together(options: Training, *, cuda: bool) -> None:
    """Refuse resolved options that cannot work on this machine or together."""
    if not options.text_encoder:
        if options.text_encoder_learning_rate is not None:
            raise Rejected.of_field("text_encoder_learning_rate", "needs text_encoder true")
        if options.text_encoder_stop != 1:
            raise Rejected.of_field("text_encoder_stop", "needs text_encoder true")
    if (options.warmup_steps or 0) >= (options.steps or 0):
        raise Rejected.of_field(
            "warmup_steps", f"is {options.warmup_steps}, and there are {options.steps} steps; make it smaller"
        )
    if options.precision == "fp16" and not cuda:
        raise Rejected.of_field("precision", "fp16 needs a CUDA device; use no, or leave it out")
    if options.optimizer == "adamw8bit":
        if not cuda:
            raise Rejected.of_field("optimizer", "adamw8bit needs a CUDA device; use adamw or adafactor")
        _require("bitsandbytes", "optimizer", "adamw8bit", "or use adamw")
    if options.optimizer == "prodigy":
        _require("prodigyopt", "optimizer", "prodigy", "or use adamw")
        rates = (options.learning_rate, options.text_encoder_learning_rate)
        if options.text_encoder and rates[0] != rates[1]:
            raise Rejected.of_field(
                "text_encoder_learning_rate",
                f"is {rates[1]:g} and learning_rate {rates[0]:g}; prodigy finds one rate for all: leave both out",
            )


def require_tensorboard(field: str) -> None:
    """Raises `Rejected` where it is not installed."""
    _require("tensorboard", field, "tensorboard", "or leave it out")


def _require(package: str, field: str, value: str, else_: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise Rejected.of_field(
            field,
            f"{value} needs the package {package}, which is not installed; pip install {package}, {else_}",
        )


def resolution(training: Training, base: Base) -> int:
    """The side in pixels. Raises `Rejected` for one that the base cannot halve evenly at every level."""
    chosen = training.resolution or base.native
    if chosen % base.multiple:
        below = chosen // base.multiple * base.multiple
        near = " or ".join(str(n) for n in (below, below + base.multiple) if n)
        raise Rejected.of_field(
            "resolution", f"is {chosen}; {base.name} takes multiples of {base.multiple}, such as {near}"
        )
    return chosen


def triggers(options: Training) -> tuple[str, ...]:
    """The prompt's own words. Raises `Rejected` where it has none."""
    common = {word for prompt in options.class_prompts for word in tokens.words(prompt)} | _PLAIN
    own = tuple(word for word in tokens.words(options.instance_prompt) if word not in common)
    if not own:
        raise Rejected.of_field(
            "instance_prompt",
            f"{options.instance_prompt!r} has no word of its own, so nothing would call the concept later; add a rare "
            "word, such as 'sks'"
            + (": class_prompts have all of its words" if options.class_prompts else ""),
        )
    return own


def pictures_and_prompts(
    options: Training, base: Base, views: Sequence[View], own: tuple[str, ...]
) -> list[str]:
    """Warnings. Raises `Rejected` for too few or too small pictures, and prompts that the encoder cannot see whole."""
    if len(views) < FEWEST:
        raise Rejected.of_field(
            "pictures", f"are {len(views)}; give at least {FEWEST}, 5 to 20 different ones are usual"
        )
    side = options.resolution or 0
    for view in views:
        if min(view.width, view.height) < _FEW_PIXELS * side:
            raise Rejected.of_field(
                "pictures",
                f"has {view.name!r} of {view.width} x {view.height} pixels, too few for resolution {side}; leave it "
                "out, or lower the resolution",
            )
    folder = base.folder / "tokenizer"
    room = tokens.room(folder)
    used = len(tokens.pieces(folder, options.instance_prompt))
    if used > room:
        raise Rejected.of_field("instance_prompt", f"has {used} tokens; {base.name} reads {room}; shorten it")
    warnings = []
    for view in views:
        if (used := len(tokens.pieces(folder, view.caption))) > room:
            warnings.append(f"{view.name}: the caption has {used} tokens; {base.name} reads the first {room}")
        if own and not set(own) & set(tokens.words(view.caption)):
            warnings.append(f"{view.name}: the caption has none of the words {', '.join(own)}")
        if max(side, 1) > 1.01 * min(view.width, view.height):
            warnings.append(f"{view.name}: {view.width} x {view.height} is enlarged for resolution {side}")
    hashes = [view.sha256 for view in views]
    twice = sorted({view.name for view in views if hashes.count(view.sha256) > 1})
    if twice:
        warnings.append(f"the same picture more than once: {', '.join(twice)}")
    if options.resolution != base.native:
        warnings.append(f"{base.name} was made for {base.native} pixels, not {options.resolution}")
    if not options.class_prompts:
        warnings.append("without class prompts the model may draw the new concept everywhere")
    return warnings


def trainable(options: Training, base: Base) -> int:
    """How many weights learn; an estimate for a LoRA."""
    parts = ["unet", *(base.text_encoders if options.text_encoder else ())]
    if options.method == "full":
        return sum(base.size(part) for part in parts)
    rank, total = options.rank or 1, 0
    for part in parts:
        for key, (shape, _) in base.shapes[part].items():
            if len(shape) < 2 or not key.endswith("weight") or "embedding" in key:
                continue
            attends = any(name in key for name in ("to_q", "to_k", "to_v", "to_out", "_proj."))
            if attends or (options.targets == "linear" and len(shape) == 2) or options.targets == "all":
                total += rank * (shape[0] + math.prod(shape[1:]))
    return total


def memory_bytes(options: Training, base: Base, device: str) -> int:
    """A rough estimate of the device's memory; on a CPU of the process's.

    For each weight that learns: 4 bytes, as many for its gradient, the optimizer's moments, and the average. For
    each other weight 4 bytes, or 2 in half precision. Activations by rows and latents, after published figures
    of SD 1.x and XL. On a CPU what the libraries take, too: with it `doodle` peaked within 15 % of this (full and
    LoRA, 4 and 16 rows, with and without gradient checkpointing).
    """
    learn = trainable(options, base)
    moments = {"adamw": 8, "adamw8bit": 2, "adafactor": 1, "prodigy": 16}[options.optimizer]
    state = learn * (4 + 4 + moments + (4 if options.ema else 0))
    half = 2 if options.precision != "no" else 4
    whole = sum(base.size(part) for part in base.parts)
    frozen = whole - (learn if options.method == "full" else 0)
    rows = (options.batch_size or 1) * (2 if options.prior else 1)
    latents = ((options.resolution or 0) / base.factor) ** 2
    width = base.unet["block_out_channels"][0]
    activations = rows * latents * width * half * (60 if options.gradient_checkpointing else 400)
    return int(state + max(0, frozen) * half + activations + (0 if device == "cuda" else _LIBRARIES))


def disk_bytes(options: Training, base: Base) -> int:
    """Checkpoints, one more while it is written, and the product."""
    learn = trainable(options, base)
    moments = {"adamw": 8, "adamw8bit": 2, "adafactor": 1, "prodigy": 16}[options.optimizer]
    checkpoint = learn * (4 + moments + (4 if options.ema else 0))
    product = base.stored_bytes() if options.method == "full" else learn * 4
    return checkpoint * (options.keep + 1) + product
