"""The engine on a real GPU: precision, attention kernels, memory layout, offload, exactness."""

from __future__ import annotations

import importlib.util
import time

import pytest
import torch

from consumer.engine.device_call import DeviceCaller
from consumer.engine.devices import CallTimer, Offload
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn
from infra.models.cards import Cards
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task

TASKS = ("text2img", "img2img", "inpainting")


@pytest.fixture
def on_gpu(tiny_folder):
    """Make a registry on the first GPU."""

    def make(**settings):
        return ModelRegistry(Cards.of([f"tiny={tiny_folder}"]), device="cuda:0", **settings)

    return make


def test_calls_are_timed_without_waiting_for_them():
    """The time is the device's, and comes once the device is done; a pause before a call is nobody's."""
    timer, taken = CallTimer("cuda:0", clock=lambda: 0.0), []
    one = torch.rand(4096, 4096, device="cuda:0")
    for wait in (0.0, 0.2, 0.2):
        time.sleep(wait)
        if len(taken) == 2:
            timer.pause()
        timer.time(lambda: one @ one, lambda own, busy: taken.append((own, busy)))
        torch.cuda.synchronize()
        timer.collect()
    assert len(taken) == 3
    assert all(0 < own <= busy for own, busy in taken)
    assert taken[1][1] - taken[1][0] > 0.1  # the host slept
    assert taken[2][0] == taken[2][1]


def mixed(steps=3):
    """Six tasks of all three kinds."""
    return [make_task(f"{kind}{i}", task=kind, seed=i, steps=steps + i) for kind in TASKS for i in range(2)]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_precision_draws_all_three_tasks(on_gpu, dtype):
    """Mixed tasks are drawn in shared calls; in float32 each equals its solo run."""
    registry = on_gpu(dtype=dtype)
    room = Studio(registry, max_rows=16)
    ended = room.draw(*mixed())

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert ended["text2img0", 0].model["dtype"] == dtype
    if dtype == "float32":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        for task in mixed():
            assert grey_levels_apart(ended[task.request, 0].picture, draw_alone(registry, task)) <= 2


def test_without_a_setting_a_gpu_works_in_half_precision(on_gpu):
    """bfloat16 where the GPU has it, else float16; and convolutions in channels_last."""
    registry = on_gpu()
    model = registry.get("tiny")
    weight = model.plain["text2img"].unet.conv_in.weight

    assert model.record["dtype"] in ("bfloat16", "float16")
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_exact_mode_company_does_not_change_a_byte(on_gpu, dtype):
    """On the GPU too, an image in calls of one fixed size has the same bytes alone and beside others."""
    registry = on_gpu(dtype=dtype)
    shared = Studio(registry, exact=True, max_rows=12).draw(*mixed())
    for task in mixed():
        single = Studio(registry, exact=True, max_rows=12).draw(task)
        assert single[task.request, 0].picture == shared[task.request, 0].picture


def test_attention_says_what_it_uses(on_gpu):
    """sdpa puts torch's kernels in every layer of the UNet."""
    unet = on_gpu(attention="sdpa").get("tiny").plain["text2img"].unet
    assert {type(p).__name__ for p in unet.attn_processors.values()} == {"AttnProcessor2_0"}


@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="needs the xformers extra")
def test_xformers_really_replaces_the_kernels(on_gpu):
    """Every layer's processor is xformers' own, and pictures come out."""
    registry = on_gpu(attention="xformers", dtype="float16")
    unet = registry.get("tiny").plain["text2img"].unet

    assert {type(p).__name__ for p in unet.attn_processors.values()} == {"XFormersAttnProcessor"}
    assert all(isinstance(event, Drawn) for event in Studio(registry).draw(*mixed()).values())


def test_offloaded_modules_are_on_the_gpu_only_while_they_run(on_gpu):
    """Where nothing fits beside another, at most one module is still on the device afterwards."""
    registry = on_gpu(offload=True, dtype="float32", offloading=Offload(room=1))
    ended = Studio(registry).draw(*mixed())
    places = [next(module.parameters()).device.type for module in registry.get("tiny").modules]

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert places.count("cuda") <= 1


def test_memory_that_really_runs_out_halves_the_group(on_gpu, monkeypatch):
    """A true CUDA out-of-memory error is survived with fewer rows, and the memory is given back."""
    registry = on_gpu(dtype="float32")
    unet = registry.get("tiny").plain["text2img"].unet
    real, sizes = unet.forward, []

    def hungry(*args, **kwargs):
        rows = kwargs["sample"].shape[0]
        sizes.append(rows)
        if rows > 2:
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return real(*args, **kwargs)

    unet.forward = hungry
    room = Studio(registry, measure=False)
    ended = room.draw(*[make_task(f"r{i}", seed=i, steps=2) for i in range(4)])

    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[3:]) == 2
    assert isinstance(room.engine.caller, DeviceCaller)
