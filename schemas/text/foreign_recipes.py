"""Reads the recipes that other programs write into pictures, as manifest fields.

SwarmUI and Fooocus write JSON where A1111's web UI writes its text; InvokeAI, NovelAI and ComfyUI have
keywords of their own. Fields with another name are renamed, and what a manifest has no field for is left
out. A stranger wrote all of it, so no value is trusted to have the type that it should have.

Formats: SwarmUI (`sui_image_params`), Fooocus (`modules/meta_parser.py`), InvokeAI 3 to 6
(`invokeai_metadata`), NovelAI (`Comment`), ComfyUI (`prompt`: the graph in its API form).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from schemas.errors import Rejected
from schemas.text import infotext
from schemas.text.strictjson import load_object

_LARGEST = 2**63  # any number of a recipe is smaller
_SIZE = re.compile(r"\(?\s*([0-9]{1,5})\s*[,x×]\s*([0-9]{1,5})\s*\)?")
_INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
_LONGEST = 40  # characters of a number
_FIELDS = {  # manifest field: its type, and its names in these programs
    "prompt": (str, ("prompt", "positive_prompt")),
    "negative_prompt": (str, ("negative_prompt", "negativeprompt", "uc")),
    "steps": (int, ("steps",)),
    "cfg_scale": (float, ("cfg_scale", "cfgscale", "guidance_scale", "scale", "cfg")),
    "seed": (int, ("seed", "noise_seed")),
    "width": (int, ("width",)),
    "height": (int, ("height",)),
    "scheduler": (str, ("sampler", "scheduler", "sampler_name")),
    "model": (str, ("model", "base_model")),
}


def read(texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Manifest fields from a picture's texts by keyword; None when no other program wrote any.

    Raises:
        Rejected: `invalid_image`; another program wrote it, and it cannot be made a request.
    """
    parameters = texts.get(infotext.PARAMETERS, "").lstrip()
    if parameters.startswith("{"):
        return _json_parameters(parameters)
    if "invokeai_metadata" in texts:
        return _invoke(texts["invokeai_metadata"])
    if "sd-metadata" in texts or "Dream" in texts:
        raise _refusal("InvokeAI 2", "its recipe is in an old form")
    if "Comment" in texts and "NovelAI" in texts.get("Software", ""):
        return _novel(texts["Comment"], texts.get("Description", ""))
    if not parameters and "prompt" in texts:
        return _comfy(texts["prompt"])
    if not parameters and "workflow" in texts:
        raise _refusal("ComfyUI", "it holds the workflow without the values that were run")
    return None


def _json_parameters(text: str) -> dict[str, Any]:
    found = _object(text, "another program")
    if isinstance(swarm := found.get("sui_image_params"), dict):
        return _fields("SwarmUI", {k: v for k, v in swarm.items() if k != "scheduler"})
    if not {"guidance_scale", "base_model", "negative_prompt", "performance"} & found.keys():
        raise _refusal("another program", "its parameters are JSON in a form of its own")
    if size := _SIZE.fullmatch(str(found.get("resolution", ""))):
        found |= {"width": int(size[1]), "height": int(size[2])}
    found.pop("scheduler", None)  # the noise schedule; the sampler is beside it
    return _fields("Fooocus", found)


def _invoke(text: str) -> dict[str, Any]:
    found = _object(text, "InvokeAI")
    if isinstance(model := found.get("model"), dict):
        found["model"] = model.get("name", model.get("model_name"))
    fields = _fields("InvokeAI", found)
    if found.get("generation_mode") not in (None, "txt2img"):
        fields |= _strength(found.get("strength"))
    given = found.get("loras")
    loras = [_invoke_lora(one) for one in given if isinstance(one, dict)] if isinstance(given, list) else []
    return fields | ({"loras": named} if (named := [lora for lora in loras if lora]) else {})


