"""A sampler's steps come from a table, and give what diffusers' own scheduler gives."""

from __future__ import annotations

import pytest
import torch

from consumer.engine.sampling.sampler import Samplers
from schemas import samplers

_CONFIG = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "clip_sample": False}
_OWN_STEPS = {"SA-Solver"}  # its noise of one step is read again at the next


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_but_one_has_a_table(name: str):
    """UniPC's corrector reads latents that no call of the model saw; it did its own steps, four times as slow."""
    made = Samplers()
    scheduler = made.make(samplers.resolve(name), _CONFIG)
    scheduler.set_timesteps(6, device="cpu")
    table = made.table(scheduler._key, 6, 0, None)
    assert (table is None) == (name in _OWN_STEPS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["UniPC", "UniPC Karras"])
def test_a_corrector_goes_on_from_its_own_latents(name: str, dtype: torch.dtype):
    """Many steps with outputs that have nothing to do with the latents: every term of the table matters."""
    made = Samplers()
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(1, 4, 8, 8, generator=rng)
    outputs = [torch.randn(1, 4, 8, 8, generator=rng) for _ in range(20)]
    ends = []
    for precision in (torch.float32, dtype):
        scheduler = made.make(samplers.resolve(name), _CONFIG)
        plain = made._built[scheduler._key].from_config(made._built[scheduler._key].config)
        for one in (scheduler, plain):
            one.set_timesteps(20, device="cpu")
            latents = start.to(precision)
            for output, timestep in zip(outputs, one.timesteps, strict=True):
                latents = one.step(output.to(precision), timestep, latents, return_dict=False)[0]
            ends.append(latents.float())
    ours, theirs, ours_there, theirs_there = ends
    assert scheduler._table is not None
    assert (ours - theirs).abs().max() < 1e-4 * theirs.abs().max()
    assert (ours_there - ours).abs().max() <= 1.5 * (theirs_there - theirs).abs().max() + 1e-4
