"""Writes and reads the `parameters` text that the Stable Diffusion community's tools keep in pictures.

    a red circle
    Negative prompt: blue
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, Model: sd15, RNG: CPU

Format: AUTOMATIC1111's stable-diffusion-webui (`create_infotext`, `parse_generation_parameters`).
`RNG: CPU` says that the noise was drawn on the CPU; without it, readers assume the GPU. LoRAs are in the
prompt, as `<lora:name:weight>`. The format is ambiguous: a line of a prompt that looks like one of its own
lines is read as that.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from schemas.errors import Rejected
from schemas.manifest_parts import Upscale, steps_to_draw
from schemas.text.prompts import with_weights

PARAMETERS, RECIPE = "parameters", "dreamdrop"  # keywords of this text, and of our own JSON, in a picture
GRAPHS = ("prompt", "workflow")  # ComfyUI's keywords
OTHERS = ("invokeai_metadata", "sd-metadata", "Dream", "Software", "Description", "Comment", "fooocus_scheme")
KEYWORDS = (PARAMETERS, RECIPE, *GRAPHS, *OTHERS)  # of all texts that are read
_NEGATIVE = "Negative prompt:"
_OURS = "Dreamdrop"
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
#: A name's length is bounded: else a long text without a colon is searched again from each of its letters.
_PAIR = re.compile(r'(\w[\w \-/]{1,60}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_LORA = re.compile(r"\s?<lora:([^:<>]+)(?::([^<>]*))?>")
_WEIGHT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)
_SIDE = re.compile(r"\d{1,9}", re.ASCII)
_LEAST, _MOST_STEPS = 0.001, 10_000  # of a second pass; anything else is nobody's recipe
_FEWEST = 3  # pairs in a last line that is of parameters, not of the prompt


def write(recipe: Mapping[str, Any], *, drawn_here: bool = True) -> str:
    """The text for one image.

    Args:
        recipe: manifest fields, with `seed`, `width` and `height` of this image.
        drawn_here: whether Dreamdrop drew it, and so the noise was drawn on the CPU.
    """
    strength = recipe.get("strength")
    skip = recipe.get("clip_skip")
    width, height = recipe.get("width"), recipe.get("height")
    pairs = {
        "Steps": recipe.get("steps"),
        "Sampler": recipe.get("scheduler"),
        "CFG scale": _number(recipe.get("cfg_scale")),
        "Seed": recipe.get("seed"),
        "Size": f"{width}x{height}" if width and height else None,
        "Model": recipe.get("model"),
        "Model revision": recipe.get("model_revision") or None,
        "Denoising strength": _number(strength),
        "Clip skip": skip if skip and skip > 1 else None,
    }
    pairs |= _second_model(recipe.get("refiner")) | _second_pass(recipe)
    if drawn_here:
        pairs |= {"RNG": "CPU", "Version": _OURS}
    lines = [str(recipe.get("prompt") or "") + _tags(recipe.get("loras") or ())]
    if recipe.get("negative_prompt"):
        lines.append(f"{_NEGATIVE} {recipe['negative_prompt']}")
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in pairs.items() if value is not None))
    return "\n".join(lines).replace("\0", "").strip()  # a PNG text may not hold NUL


def _second_model(refiner: Any) -> dict[str, Any]:
    if not isinstance(refiner, dict):
        return {}
    return {"Refiner": refiner.get("model"), "Refiner switch at": _number(refiner.get("at"))}


def _second_pass(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The enlarged picture. A1111 counts the steps that are drawn, and has one strength, that of this pass."""
    if not isinstance(recipe.get("upscale"), dict):
        return {}
    try:
        upscale = Upscale.model_validate(recipe["upscale"])
        steps = upscale.drawn_steps(recipe["steps"])
    except (ValueError, TypeError, KeyError, Rejected):
        return {}
    name = "Denoising strength" if recipe.get("strength") is None else "Hires strength"
    told = {"Hires upscale": _number(upscale.scale), "Hires steps": steps, "Hires upscaler": "Lanczos"}
    return {**told, name: _number(upscale.strength)}


def read(text: str) -> dict[str, Any]:
    """The manifest fields that a `parameters` text has."""
    words, negative, pairs = _parts(text)
    prompt, loras = split_loras(words)
    if pairs.get("Version") != _OURS:  # other programs mean weights by parentheses
        prompt, negative = with_weights(prompt), negative and with_weights(negative)
    found: dict[str, Any] = {"prompt": prompt}
    if loras:
        found["loras"] = loras
    if negative is not None:
        found["negative_prompt"] = negative
    return found | _fields(pairs)


def pairs(text: str) -> dict[str, str]:
    """The same with A1111's names; `Size` also as `Size-1` and `Size-2`."""
    words, negative, found = _parts(text)
    width, x, height = found.get("Size", "").partition("x")
    sizes = {"Size-1": width, "Size-2": height} if x else {}
    return {"Prompt": words, "Negative prompt": negative or ""} | found | sizes


