"""Samplers by name: diffusers' class names, and the names that the community knows them by.

A table and no code of diffusers: a request is checked against it before any model is loaded, and a server
without torch tells its callers what there is. `consumer.engine.pipelines` builds them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from schemas.errors import Rejected

_KARRAS = {"use_karras_sigmas": True}
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_2M = {"algorithm_type": "dpmsolver++", "solver_order": 2}

#: canonical name: (diffusers class, what is changed in the model's own scheduler config)
_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "DDPM": ("DDPMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler Karras": ("EulerDiscreteScheduler", _KARRAS),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "Heun Karras": ("HeunDiscreteScheduler", _KARRAS),
    "LMS": ("LMSDiscreteScheduler", {}),
    "LMS Karras": ("LMSDiscreteScheduler", _KARRAS),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 Karras": ("KDPM2DiscreteScheduler", _KARRAS),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DPM2 a Karras": ("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", _2M),
    "DPM++ 2M Karras": ("DPMSolverMultistepScheduler", {**_2M, **_KARRAS}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", {**_2M, **_SDE}),
    "DPM++ 2M SDE Karras": ("DPMSolverMultistepScheduler", {**_2M, **_SDE, **_KARRAS}),
    "DPM++ 3M SDE": ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}),
    "DPM++ 3M SDE Karras": ("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS, "solver_order": 3}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", _2M),
    "DPM++ 2S Karras": ("DPMSolverSinglestepScheduler", {**_2M, **_KARRAS}),
    "DEIS": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC Karras": ("UniPCMultistepScheduler", _KARRAS),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "SA-Solver": ("SASolverScheduler", {"algorithm_type": "data_prediction"}),
}
_ALIASES = {
    "PLMS": "PNDM",
    "Euler Ancestral": "Euler a",
    "k_euler": "Euler",
    "k_euler_a": "Euler a",
    "k_euler_ancestral": "Euler a",
    "k_heun": "Heun",
    "k_lms": "LMS",
    "k_dpm_2": "DPM2",
    "k_dpm_2_a": "DPM2 a",
    "k_dpm_2_ancestral": "DPM2 a",
    "k_dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "DPMSolver++": "DPM++ 2M",
    "DPM Solver++": "DPM++ 2M",
    "DPM++ 2S a": "DPM++ 2S",
    "DPM++ 2S a Karras": "DPM++ 2S Karras",
    "uni_pc": "UniPC",
    "SASolver": "SA-Solver",
}


@dataclass(frozen=True, slots=True)
class SchedulerChoice:
    """A sampler, found: `build` needs nothing else but a model's scheduler config."""

    name: str  # canonical
    class_name: str  # in diffusers
    overrides: tuple[tuple[str, Any], ...]


def names() -> list[str]:
    """The canonical names."""
    return list(_SCHEDULERS)


def aliases(name: str) -> list[str]:
    """What else a canonical name is called: by its community, and in diffusers."""
    return [alias for alias, known in _ALIASES.items() if known == name] + [_SCHEDULERS[name][0]]


def class_names() -> list[str]:
    """The diffusers classes that are offered."""
    return sorted({class_name for class_name, _ in _SCHEDULERS.values()})


def resolve(name: str) -> SchedulerChoice:
    """Find a sampler by its canonical, community or diffusers name, in any case and spacing.

    Raises:
        Rejected: nothing answers to this name; the message lists what does.
    """
    found = _INDEX.get(_plain(name))
    if found is None:
        near = difflib.get_close_matches(_plain(name), _INDEX, n=1, cutoff=0.5)
        hint = f" (did you mean {_INDEX[near[0]]!r}?)" if near else ""
        raise Rejected(
            "unknown_scheduler",
            f"no scheduler named {name!r}{hint}; known are {', '.join(names())}, and diffusers' class names",
            field="scheduler",
        )
    class_name, overrides = _SCHEDULERS[found]
    return SchedulerChoice(found, class_name, tuple(overrides.items()))


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum() or c == "+")


def _index() -> dict[str, str]:
    index = {_plain(alias): name for alias, name in _ALIASES.items()}
    for name, (class_name, _) in reversed(_SCHEDULERS.items()):  # the first of a class answers to its name
        index[_plain(class_name)] = name
        index[_plain(class_name.removesuffix("Scheduler"))] = name
    index.update({_plain(name): name for name in _SCHEDULERS})
    return index


_INDEX = _index()
