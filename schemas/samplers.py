"""Samplers by name: diffusers' class names and the names that the community uses.

This is a table without any code of diffusers: a request is checked against it before any model is loaded, and a server
without torch tells its callers what there is. `consumer.engine.loading.pipelines` builds them.
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
    "DPM++ SDE": ("DPMSolverSinglestepScheduler", {**_2M, **_SDE}),
    "DPM++ SDE Karras": ("DPMSolverSinglestepScheduler", {**_2M, **_SDE, **_KARRAS}),
    "DEIS": ("DEISMultistepScheduler", {"algorithm_type": "deis", "solver_type": "logrho"}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "UniPC Karras": ("UniPCMultistepScheduler", _KARRAS),
    "LCM": ("LCMScheduler", {}),
    "TCD": ("TCDScheduler", {}),
    "SA-Solver": ("SASolverScheduler", {"algorithm_type": "data_prediction"}),
}
#: What flow matching models are drawn with, whatever they are asked for: (canonical name, diffusers class).
FLOW = ("Flow Euler", "FlowMatchEulerDiscreteScheduler")
#: Other names, as A1111, ComfyUI, InvokeAI, AI Horde and Replicate spell them; `_find` knows their prefixes and
#: suffixes: k_, dpmpp for DPM++, ancestral for a, and _k or _karras for Karras' sigmas.
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
    "k_dpmpp_sde": "DPM++ SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
    "dpmpp_sde_gpu": "DPM++ SDE",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "DPMSolver++": "DPM++ 2M",
    "DPM Solver++": "DPM++ 2M",
    "KarrasDPM": "DPM++ 2M Karras",
    "uni_pc": "UniPC",
    "uni_pc_bh2": "UniPC",
    "SASolver": "SA-Solver",
}
#: Samplers that are not offered, and the nearest that is drawn instead, with a warning.
_STAND_INS = {"DPM++ 2S a": "DPM++ 2S"}
#: Samplers that are not offered and look like the name of another that is; no hint names that one.
_FOREIGN = (
    "DPM fast", "DPM adaptive", "DPM", "Restart", "HeunPP2", "iPNDM", "iPNDM_v", "DDIM CFG++", "Euler CFG++",
    "Euler a CFG++", "res_multistep", "gradient_estimation", "er_sde", "DPMSolver", "KDPM", "LMS a", "Heun a",
)  # fmt: skip
_FAMILIES = (
    "dpm++",
    "dpm2",
    "euler",
    "heun",
    "lms",
    "ddim",
    "ddpm",
    "pndm",
    "deis",
    "unipc",
    "lcm",
    "tcd",
    "sasolver",
)
#: Steps with which a sampler's own schedule can be cut: 50 were used to distil for it (LCM, TCD in diffusers).
_MAX_STEPS = {"LCM": 50, "TCD": 50}


@dataclass(frozen=True, slots=True)
class SchedulerChoice:
    """A sampler, found: `build` needs nothing else but a model's scheduler config."""

    name: str  # canonical
    class_name: str  # in diffusers
    overrides: tuple[tuple[str, Any], ...]
    instead_of: str = ""  # the sampler that was asked for and is not offered


def names() -> list[str]:
    """The canonical names, without the sampler of flow matching models."""
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
    plain = _plain(name)
    if plain in _FLOW:
        return SchedulerChoice(*FLOW, ())
    found = _find(plain)
    if found is None:
        near = _near(plain)
        hint = f" (did you mean {near!r}?)" if near else ""
        known = ", ".join([*names(), FLOW[0]])
        text = f"no scheduler named {name!r}{hint}; known are {known}, and diffusers' class names"
        raise Rejected("unknown_scheduler", text, field="scheduler")
    class_name, overrides = _SCHEDULERS[found]
    stand_in = next((asked for asked in _STAND_INS if _plain(asked) in plain), "")
    return SchedulerChoice(found, class_name, tuple(overrides.items()), stand_in)


def for_model(asked: str | None, default: str, *, flow: bool, one: bool = False) -> tuple[str, str]:
    """The canonical name of the sampler that a model is drawn with, and why it is not the one that was asked for.

    Args:
        asked: as a caller spells it; None or "": nothing.
        default: the model's own, canonical.
        flow: the model is made for flow matching, which has samplers of its own. Its Euler is called Euler, too.
        one: the pipeline of the model works with its own sampler only.

    Raises:
        Rejected: nothing answers to this name.
    """
    if not asked:
        return default, ""
    name = resolve(asked).name
    if flow and name == "Euler":
        return FLOW[0], ""
    if name == default or (flow == (name == FLOW[0]) and not one):
        return name, ""
    kind = "is made for flow matching" if flow else "is not made for flow matching"
    kind = "works with its own sampler only" if one else kind
    return default, f"scheduler {name} was not used: the model {kind}; it was drawn with {default}"


def check_steps(name: str, steps: int, field: str = "steps") -> None:
    """Refuse more steps than a sampler can do. Raises `Rejected`.

    Args:
        name: canonical.
        field: of the manifest, which says how many.
    """
    most = _MAX_STEPS.get(name, steps)
    if steps > most:
        raise Rejected.of_field(field, f"is {steps}; the scheduler {name} can do at most {most}")


def check_request(scheduler: str | None, steps: int) -> None:
    """As `check_steps`, for a name as a caller spells it; one that is not known here is left to the workers."""
    if scheduler is not None and (found := _find(_plain(scheduler))) is not None:
        check_steps(found, steps)


def _plain(name: str) -> str:
    text = "".join(c for c in name.lower() if c.isalnum() or c == "+")
    return text.replace("dpmpp", "dpm++").replace("ancestral", "a")


def _find(plain: str) -> str | None:
    """The canonical name of a plain one; its suffix may ask for Karras' sigmas."""
    if plain in _INDEX:
        return _INDEX[plain]
    for suffix in ("karras", "k"):
        base = _base(plain.removesuffix(suffix))
        if plain.endswith(suffix) and base is not None:
            return f"{base} Karras" if f"{base} Karras" in _SCHEDULERS else None
    return _base(plain)


def _base(plain: str) -> str | None:
    return _INDEX.get(plain) or _INDEX.get(plain.removeprefix("k"))


def _near(plain: str) -> str | None:
    """The canonical name that was perhaps meant: of the same family, or but for a typing error."""
    bare = plain.removeprefix("k").removesuffix("karras")
    if bare in map(_plain, _FOREIGN):
        return None
    family = next((each for each in _FAMILIES if bare.startswith(each)), None)
    if family is None:  # "2M Karras" is no misspelt "LMS Karras"
        near = difflib.get_close_matches(
            bare, [k for k in _INDEX if not k.endswith("karras")], n=1, cutoff=0.8
        )
    else:
        near = difflib.get_close_matches(plain, [k for k in _INDEX if k.startswith(family)], n=1, cutoff=0.5)
    return _INDEX[near[0]] if near else None


def _index() -> dict[str, str]:
    index = {_plain(alias): name for alias, name in (_ALIASES | _STAND_INS).items()}
    for name, (class_name, _) in reversed(_SCHEDULERS.items()):  # the first of a class answers to its name
        index[_plain(class_name)] = name
        index[_plain(class_name.removesuffix("Scheduler"))] = name
    index.update({_plain(name): name for name in _SCHEDULERS})
    return index


_INDEX = _index()
_FLOW = {_plain(text) for text in (*FLOW, FLOW[1].removesuffix("Scheduler"), "flow_match_euler", "flowmatch")}
