"""LoRAs of one model: loaded at their first use, switched between groups of rows, unloaded by use.

A LoRA changes the weights for everyone who uses the model, so only rows with the same LoRAs, at
the same strengths, can share a device call.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.engine import device_errors
from consumer.engine.loading.lora_keys import Misfit, layers, layers_with
from infra.models.lora_files import content_hash, shapes_of, weights_in
from schemas.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from consumer.renderer.protocol import Lora

_PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
KEPT = 8  # LoRAs of one model that stay loaded; more only while images in flight use them


class Adapters:
    """The LoRAs that are loaded into one model's layers, and which of them act."""

    def __init__(self, pipe: Any, files: Mapping[str, Path], quantized: str = "off") -> None:
        """`pipe` holds the real modules; `files` maps registered names to safetensors files or folders.

        To weights in 8 bits no LoRA is added: peft would round the LoRA's own to 8 bits, too.
        """
        self._quantized = quantized
        self._pipe = pipe
        self._files = files
        #: Content to (registered name, name inside the layers); the one that was used last is last.
        self._names: OrderedDict[str, tuple[str, str]] = OrderedDict()
        self._numbers = itertools.count()
        self._active: tuple[Lora, ...] | None = ()  # None: unknown
        self._layers: list[Any] = []  # that have LoRAs

    def ensure(self, loras: tuple[Lora, ...], in_use: Collection[Lora] = ()) -> None:
        """Load what is not loaded yet, and unload what was not used for longest.

        Args:
            in_use: of images in flight; these stay.

        Raises:
            Rejected: a LoRA is unknown or does not fit this model.
            Unavailable: its file is not the one that the request was planned with.
        """
        if loras and not hasattr(self._pipe, "load_lora_weights"):
            kind = type(self._pipe).__name__
            raise Rejected("unsupported", f"loras: diffusers loads none into a {kind}", field="loras")
        if loras and self._quantized != "off":
            text = f"loras: a worker with --quantize {self._quantized} adds none; send the request to one without it"
            raise Rejected("unsupported", text, field="loras")
        for lora in loras:
            if not lora.path and lora.name not in self._files:
                known = ", ".join(sorted(self._files)) or "none"
                raise Rejected(
                    "unknown_lora", f"no LoRA is named {lora.name!r}; known are {known}", field="loras"
                )
            if _key(lora) not in self._names:
                self._names[_key(lora)] = lora.name, self._load(lora)
            self._names.move_to_end(_key(lora))
        needed = {_key(lora) for lora in (*loras, *in_use)}
        for key in [key for key in self._names if key not in needed][: max(0, len(self._names) - KEPT)]:
            self._delete(self._names.pop(key)[1])

    def loaded(self) -> list[str]:
        """The registered names of the LoRAs in the layers, least recently used first."""
        return [name for name, _ in self._names.values()]

    def switch(self, loras: tuple[Lora, ...]) -> None:
        """Let exactly these act from the next device call on.

        This does what `set_adapters`, `enable_lora` and `disable_lora` do, without their walk through every module of
        the model, which takes longer than a call of a small UNet.
        """
        if loras == self._active:
            return
        weights: defaultdict[str, float] = defaultdict(
            float
        )  # one file under two names acts with both weights
        for lora in loras:
            weights[self._names[_key(lora)][1]] += lora.weight
        for layer in self._layers:
            acting = [name for name in weights if name in layer.lora_A]
            layer._active_adapter, layer._disable_adapters = acting, not acting
            for name in acting:
                layer.set_scale(name, weights[name])
        self._active = loras

    def _load(self, lora: Lora) -> str:
        name = lora.name
        path = weights_in(name, Path(lora.path or self._files[name]))
        shapes = shapes_of(name, path)
        if lora.sha256 and content_hash(path) != lora.sha256:
            text = f"LoRA {name!r}: {path.name} is not the file that the request was planned with"
            raise Unavailable(f"{text}; start the workers again after a LoRA was replaced")
        try:
            expected = layers(shapes, self._pipe)
        except Misfit as error:
            raise _misfit(name, path, error) from error
        inner = f"{re.sub(r'[^A-Za-z0-9_]', '_', name)}_{next(self._numbers)}"
        self._active = None  # loading activates the new one
        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # "multiple adapters": meant
                self._pipe.load_lora_weights(
                    str(path.parent),
                    weight_name=path.name,
                    adapter_name=inner,
                    use_safetensors=True,
                    local_files_only=True,
                )
            placed = layers_with(inner, self._pipe)
            if placed != expected:  # diffusers does not say what it leaves out
                raise ValueError(f"diffusers placed {len(placed)} of its {len(expected)} layers")
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:
            self._delete(inner)
            if device_errors.is_out_of_memory(error) or device_errors.is_sticky(error):
                raise
            raise _misfit(name, path, error) from error
        self._layers = [
            layer
            for part in _PARTS
            if (module := getattr(self._pipe, part, None)) is not None
            for layer in module.modules()
            if hasattr(layer, "lora_A")
        ]
        return inner

    def _delete(self, inner: str) -> None:
        """Free a LoRA's weights; some of its layers may be missing."""
        for part in _PARTS:
            module = getattr(self._pipe, part, None)
            if module is None or inner not in getattr(module, "peft_config", {}):
                continue
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # that another acts now
                module.delete_adapters([inner]) if not part.startswith("text") else module.delete_adapter(
                    inner
                )
        self._active = None


def _key(lora: Lora) -> str:
    """What tells two LoRAs apart: the content. Plans of older workers do not name it; then it is the name."""
    return lora.sha256 or f"name {lora.name}"


def _misfit(name: str, path: Path, why: Exception) -> Rejected:
    text = " ".join(str(why).split())[:300]
    return Rejected(
        "unsupported", f"LoRA {name!r} ({path.name}) does not fit this model: {text}", field="loras"
    )
