"""The training manifest: what to teach a model, by which pictures, and every option of how.

An option that is `null` is decided by the base model's family, and written into the plan that is printed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.errors import Rejected
from schemas.layout import CHOSEN_ID
from schemas.manifest import rejection
from schemas.result import Progress
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from collections.abc import Mapping

B = TypeVar("B", bound=BaseModel)
_TEXT = 2000  # characters of a prompt or a caption


class _Body(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )


class TrainingPicture(_Body):
    """One picture of the new concept."""

    image: str = Field(min_length=1, description="Base64, bare or as a data URI; or a key below uploads/.")
    caption: str | None = Field(None, max_length=_TEXT, description="What it shows; null: `instance_prompt`.")
    name: str | None = Field(
        None, min_length=1, max_length=200, description="Its file's name, for plan and card."
    )


class Training(_Body):
    """One training: a base model, pictures of a concept, and how to learn it (DreamBooth, arXiv:2208.12242)."""

    name: str = Field(description="The new model's name; letters, digits, '.', '_', '-', at most 100.")
    base: str = Field(min_length=1, max_length=500, description="The model to start from.")
    method: Literal["lora", "full"] = Field(
        "lora", description="lora: a small file beside the base; full: all weights of the UNet."
    )
    instance_prompt: str = Field(
        min_length=1,
        max_length=_TEXT,
        description="The caption of pictures that have none of their own.",
        examples=["a photo of sks dog"],
    )
    pictures: tuple[TrainingPicture, ...] = Field(
        (), strict=False, max_length=10_000, description="What to learn, with captions; or give `archive`."
    )
    resume_from: str | None = Field(
        None,
        max_length=400,
        description="The id of a training that has ended, to begin at its last checkpoint.",
    )
    archive: str | None = Field(
        None,
        max_length=1024,
        description="A key of a .zip with pictures and captions; instead of `pictures`.",
    )

    # What must not be forgotten while the concept is learned.
    prior: Literal["pictures", "adapter_off"] | None = Field(
        None,
        description="pictures: drawn by the base from `class_prompts`; adapter_off: the base's own predictions, "
        "LoRA only; null: none without `class_prompts`, else pictures.",
    )
    class_prompts: tuple[str, ...] = Field(
        (), strict=False, max_length=1000, description="What the base must go on drawing as it does."
    )
    class_pictures: int = Field(100, ge=1, le=10_000, description="How many the base draws, in all.")
    prior_weight: float = Field(1.0, gt=0, le=100, description="Of the loss of the class pictures.")

    # How long.
    seed: int = Field(0, ge=0, le=2**63 - 1, description="All chance follows from it.")
    steps: int | None = Field(None, ge=1, le=1_000_000, description="Optimizer steps.")
    epochs: int | None = Field(
        None, ge=1, le=100_000, description="Instead of `steps`: each picture this often."
    )
    batch_size: int | None = Field(
        None, ge=1, le=256, description="Pictures in one forward pass of a device."
    )
    accumulation: int = Field(
        1,
        ge=1,
        le=256,
        description="batch_size x accumulation pictures make a step, on any number of devices.",
    )

    # Pictures.
    resolution: int | None = Field(
        None, ge=16, le=4096, description="Pixels; default the base's native size."
    )
    buckets: bool = Field(False, description="Keep aspect ratios; false: square crops.")
    crop: Literal["center", "random"] = Field("center", description="Which part of a picture is shown.")
    flip: bool = Field(False, description="Mirror every second view, by chance.")
    caption_dropout: float = Field(0.0, ge=0, le=1, description="Share of rows that learn without a caption.")

    # What learns.
    text_encoder: bool | None = Field(None, description="Train the text encoder too.")
    text_encoder_stop: float = Field(
        1.0, ge=0, le=1, description="Share of the steps after which the text encoder stays as it is."
    )
    rank: int | None = Field(None, ge=1, le=1024, description="LoRA only; its size.")
    alpha: float | None = Field(None, gt=0, le=4096, description="LoRA only; default the rank.")
    targets: Literal["attention", "linear", "all"] | None = Field(
        None, description="LoRA only; the layers that get one. all: linear and convolutional layers."
    )
    dora: bool = Field(False, description="LoRA only; weight-decomposed (arXiv:2402.09353), in the UNet.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="LoRA only; share of its inputs left out.")

    # How it learns.
    learning_rate: float | None = Field(None, gt=0, le=10, description="How fast; null: by base and method.")
    text_encoder_learning_rate: float | None = Field(
        None, gt=0, le=10, description="Default `learning_rate`."
    )
    schedule: Literal["constant", "constant_with_warmup", "linear", "cosine"] | None = Field(
        None, description="How the learning rate changes over the steps."
    )
    warmup_steps: int | None = Field(
        None, ge=0, le=1_000_000, description="Steps in which the learning rate grows from 0."
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "prodigy"] = Field(
        "adamw", description="adamw8bit needs CUDA; prodigy finds its own learning rate."
    )
    weight_decay: float = Field(0.01, ge=0, le=1, description="Of the optimizer.")
    max_grad_norm: float = Field(1.0, gt=0, le=1e6, description="Longer gradients are shortened to it.")
    snr_gamma: float | None = Field(
        None, gt=0, le=1000, description="min-SNR weighting (arXiv:2303.09556); 5 is usual; null: none."
    )
    offset_noise: float = Field(0.0, ge=0, le=1, description="Noise per channel, for very dark and light.")
    ema: float | None = Field(None, ge=0, lt=1, description="Decay of the averaged weights; 0: no average.")
    gradient_checkpointing: bool = Field(False, description="Less memory, about a third more time.")
    precision: Literal["no", "bf16", "fp16"] | None = Field(
        None, description="Of the forward pass; weights that learn are always float32. null: by the device."
    )

    # What is kept and shown.
    checkpoint_every: int = Field(
        100, ge=1, le=1_000_000, description="Steps from one checkpoint to the next."
    )
    keep: int = Field(2, ge=1, le=1000, description="Checkpoints that are kept.")
    validate_prompts: tuple[str, ...] | None = Field(
        None, strict=False, max_length=64, alias="validate", description="Drawn along the way, same seeds."
    )
    validate_every: int | None = Field(None, ge=1, le=1_000_000, description="Steps; default a fifth.")
    weight: float = Field(1.0, ge=-4, le=4, description="LoRA only; the default weight when it is used.")

    @field_validator("name")
    @classmethod
    def _usable_name(cls, name: str) -> str:
        if not CHOSEN_ID.fullmatch(name):
            raise ValueError(
                "may contain only letters, digits, '.', '_' and '-', must begin with a letter or digit, and may have "
                "at most 100 characters"
            )
        return name

    @field_validator("instance_prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("is empty; say what the pictures show, such as 'a photo of sks dog'")
        return prompt

    @field_validator("class_prompts", "validate_prompts")
    @classmethod
    def _no_blank_ones(cls, prompts: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for number, prompt in enumerate(prompts or (), 1):
            if not prompt.strip() or len(prompt) > _TEXT:
                raise ValueError(f"has an empty or very long prompt (the {number}. one)")
        return prompts

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs are both given; give one of them")
        if self.pictures and self.archive is not None:
            raise ValueError("pictures and archive are both given; give one of them")
        return self


class TrainingProgress(Progress):
    """`training-status/<id>.json`: how far a training is. Advisory, for people and progress bars."""

    phase: str = Field("", description="fetching, class pictures, training or publishing.")
    loss: float | None = Field(None, description="Of the latest step.")


class TrainingFolder(_Body):
    """`training.json` in a training's work folder: the manifest, and where its files lie on this machine."""

    training: Training
    base_folder: str = Field(min_length=1, description="A diffusers folder.")
    pictures_folder: str = Field(min_length=1, description="Pictures with their captions beside them.")
    logging_folder: str | None = Field(None, min_length=1, description="For TensorBoard's files; null: none.")


def parse_training(body: bytes) -> Training:
    """Read one training manifest. Raises `Rejected` with the field, the fault and what to do."""
    return validate_training(load_object(body))


def validate_training(document: Mapping[str, Any]) -> Training:
    """Check one parsed training manifest. Raises `Rejected` as `parse_training` does."""
    return _validated(Training, document)


def parse_training_folder(body: bytes) -> TrainingFolder:
    """Read `training.json` of a work folder. Raises `Rejected` as `parse_training` does."""
    return _validated(TrainingFolder, load_object(body))


def _validated(kind: type[B], document: Mapping[str, Any]) -> B:
    try:
        return kind.model_validate(dict(document))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # fields that do not fit together: the sentence names them
            raise Rejected("invalid_manifest", str(first["ctx"]["error"])) from error
        raise rejection(error, kind) from error
