"""Pipelines around one set of components: of other classes, and with stand-ins in place of their models."""

from __future__ import annotations

from typing import Any

import torch

from consumer.engine.stand_in import StandIn


def modules_of(pipe: Any) -> dict[str, torch.nn.Module]:
    """The components with weights, by name, in the order in which they run: text encoders, denoiser, VAE."""
    found = {name: one for name, one in pipe.components.items() if isinstance(one, torch.nn.Module)}
    return dict(sorted(found.items(), key=lambda item: (not item[0].startswith("text"), item[0] == "vae")))


def around(kind: Any, pipe: Any) -> Any:
    """A pipeline of a class, with the components of another."""
    expected, _ = kind._get_signature_keys(kind)
    parts = {name: pipe.components.get(name) for name in expected if name != "self"}
    made = kind(**parts, **_extras(kind, pipe))
    made.set_progress_bar_config(disable=True)
    return made


def with_stand_ins(pipe: Any, layers: tuple[int, ...]) -> Any:
    """A copy of a pipeline whose models are stand-ins."""
    copy = around(type(pipe), pipe)
    for name, module in modules_of(pipe).items():
        setattr(copy, name, StandIn(module, is_text_encoder=name.startswith("text"), layers=layers))
    return copy


def _extras(kind: Any, pipe: Any) -> dict[str, Any]:
    """The settings of a pipeline that are not components, such as `requires_safety_checker`."""
    _, optional = kind._get_signature_keys(kind)
    settings = {name: pipe.config[name] for name in optional if name in pipe.config}
    if "add_watermarker" in optional:
        settings["add_watermarker"] = False
    return settings
