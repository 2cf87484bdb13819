"""The model that a training starts from, as its folder's files describe it. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from infra.models.folders import config_hash, unet_family
from infra.models.safetensors_header import BYTES
from schemas.errors import Rejected

_PIPELINES = {"StableDiffusionPipeline": 1, "StableDiffusionXLPipeline": 2}  # how many text encoders each has
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Base:
    """A diffusers folder of Stable Diffusion 1.x, 2.x or XL, or a small model of the same architecture."""

    folder: Path
    name: str  # as the manifest calls it

    @classmethod
    def read(cls, folder: Path, name: str) -> Base:
        """Look at a folder. Raises `Rejected` for what cannot be trained, and says why."""
        base = cls(folder, name)
        if not (folder / "model_index.json").is_file():
            raise _refused(name, f"has no model_index.json in {folder}; give a diffusers folder")
        kind = base.index.get("_class_name")
        if kind not in _PIPELINES:
            raise _refused(name, f"is a {kind}; {' and '.join(_PIPELINES)} can be trained")
        if base.unet["in_channels"] != base.vae["latent_channels"]:
            raise _refused(name, "has a UNet for inpainting; start from the model that draws from text")
        if base.prediction_type not in PREDICTIONS:
            raise _refused(
                name,
                f"predicts {base.prediction_type!r}; known are {', '.join(PREDICTIONS)} (scheduler's config)",
            )
        for part in base.parts:
            if not base.weights(part):
                raise _refused(name, f"has no .safetensors file in {folder / part}")
        return base

    @cached_property
    def index(self) -> dict[str, Any]:
        return self._json("model_index.json")

    @cached_property
    def unet(self) -> dict[str, Any]:
        return {"in_channels": 4, **self._json("unet/config.json")}

    @cached_property
    def vae(self) -> dict[str, Any]:
        return {"latent_channels": 4, **self._json("vae/config.json")}

    @property
    def text_encoders(self) -> tuple[str, ...]:
        """The folders of the text encoders."""
        return ("text_encoder", "text_encoder_2")[: _PIPELINES[self.index["_class_name"]]]

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders that have weights which training reads."""
        return ("unet", "vae", *self.text_encoders)

    @property
    def family(self) -> str:
        """Models of one family take the same LoRAs: doodle, sd1, sd2, sdxl, or one by the UNet's config."""
        return unet_family(self._json("unet/config.json"))

    @property
    def kind(self) -> str:
        """Whose defaults fit: sd1, sd2, sdxl, or small: a model of this architecture with a width of its own."""
        if len(self.text_encoders) == 2:
            return "sdxl"
        return self.family if self.family in ("sd1", "sd2") else "small"

    @property
    def prediction_type(self) -> str:
        return str(self._json("scheduler/scheduler_config.json").get("prediction_type", "epsilon"))

    @property
    def factor(self) -> int:
        """How many pixels a latent is wide."""
        return int(2 ** (len(self.vae["block_out_channels"]) - 1))

    @property
    def multiple(self) -> int:
        """Sizes in pixels that the UNet halves evenly at every level are multiples of this."""
        return int(self.factor * 2 ** (len(self.unet["block_out_channels"]) - 1))

    @property
    def native(self) -> int:
        """The side in pixels of the pictures that the model was made for."""
        return int(self.unet["sample_size"]) * self.factor

    def weights(self, part: str) -> list[Path]:
        """The safetensors files of a part that diffusers loads: those without a variant in their names."""
        files = sorted((self.folder / part).glob("*.safetensors"))
        return [f for f in files if len(f.name.split(".")) == 2]

    @cached_property
    def shapes(self) -> dict[str, dict[str, tuple[tuple[int, ...], str]]]:
        """For each part, each tensor's shape and type (F32, F16, ...). Raises `Rejected` for a damaged file."""
        found: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {}
        for part in self.parts:
            found[part] = {}
            for file in self.weights(part):
                try:
                    with safe_open(file, framework="np") as tensors:
                        for key in tensors.keys():  # noqa: SIM118 - no mapping
                            piece = tensors.get_slice(key)
                            found[part][key] = (tuple(piece.get_shape()), piece.get_dtype())
                except (OSError, SafetensorError) as error:
                    raise _refused(self.name, f"has a damaged file {file}: {error}") from error
        return found

    def size(self, part: str) -> int:
        """How many weights a part has."""
        return sum(math.prod(shape) for shape, _ in self.shapes[part].values())

    def dtype(self, part: str) -> str:
        """The type in which a part is stored: float32, float16 or bfloat16."""
        kinds = {kind for shape, kind in self.shapes[part].values() if BYTES.get(kind)}
        names = {"F16": "float16", "BF16": "bfloat16"}
        return names.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"

    def stored_bytes(self) -> int:
        """The size of all weights on disk."""
        return sum(file.stat().st_size for part in self.parts for file in self.weights(part))

    @cached_property
    def sha256(self) -> str:
        """One hash of all weights and configs, by name; reads every file once."""
        total = hashlib.sha256()
        configs = [f for f in sorted(self.folder.rglob("*config.json")) if f.is_file()]
        for file in [*configs, *(f for part in self.parts for f in self.weights(part))]:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{file.relative_to(self.folder)} {digest}\n".encode())
        return total.hexdigest()

    @cached_property
    def config_sha256(self) -> str:
        """A hash of the UNet's config without what says nothing about its layers."""
        return config_hash(self._json("unet/config.json"))

    def _json(self, path: str) -> dict[str, Any]:
        try:
            document = json.loads((self.folder / path).read_text())
        except (OSError, ValueError) as error:
            raise _refused(self.name, f"has no readable {path}: {error}") from error
        return dict(document)


def _refused(name: str, text: str) -> Rejected:
    return Rejected("unsupported", f"base {name!r} {text}", field="base")
