"""Optimizers by name, and learning rates as functions of the step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from schemas.training import Training


def make(options: Training, groups: Sequence[Sequence[nn.Parameter]]) -> torch.optim.Optimizer:
    """An optimizer for groups of parameters: UNet and, if it learns, text encoder. `set_rates` gives the rates."""
    lists: list[dict[str, Any]] = [{"params": list(group), "lr": 1.0} for group in groups if group]
    decay = options.weight_decay
    if options.optimizer == "adamw":
        return torch.optim.AdamW(lists, weight_decay=decay)
    if options.optimizer == "adafactor":
        return torch.optim.Adafactor(lists, weight_decay=decay)
    if options.optimizer == "adamw8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(lists, weight_decay=decay)
    import prodigyopt

    # The safeguard keeps the estimate of the rate steady through a warm-up, as its author advises.
    return prodigyopt.Prodigy(lists, weight_decay=decay, safeguard_warmup=True, use_bias_correction=True)


def set_rates(optimizer: torch.optim.Optimizer, options: Training, step: int) -> float:
    """Set the rates of a step, counted from 0; returns the UNet's."""
    share = factor(options.schedule or "constant", step, options.steps or 1, options.warmup_steps or 0)
    rates = [options.learning_rate or 0.0, options.text_encoder_learning_rate or 0.0]
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        group["lr"] = rate * share
    return rates[0] * share


def factor(schedule: str, step: int, steps: int, warmup: int) -> float:
    """What the rate is multiplied by: it rises over the warm-up, then stays, or falls to 0 after the last step."""
    if step < warmup:
        return (step + 1) / warmup
    passed = (step - warmup) / max(1, steps - warmup)
    if schedule == "linear":
        return 1 - passed
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * passed))
    return 1.0
