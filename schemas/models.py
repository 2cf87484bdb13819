"""Published models: the names that they may have, their keys, and the card of a version.

models/my-dog/1.taken            version 1 is being published, and by whom; a number is never given twice
models/my-dog/1/unet/...         its files
models/my-dog/1/card.json        its card: written last, so that a version with a card is whole
models/my-dog/current/000001     which version `my-dog` means; the highest number decides
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from schemas.errors import Rejected
from schemas.layout import CHOSEN_ID, MODELS

#: The models that every worker knows, which no published one may be called.
BUILT_IN_NAMES = ("doodle", "sd15", "sd21", "sdxl")
CARD = "card.json"
LORA_FILE = "pytorch_lora_weights.safetensors"  # what diffusers calls a LoRA's file
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,4}")
_TAKEN = re.compile(r"([1-9][0-9]{0,8})\.taken")


class _Part(BaseModel):
    """Unknown fields are ignored, because a newer program may have written them."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class CardFile(_Part):
    """One file of a version."""

    path: str = Field(description="Below the version's prefix.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, description="Bytes.")

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        if not is_path(path):
            raise ValueError(f"{path[:100]!r} is not a path inside a model")
        return path


class PublishedCard(_Part):
    """What is known of one version of a published model."""

    v: Literal[1] = 1
    name: str
    version: int = Field(0, ge=0, description="Given when it is published.")
    kind: Literal["full", "lora"]
    base: str = Field("", description="The model that it was made from: a name, or name@version.")
    base_revision: str = ""
    family: str = Field(
        "", description="Models of one family share their layers: sd1, sd2, sdxl, doodle, ..."
    )
    prediction_type: str = Field("", description="epsilon or v_prediction, as the scheduler's config says.")
    config_hash: str = Field("", description="SHA-256 of the UNet's config.")
    licence: str = ""
    files: tuple[CardFile, ...] = Field((), description="Filled in when it is published.")
    trigger_words: tuple[str, ...] = Field((), description="Words that call the concept in a prompt.")
    weight: float = Field(1.0, description="Of a LoRA: the one that it is drawn with when none is given.")
    native_width: int = Field(0, ge=0, description="Pixels; 0: as the base.")
    native_height: int = Field(0, ge=0, description="Pixels; 0: as the base.")
    scheduler: str = Field("", description="Empty: as the base.")
    steps: int | None = Field(None, ge=1, description="Default; null: as the base.")
    cfg_scale: float | None = Field(None, ge=0, description="Default; null: as the base.")
    training: str = Field("", description="The id of the training that made it.")
    picture_hashes: tuple[str, ...] = Field((), description="SHA-256 of each picture that it was trained on.")
    options: dict[str, Any] = Field(default_factory=dict, description="Of the training.")
    versions: dict[str, str] = Field(default_factory=dict, description="Of the libraries that made it.")
    loss: float | None = None
    validation: tuple[str, ...] = Field((), description="Paths of pictures that it has drawn.")
    created_at: str = Field("", description="ISO 8601, UTC.")

    @property
    def reference(self) -> str:
        """How a manifest names exactly this version."""
        return f"{self.name}@{self.version}"

    @property
    def weights(self) -> tuple[CardFile, ...]:
        """The files that a worker needs."""
        return tuple(file for file in self.files if file.path not in self.validation)

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2).encode() + b"\n"


class Move(_Part):
    """What `models/<name>/current/<number>` holds: one move of the alias."""

    version: int | None = Field(description="null: the name means nothing any more.")
    at: str = Field("", description="ISO 8601, UTC; for people.")
    number: int = Field(0, exclude=True)  # from its key


def check_name(name: str) -> None:
    """Raise `Rejected` unless a model may be published under this name."""
    if not CHOSEN_ID.fullmatch(name):
        raise Rejected.of_field(
            "name",
            f"is {name[:100]!r}; it may contain only letters, digits, '.', '_' and '-', must begin with a letter or "
            "digit, and may have at most 100 characters",
        )
    if name in BUILT_IN_NAMES:
        raise Rejected.of_field("name", f"is {name!r}, which is a built-in model; choose another")


def split_reference(text: str) -> tuple[str, int | None]:
    """(name, version) of `name` or `name@version`; the version is None for the newest.

    Raises:
        Rejected: what follows the @ is not a version.
    """
    name, at, version = text.partition("@")
    if at and not _VERSION.fullmatch(version):
        raise Rejected(
            "unknown_model",
            f"{text[:200]!r} names no version: write {name[:100]}@1, or {name[:100]} for the newest",
            field="model",
        )
    return name, int(version) if at else None


def is_path(path: str) -> bool:
    """Whether a file of a model may have this path: it never leaves the model's folder, and is never hidden."""
    return len(path) <= 200 and path != CARD and _PATH.fullmatch(path) is not None


def model_prefix(name: str) -> str:
    return f"{MODELS}{name}/"


def version_prefix(name: str, version: int) -> str:
    return f"{MODELS}{name}/{version}/"


def card_key(name: str, version: int) -> str:
    return f"{version_prefix(name, version)}{CARD}"


def taken_key(name: str, version: int) -> str:
    return f"{MODELS}{name}/{version}.taken"


def current_prefix(name: str) -> str:
    return f"{MODELS}{name}/current/"


def current_key(name: str, number: int) -> str:
    return f"{current_prefix(name)}{number:06d}"


def parse_taken(key: str) -> int | None:
    """The version of a key like `models/my-dog/3.taken`, or None."""
    match = _TAKEN.fullmatch(key.rpartition("/")[2])
    return int(match[1]) if match and key.count("/") == 2 else None


def parse_card(key: str) -> tuple[str, int] | None:
    """(name, version) of the key of a card, or None."""
    parts = key.removeprefix(MODELS).split("/")
    if key.startswith(MODELS) and len(parts) == 3 and parts[2] == CARD and _VERSION.fullmatch(parts[1]):
        return parts[0], int(parts[1])
    return None