def _invoke_lora(given: dict[str, Any]) -> dict[str, Any] | None:
    model = given.get("model", given.get("lora"))
    name = model.get("name", model.get("model_name")) if isinstance(model, dict) else None
    weight = _number(given.get("weight", 1))
    return {"name": name, "weight": weight} if isinstance(name, str) and weight is not None else None


def _novel(comment: str, description: str) -> dict[str, Any]:
    found = {"prompt": description} | _object(comment, "NovelAI")
    fields = _fields("NovelAI", {k: v for k, v in found.items() if k != "model"})
    from_picture = "Img2Img" in str(found.get("request_type", ""))
    return fields | (_strength(found.get("strength")) if from_picture else {})


def _comfy(text: str) -> dict[str, Any]:
    """The values of a graph's only sampler, and of the nodes that lead to it."""
    graph = _object(text, "ComfyUI")
    nodes = {name: node for name, node in graph.items() if isinstance(node, dict)}
    samplers = [node for node in nodes.values() if str(node.get("class_type", "")).startswith("KSampler")]
    if len(samplers) != 1:
        raise _refusal("ComfyUI", f"its graph has {len(samplers)} samplers, where a request has one")
    values = _inputs(samplers[0])
    found = {k: v for k, v in values.items() if not isinstance(v, list) and k != "scheduler"}
    for field, name in (("prompt", "positive"), ("negative_prompt", "negative")):
        words = (_inputs(node).get("text") for node in _upstream(nodes, values.get(name)))
        found[field] = next((text for text in words if isinstance(text, str) and text), None)
    for node in _upstream(nodes, values.get("latent_image")):
        found |= {k: v for k, v in _inputs(node).items() if k in ("width", "height")}
    checkpoints = (_inputs(node).get("ckpt_name") for node in _upstream(nodes, values.get("model")))
    found["model"] = next((name for name in checkpoints if name), None)
    return _fields("ComfyUI", found) | (_strength(values.get("denoise")))


def _inputs(node: Mapping[str, Any]) -> dict[str, Any]:
    inputs = node.get("inputs")
    return inputs if isinstance(inputs, dict) else {}


def _upstream(nodes: Mapping[str, dict[str, Any]], link: Any) -> Iterator[dict[str, Any]]:
    """The node that a link comes from and all before it, the nearest first, each once."""
    ahead, seen = [link], set[str]()
    while ahead:
        link = ahead.pop(0)
        name = link[0] if isinstance(link, list) and link else None
        if isinstance(name, str) and name in nodes and name not in seen:
            seen.add(name)
            yield nodes[name]
            ahead += _inputs(nodes[name]).values()


def _strength(value: Any) -> dict[str, Any]:
    """A strength below 1, which says that the picture started from another one."""
    strength = _number(value)
    return {"strength": strength} if strength is not None and 0 < strength < 1 else {}


def _fields(program: str, found: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for field, (kind, names) in _FIELDS.items():
        value = next((found[name] for name in names if found.get(name) is not None), None)
        if kind is str:
            value = value if isinstance(value, str) and value.strip() else None
        elif (value := _number(value)) is not None and kind is int:
            value = int(value) if float(value).is_integer() else None
        if value is not None:
            fields[field] = value
    if "prompt" not in fields:
        raise _refusal(program, "its recipe has no prompt")
    return fields


def _number(value: Any) -> float | None:
    """A number, also as text; None when it is neither, or not one that can be drawn with."""
    if isinstance(value, str) and len(value) <= _LONGEST:
        try:
            value = int(value) if _INTEGER.fullmatch(value.strip()) else float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if abs(value) < _LARGEST and math.isfinite(value) else None


def _object(text: str, program: str) -> dict[str, Any]:
    try:
        return load_object(text.encode("utf-8", "replace"))
    except Rejected as error:
        raise _refusal(program, "its recipe is damaged") from error


def _refusal(program: str, why: str) -> Rejected:
    text = f"the picture was drawn by {program}, and {why}; write the request by hand"
    return Rejected("invalid_image", text)
