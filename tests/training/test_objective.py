"""The loss of a step is what arithmetic by hand says, with min-SNR and prior preservation together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainings import prepare

BETAS = [0.1, 0.5, 0.9]  # alphas_cumprod: 0.9, 0.45, 0.045


def schedule(kind: str) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=3, trained_betas=BETAS, prediction_type=kind)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # SNR = 9, 0.8182, 0.04712; gamma 5
        ("epsilon", [5 / 9, 1, 1]),
        ("v_prediction", [5 / 10, 0.45, 0.045]),  # SNR / (SNR + 1) is alphas_cumprod
        ("sample", [5, 0.45 / 0.55, 0.045 / 0.955]),
    ],
)
def test_min_snr_weights(kind: str, expected: list[float]):
    """Each row has its own weight, by its own timestep and the base's kind of prediction."""
    import torch

    from training.dreambooth.objective import Objective

    weights = Objective(schedule(kind), 5.0).weights(torch.tensor([0, 1, 2]))
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)
    assert Objective(schedule(kind)).weights(torch.tensor([0, 2])).tolist() == [1, 1]


def test_a_noise_without_signal_counts_fully_in_epsilon_and_not_in_v():
    """Zero terminal SNR: no division of nothing by nothing."""
    import torch
    from diffusers import DDPMScheduler

    from training.dreambooth.objective import Objective

    for kind, expected in (("epsilon", 1.0), ("v_prediction", 0.0)):
        noise = DDPMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
        assert Objective(noise, 5.0).weights(torch.tensor([999])).item() == pytest.approx(expected, abs=1e-6)


def test_targets_by_prediction_type():
    """Epsilon, v = sqrt(a) * noise - sqrt(1 - a) * clean, or the clean latents."""
    import torch

    from training.dreambooth.objective import Objective

    clean, noise, times = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([1])
    values = {
        k: Objective(schedule(k)).target(clean, noise, times).item()
        for k in ("epsilon", "v_prediction", "sample")
    }
    assert values == pytest.approx({"epsilon": 3, "v_prediction": 0.45**0.5 * 3 - 0.55**0.5 * 2, "sample": 2})


def make_loop(folder: Path) -> Any:
    """A loop before its first step."""
    from training.dreambooth import run

    made = []
    real = run._go_on

    def keep(work: Path, loop: Any, *rest: Any) -> bool:
        made.append(loop)
        return True

    run._go_on = keep  # the loop as `train` builds it, without its steps
    try:
        run.train(folder, lambda event: None, lambda: False)
    finally:
        run._go_on = real
    return made[0]


@pytest.mark.parametrize("prior", ["pictures", "adapter_off"])
def test_the_loss_of_a_step_row_by_row(prior: str, tiny_folder: Path, pictures: Path, tmp_path: Path):
    """Three rows of the concept and three that keep the old pictures, each computed alone by plain modules."""
    import torch

    options = {"prior": prior, "class_prompts": ["a", "b"], "class_pictures": 2, "prior_weight": 0.7}
    folder = prepare(
        tmp_path, tiny_folder, pictures, steps=1, batch_size=3, resolution=32, snr_gamma=2.0, rank=2,
        lora_dropout=0.0, offset_noise=0.1, **options,
    )  # fmt: skip
    loop = make_loop(folder)
    parts, chance, noise_schedule = loop.parts, loop._chance, loop.parts.noise
    expected, counted = 0.0, 0
    for row in loop._rows.of_step(0):
        clean = loop._latents.draw(row, 0)
        noise = chance.normal(tuple(clean.shape), "noise", 0, row.number)
        noise = noise + 0.1 * chance.normal((1, 4, 1, 1), "offset", 0, row.number)
        time = torch.tensor([chance.number("time", 0, row.number) % 1000])
        with torch.no_grad():
            text = parts.encode([row.caption])
            said = parts.unet(noise_schedule.add_noise(clean, noise, time), time, text.hidden).sample
        power = float(noise_schedule.alphas_cumprod[time])
        weight = min(power / (1 - power), 2.0) / (power / (1 - power))  # this base predicts epsilon
        # A LoRA that has not learned predicts what the base does: `off` rows cost nothing yet.
        error = 0.0 if row.kind == "off" else float((said - noise).pow(2).mean())
        expected += (1.0 if row.kind == "concept" else 0.7) * weight * error / 3
        counted += 1
    assert counted == 6
    loss = loop.step()
    assert loss.loss == pytest.approx(expected, rel=1e-4)
    if prior == "adapter_off":
        assert loss.prior == pytest.approx(0, abs=1e-9)
        loop.done = 0
        assert loop.step().prior > 0  # now the LoRA differs from the base
    else:
        assert loss.prior > 0
