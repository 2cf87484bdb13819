"""Samplers are found by any name that people use, and built from the model's own training."""

from __future__ import annotations

import subprocess
import sys

import pytest

from consumer.engine.loading.pipelines import build_scheduler
from schemas import samplers
from schemas.errors import Rejected


@pytest.mark.parametrize(
    ("text", "name", "class_name"),
    [
        ("Euler a", "Euler a", "EulerAncestralDiscreteScheduler"),
        ("euler_a", "Euler a", "EulerAncestralDiscreteScheduler"),
        ("DPM++ 2M Karras", "DPM++ 2M Karras", "DPMSolverMultistepScheduler"),
        ("dpm++ 2m karras", "DPM++ 2M Karras", "DPMSolverMultistepScheduler"),
        ("DDIM", "DDIM", "DDIMScheduler"),
        ("PLMS", "PNDM", "PNDMScheduler"),
        ("UniPC", "UniPC", "UniPCMultistepScheduler"),
        ("EulerDiscreteScheduler", "Euler", "EulerDiscreteScheduler"),
        ("DPMSolverMultistepScheduler", "DPM++ 2M", "DPMSolverMultistepScheduler"),
        ("DPMSolverMultistep", "DPM++ 2M", "DPMSolverMultistepScheduler"),
        ("k_lms", "LMS", "LMSDiscreteScheduler"),
        ("DPM2 a", "DPM2 a", "KDPM2AncestralDiscreteScheduler"),
        ("sa solver", "SA-Solver", "SASolverScheduler"),
        ("DPM++ SDE Karras", "DPM++ SDE Karras", "DPMSolverSinglestepScheduler"),
        *(
            (text, name, samplers.resolve(name).class_name)
            for text, name in {
                "dpmpp_2m_karras": "DPM++ 2M Karras",
                "dpmpp_2m_k": "DPM++ 2M Karras",  # InvokeAI
                "dpmpp_2m_sde_k": "DPM++ 2M SDE Karras",
                "dpmpp_sde_k": "DPM++ SDE Karras",
                "dpmpp_2s": "DPM++ 2S",
                "euler_k": "Euler Karras",
                "heun_k": "Heun Karras",
                "lms_k": "LMS Karras",
                "kdpm_2": "DPM2",
                "kdpm_2_a_k": "DPM2 a Karras",
                "unipc_k": "UniPC Karras",
                "dpmpp_sde_gpu": "DPM++ SDE",  # ComfyUI
                "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
                "dpm_2_ancestral": "DPM2 a",
                "uni_pc": "UniPC",
                "sa_solver": "SA-Solver",
                "k_dpmpp_2m_sde": "DPM++ 2M SDE",  # AI Horde
                "k_dpm_2_a": "DPM2 a",
                "k_euler_a": "Euler a",
                "KLMS": "LMS",  # Replicate
                "K_EULER_ANCESTRAL": "Euler a",
                "HeunDiscrete": "Heun",
                "KarrasDPM": "DPM++ 2M Karras",
            }.items()
        ),
    ],
)
def test_a_sampler_answers_to_its_names(text, name, class_name):
    """Case, spaces and underscores do not matter, and diffusers' class names are known too."""
    choice = samplers.resolve(text)
    assert (choice.name, choice.class_name) == (name, class_name)


def test_every_canonical_name_finds_itself():
    """No alias shadows another sampler."""
    assert [samplers.resolve(name).name for name in samplers.names()] == samplers.names()


def test_an_unknown_sampler_is_rejected_with_the_known_and_the_nearest():
    """The message says what was meant, perhaps, and what there is."""
    with pytest.raises(Rejected) as caught:
        samplers.resolve("Eulr a")

    assert (caught.value.code, caught.value.field) == ("unknown_scheduler", "scheduler")
    assert "did you mean 'Euler a'?" in caught.value.message
    assert all(name in caught.value.message for name in samplers.names())


@pytest.mark.parametrize("text", ["DPM++ 2S a", "DPM++ 2S a Karras", "dpmpp_2s_ancestral", "k_dpmpp_2s_a"])
def test_a_sampler_that_stands_in_for_another_says_so(text):
    """`DPM++ 2S a` was drawn as `DPM++ 2S` without a word."""
    choice = samplers.resolve(text)
    assert choice.name.startswith("DPM++ 2S")
    assert choice.instead_of == "DPM++ 2S a"
    assert samplers.resolve(choice.name).instead_of == ""


@pytest.mark.parametrize(
    "text", ["DPM fast", "k_dpm_adaptive", "heunpp2", "ipndm", "restart", "2M Karras", "dpmsolver"]
)
def test_a_hint_never_names_another_family(text):
    """`DPM fast` is not `DPM2 a`, and iPNDM is not PNDM."""
    with pytest.raises(Rejected) as caught:
        samplers.resolve(text)
    assert "did you mean" not in caught.value.message


def test_the_models_training_is_kept_and_only_the_sampler_changes():
    """Betas and prediction type come from the model; Karras' sigmas from the name."""
    config = {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": "0.42.1",
        "beta_start": 0.001,
        "beta_end": 0.02,
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    built = build_scheduler(samplers.resolve("DPM++ 2M Karras"), config)

    assert built.config.prediction_type == "v_prediction"
    assert (built.config.beta_start, built.config.beta_end) == (0.001, 0.02)
    assert built.config.use_karras_sigmas is True


def test_the_models_own_sampler_keeps_every_setting():
    """Asked for the class that the model came with, nothing but the named options differs."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "lower_order_final": False, "beta_end": 0.012}
    built = build_scheduler(samplers.resolve("DPM++ 2M"), config)

    assert built.config.lower_order_final is False


def test_names_are_known_without_torch():
    """The parent process validates requests, and never imports torch."""
    code = "import sys, schemas.samplers, infra.models.cards; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
