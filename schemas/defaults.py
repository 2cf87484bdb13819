"""What a model draws with where a request leaves it open, as heartbeats, lists and the page say it.

30 steps and guidance 7 are the documented defaults. A model's card replaces them where they are wrong for that model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

STEPS = 30
CFG_SCALE: float = 7
SIZE_MULTIPLE = 8  # pixels
IMG2IMG_STRENGTH = 0.8  # where a request says none


def multiples_of(model: str, pixels: int, multiple: int) -> str:
    """Why a model does not draw a side of so many pixels, with the nearest two that it draws."""
    below = pixels // multiple * multiple
    near = f"such as {below} or {below + multiple}" if below else f"at least {multiple}"
    return f"model {model!r} draws multiples of {multiple}, {near}"


class ModelDefaults(BaseModel):
    """A model's defaults; null where they are not known. Unknown fields are ignored: a newer worker may write them."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    steps: int | None = Field(None, ge=1)
    cfg_scale: float | None = Field(None, ge=0)
    scheduler: str | None = Field(None, max_length=100)
    width: int | None = Field(None, ge=8, description="Pixels.")
    height: int | None = Field(None, ge=8, description="Pixels.")
    size_multiple: int | None = Field(None, ge=1, description="Widths and heights are multiples of it.")

    @classmethod
    def read(cls, told: object) -> Self:
        """From a heartbeat; what cannot be read is left out."""
        fields = told if isinstance(told, dict) else {}
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            wrong = {fault["loc"][0] for fault in error.errors(include_url=False)}
            return cls.model_validate({name: value for name, value in fields.items() if name not in wrong})

    @classmethod
    def common(cls, several: Iterable[Self]) -> Self:
        """What all of several workers say of one model; a field in which they differ is null."""
        all_told = list(several)
        fields: dict[str, Any] = {}
        for name in cls.model_fields if all_told else ():
            values = {getattr(told, name) for told in all_told}
            fields[name] = values.pop() if len(values) == 1 else None
        return cls(**fields)

    def text(self) -> str:
        """For people: `20 steps, guidance 4, DPM++ 2M, 128 x 128`; "" when nothing is known."""
        parts = [f"{self.steps} step{'s' * (self.steps != 1)}"] if self.steps else []
        if self.cfg_scale is not None:
            parts.append(f"guidance {self.cfg_scale:g}" if self.cfg_scale > 1 else "no guidance")
        parts += [self.scheduler] if self.scheduler else []
        parts += [f"{self.width} x {self.height}"] if self.width and self.height else []
        return ", ".join(parts)


class ModelState(BaseModel):
    """How near a model is to a worker. Unknown fields are ignored: a newer worker may write them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    state: Literal["loaded", "disk", "store", "download", "unreachable"] = Field(
        description="loaded: in memory; disk: loaded within a minute or so; store: published, and fetched from there; "
        "download: fetched from the hub first; unreachable: a request for it fails."
    )
    bytes: int | None = Field(None, ge=0, description="In memory, or to be fetched; null: not known.")
    why: str = Field("", max_length=300, description="Of an unreachable one.")

    @classmethod
    def read(cls, told: object) -> Self | None:
        """From a heartbeat; None where it cannot be read."""
        try:
            return cls.model_validate(told)
        except ValidationError:
            return None

    @property
    def distance(self) -> int:
        """0 for the nearest; states of several workers are compared by it."""
        return _NEAREST_FIRST.index(self.state)

    def text(self) -> str:
        """For people: `not here: to be downloaded, about 16 GB`."""
        size = f", about {sized(self.bytes)}" if self.bytes else ""
        return {
            "loaded": "loaded",
            "disk": "on disk",
            "store": f"in the store{size}",
            "download": f"not here: to be downloaded{size}",
            "unreachable": f"not here: {self.why or 'no worker can get it'}",
        }[self.state]


def sized(count: int) -> str:
    """A number of bytes for people, such as `16 GB`."""
    unit, name = next((each for each in _UNITS if count >= each[0]), _UNITS[-1])
    return f"{max(count / unit, 1):.3g} {name}"


_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_NEAREST_FIRST = ("loaded", "disk", "store", "download", "unreachable")
