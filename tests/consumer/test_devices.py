"""Device settings do what they say, or say why they cannot."""

from __future__ import annotations

import pytest
import torch

from consumer.engine import devices
from consumer.engine.devices import BadDevice

NO_GPU = not torch.cuda.is_available()


def test_the_cpu_is_always_there():
    """A machine may have no GPU; it has a CPU, in float32."""
    assert devices.devices("cpu") == ["cpu"]
    assert devices.pick_dtype("cpu") == torch.float32
    assert devices.pick_dtype("cpu", "bf16") == torch.bfloat16


def test_all_devices_are_listed():
    """Every GPU, or the CPU where there is none."""
    expected = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    assert devices.devices("all") == expected
    assert devices.devices("auto") == expected[:1]


@pytest.mark.parametrize("wanted", ["cuda:99", "gpu", ""])
def test_a_device_that_is_not_there_is_refused(wanted):
    """The message lists what there is."""
    with pytest.raises(BadDevice, match="cpu"):
        devices.devices(wanted)


def test_an_unknown_precision_is_refused():
    """The message lists the known ones."""
    with pytest.raises(BadDevice, match="float32, bfloat16, float16"):
        devices.pick_dtype("cpu", "float8")


def test_attention_really_changes(registry):
    """Whatever the UNet had before, afterwards every processor is the chosen one."""
    from diffusers.models.attention_processor import AttnProcessor

    pipe = registry.get("tiny").plain["text2img"]
    pipe.unet.set_attn_processor(AttnProcessor())
    assert devices.set_attention(pipe.unet, pipe.vae, "sdpa") == "sdpa"
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {"AttnProcessor2_0"}


@pytest.mark.skipif(not NO_GPU, reason="says what a machine without a GPU answers")
def test_xformers_without_a_gpu_says_what_to_do(registry):
    """No silent fall-back: the setting is refused with the way out."""
    pipe = registry.get("tiny").plain["text2img"]
    with pytest.raises(BadDevice, match="use sdpa"):
        devices.set_attention(pipe.unet, pipe.vae, "xformers")


@pytest.mark.skipif(not NO_GPU, reason="says what a machine without a GPU answers")
def test_offload_without_a_gpu_is_refused(make_registry):
    """Offload moves weights between a GPU and the CPU; without a GPU it means nothing."""
    with pytest.raises(BadDevice, match="GPU"):
        make_registry(offload=True).get("tiny")
