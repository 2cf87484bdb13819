"""LoRAs of one model: loaded at their first use, switched between groups of rows.

A LoRA changes the weights for everyone who uses the model, so only rows with the same LoRAs, at
the same strengths, can share a device call.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from consumer.renderer.protocol import Lora


class Adapters:
    """The LoRAs that are loaded into one model's layers, and which of them act."""

    def __init__(self, pipe: Any, files: Mapping[str, Path]) -> None:
        """`pipe` holds the real modules; `files` maps registered names to safetensors files or folders."""
        self._pipe = pipe
        self._files = files
        self._names: dict[str, str] = {}  # registered name: name inside the layers
        self._active: tuple[Lora, ...] | None = ()  # None: unknown

    def ensure(self, loras: tuple[Lora, ...]) -> None:
        """Load what is not loaded yet. Raises `Rejected` for a LoRA that is unknown or does not fit."""
        for lora in loras:
            if lora.name not in self._files:
                known = ", ".join(sorted(self._files)) or "none"
                raise Rejected(
                    "unknown_lora", f"no LoRA is named {lora.name!r}; known are {known}", field="loras"
                )
            if lora.name not in self._names:
                self._load(lora.name)

    def switch(self, loras: tuple[Lora, ...]) -> None:
        """Let exactly these act from the next device call on."""
        if loras == self._active:
            return
        if loras:
            self._pipe.enable_lora()
            self._pipe.set_adapters([self._names[x.name] for x in loras], [x.weight for x in loras])
        else:
            self._pipe.disable_lora()
        self._active = loras

    def _load(self, name: str) -> None:
        path = self._files[name]
        where = {"weight_name": path.name} if path.is_file() else {}
        inner = f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{len(self._names)}"
        self._active = None  # loading activates the new one
        try:
            self._pipe.load_lora_weights(
                str(path.parent if path.is_file() else path),
                adapter_name=inner,
                use_safetensors=True,
                local_files_only=True,
                **where,
            )
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise Rejected(
                "unsupported", f"LoRA {name!r} does not fit this model: {error}", field="loras"
            ) from error
        self._names[name] = inner
