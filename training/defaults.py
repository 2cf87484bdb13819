"""What a training does where the manifest says nothing, by the kind of its base.

`small` was measured on the bundled doodle, with 48 class pictures. Of 24 prompts with a new shape a full training drew
9 at a rate of 4e-4, 15 at 6e-4 and 19 at 8e-4, with 17 of 18 old shapes kept at each; a LoRA 20 at 3e-3, with 16
kept. The others are the figures that the reference scripts' documents name (5e-6 full, 1e-4 LoRA, 400 and 500 steps).
"""

from __future__ import annotations

from typing import Any

_SMALL: dict[str, Any] = {
    "batch_size": 4,
    "text_encoder": True,
    "schedule": "linear",
    "warmup_steps": 10,
    "ema": 0.97,
}
_LARGE: dict[str, Any] = {
    "batch_size": 1,
    "text_encoder": False,
    "schedule": "constant",
    "warmup_steps": 0,
}
_LORA: dict[str, Any] = {"rank": 16, "targets": "attention", "learning_rate": 1e-4, "steps": 500, "ema": 0.0}
_FULL: dict[str, Any] = {"learning_rate": 5e-6, "steps": 400, "ema": 0.99}

_BY_KIND: dict[tuple[str, str], dict[str, Any]] = {
    ("small", "lora"): {**_SMALL, "rank": 16, "targets": "all", "learning_rate": 3e-3, "steps": 200},
    ("small", "full"): {**_SMALL, "learning_rate": 8e-4, "steps": 150},
    ("sd1", "lora"): {**_LARGE, **_LORA},
    ("sd1", "full"): {**_LARGE, **_FULL},
    ("sd2", "lora"): {**_LARGE, **_LORA},
    ("sd2", "full"): {**_LARGE, **_FULL},
    ("sdxl", "lora"): {**_LARGE, **_LORA},
    ("sdxl", "full"): {**_LARGE, **_FULL, "learning_rate": 2e-6},
}
_WITH_TEXT_ENCODER = 2e-6  # full training of large models: the reference's figure where both parts learn
_PRODIGY = 1.0  # this optimizer finds the rate; 1 leaves it alone

#: How validation pictures and class pictures are drawn: denoising steps and guidance scale.
DRAWING = {"small": (20, 4.0), "sd1": (25, 7.5), "sd2": (25, 7.5), "sdxl": (25, 6.0)}


def of(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """The manifest's fields with every `None` that the base decides filled in.

    Args:
        kind: of the base.
        given: the fields of a `Training`.
    """
    usual = dict(_BY_KIND[kind, given["method"]])
    if given["method"] == "full" and kind != "small" and given["text_encoder"]:
        usual["learning_rate"] = min(usual["learning_rate"], _WITH_TEXT_ENCODER)
    if given["optimizer"] == "prodigy":
        usual["learning_rate"] = _PRODIGY
    if given["method"] == "full" and kind != "small" and given["class_prompts"]:
        usual["steps"] *= 2  # half of what it sees is not the new concept
    if given["epochs"] is not None:
        usual["steps"] = None
    if given["schedule"] == "constant":
        usual["warmup_steps"] = 0
    elif given["schedule"] is not None and kind != "small":
        steps = given["steps"] or usual["steps"] or 0
        usual["warmup_steps"] = 0 if given["schedule"] != "constant_with_warmup" else max(1, steps // 10)
    chosen = {
        name: usual[name] if value is None and name in usual else value for name, value in given.items()
    }
    if chosen["steps"] is not None and given["warmup_steps"] is None:
        chosen["warmup_steps"] = min(chosen["warmup_steps"], chosen["steps"] // 10)
    if given["prior"] is None and given["class_prompts"]:
        chosen["prior"] = "pictures"
    if given["method"] == "lora" and given["alpha"] is None:
        chosen["alpha"] = float(chosen["rank"])
    if chosen["text_encoder"] and given["text_encoder_learning_rate"] is None:
        chosen["text_encoder_learning_rate"] = chosen["learning_rate"]
    return chosen