def split_loras(words: str) -> tuple[str, list[dict[str, Any]]]:
    """A prompt without its `<lora:name:weight>` tags, and what they name.

    A tag whose weight is not one finite number stays in the prompt.
    """
    found: list[dict[str, Any]] = []

    def take(tag: re.Match[str]) -> str:
        weights = {
            _weight(text) for text in (tag[2] or "1").split(":")
        }  # of the text encoder, and of the UNet
        weight = weights.pop()
        if weight is None or weights:
            return tag[0]
        found.append({"name": tag[1], "weight": weight})
        return ""

    return _LORA.sub(take, words).strip(), found


def _weight(text: str) -> float | None:
    """A weight as people write it: 0.8, .8, 0,8, +1 or 1e-1."""
    plain = text.strip().replace(",", ".", 1)
    return _finite(plain) if _WEIGHT.fullmatch(plain) else None


def _finite(text: str) -> float | None:
    """A finite number. Raises `ValueError`."""
    number = float(text)
    return number if math.isfinite(number) else None


def _whole(text: str) -> int:
    """A whole number that any reader of JSON can hold. Raises `ValueError`; `int` takes far more."""
    if not _INTEGER.fullmatch(text):
        raise ValueError(text[:40])
    return int(text)


def _without_surrogates(text: str) -> str:
    """An unpaired surrogate, which cannot be written as UTF-8, becomes a replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _parts(text: str) -> tuple[str, str | None, dict[str, str]]:
    """Prompt, negative prompt and pairs."""
    lines = _without_surrogates(text).strip().split("\n")
    found = dict(_PAIR.findall(lines[-1]))
    if len(found) < _FEWEST:
        found, last = {}, len(lines)
    else:
        last = len(lines) - 1
    prompt: list[str] = []
    negative: list[str] | None = None
    for line in lines[:last]:
        if negative is None and line.startswith(_NEGATIVE):
            negative = [line[len(_NEGATIVE) :]]
        else:
            (prompt if negative is None else negative).append(line)
    unquoted = {key: _unquoted(value.strip()) for key, value in found.items()}
    return "\n".join(prompt), "\n".join(negative).strip() if negative else None, unquoted


def _fields(pairs: dict[str, str]) -> dict[str, Any]:
    names: dict[str, tuple[str, Callable[[str], Any]]] = {
        "Steps": ("steps", _whole),
        "CFG scale": ("cfg_scale", _finite),
        "Seed": ("seed", _whole),
        "Denoising strength": ("strength", _finite),
        "Clip skip": ("clip_skip", _whole),
        "Model": ("model", str),
    }
    found: dict[str, Any] = {}
    for key, (name, kind) in names.items():
        if pairs.get(key):
            try:
                value = kind(pairs[key])
            except ValueError:
                continue  # another tool uses this field differently
            if value is not None:
                found[name] = value
    width, x, height = pairs.get("Size", "").partition("x")
    if x and _SIDE.fullmatch(width) and _SIDE.fullmatch(height):
        found |= {"width": int(width), "height": int(height)}
    if pairs.get("Refiner"):  # A1111 adds a hash in brackets
        at = _known(_finite, pairs.get("Refiner switch at", ""))
        found["refiner"] = {"model": re.sub(r" ?\[\w*\]$", "", pairs["Refiner"])} | ({"at": at} if at else {})
    if (scale := _scale(pairs, found)) is not None:
        found |= _upscale(scale, pairs, found)
        if "Hires strength" not in pairs:
            found.pop("strength", None)
    sampler, schedule = pairs.get("Sampler"), pairs.get("Schedule type", "Automatic")
    if sampler:
        found["scheduler"] = sampler if schedule in ("Automatic", "") else f"{sampler} {schedule}"
    return found


def _scale(pairs: Mapping[str, str], found: Mapping[str, Any]) -> float | None:
    """How much larger the second pass was: as a number, or as a size."""
    scale: float | None = _known(_finite, pairs.get("Hires upscale", ""))
    width, x, height = pairs.get("Hires resize", "").partition("x")
    if scale is None and x and found.get("width") and found.get("height"):
        sides = _known(_whole, width) or 0, _known(_whole, height) or 0
        scale = max(sides[0] / found["width"], sides[1] / found["height"])
    return scale


def _upscale(scale: float, pairs: Mapping[str, str], found: Mapping[str, Any]) -> dict[str, Any]:
    upscale: dict[str, Any] = {"scale": scale}
    strength = _known(_finite, pairs.get("Hires strength") or pairs.get("Denoising strength", ""))
    drawn = _known(_whole, pairs.get("Hires steps", "")) or found.get("steps")
    if strength and _LEAST <= strength <= 1:
        upscale["strength"] = strength
        if drawn and 0 < drawn < _MOST_STEPS:
            upscale["steps"] = steps_to_draw(drawn, strength)
    return {"upscale": upscale}


def _known(read: Callable[[str], Any], text: str) -> Any:
    """A value as `read` reads it; None for a text that it cannot read."""
    try:
        return read(text)
    except ValueError:
        return None


def _number(value: Any) -> str | None:
    if value is None:
        return None
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _tags(loras: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        f" <lora:{lora['name']}:{_number(lora.get('weight', 1))}>"
        for lora in loras
        if not set(":<>") & set(lora["name"])  # such a name cannot stand in a tag
    )


def _quoted(value: Any) -> str:
    text = str(value)
    plain = text == text.strip() and not any(c in text for c in ',:\n"')
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return _without_surrogates(str(json.loads(text)))
        except (ValueError, RecursionError):
            return text
    return text
