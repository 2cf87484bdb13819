"""What the UNet should have said, and how much each row counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True)
class Objective:
    """Squared error against the base's own kind of prediction, with a weight for each row."""

    noise: DDPMScheduler
    snr_gamma: float | None = None

    @property
    def times(self) -> int:
        """Timesteps are drawn from range(times)."""
        return int(self.noise.config.num_train_timesteps)

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Latents at their timesteps."""
        return self.noise.add_noise(clean, noise, times)

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Epsilon, v (Salimans and Ho 2022, arXiv:2202.00512) or the clean sample, as the base predicts."""
        kind = self.noise.config.prediction_type
        if kind == "epsilon":
            return noise
        if kind == "v_prediction":
            return self.noise.get_velocity(clean, noise, times)
        if kind == "sample":
            return clean
        raise ValueError(f"unknown prediction type {kind!r}")

    def weights(self, times: Tensor) -> Tensor:
        """min-SNR weights (Hang et al. 2023, arXiv:2303.09556), one a row; ones without `snr_gamma`.

        The paper's weight is min(SNR, gamma) for the error of the clean sample. The same error is SNR times
        smaller in epsilon, and SNR + 1 times smaller in v.
        """
        if self.snr_gamma is None:
            return torch.ones(len(times), device=times.device)
        power = self.noise.alphas_cumprod.to(times.device, torch.float64)[times]
        ratio = power / (1 - power)
        capped = ratio.clamp(max=self.snr_gamma)
        kind = self.noise.config.prediction_type
        if kind == "epsilon":
            return (self.snr_gamma / ratio).clamp(max=1).float()  # 1 where the ratio is 0
        return (capped / (ratio + 1) if kind == "v_prediction" else capped).float()

    @staticmethod
    def errors(predicted: Tensor, target: Tensor) -> Tensor:
        """The mean squared error of each row, float32 of shape (n,)."""
        return (predicted.float() - target.float()).pow(2).flatten(1).mean(1)
