"""Samplers, built: the scheduler of one image, from its model's own config.

Images never share one, because a scheduler remembers steps. Names are in `schemas.samplers`; no torch here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from schemas.errors import Rejected
from schemas.samplers import SchedulerChoice, class_names, names, resolve

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SchedulerChoice", "build", "class_names", "names", "resolve"]


def build(choice: SchedulerChoice, config: Mapping[str, Any]) -> Any:
    """Make one image's scheduler from the model's scheduler config, so that its training (betas,
    prediction type) is kept and only the sampler changes."""
    kind: Any = getattr(importlib.import_module("diffusers"), choice.class_name)
    base = {name: value for name, value in config.items() if not name.startswith("_")}
    if config.get("_class_name") != choice.class_name:
        base = {name: value for name, value in base.items() if name in _SHARED}
    try:
        return kind.from_config({**base, **dict(choice.overrides)})
    except ImportError as error:
        reason = f"scheduler {choice.name!r} cannot run here: {error}"
        raise Rejected("unsupported", reason, field="scheduler") from error


#: What a model's training fixes, whichever scheduler samples it; the rest is the sampler's own.
_SHARED = frozenset(
    {
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "clip_sample",
        "clip_sample_range",
        "set_alpha_to_one",
    }
)
