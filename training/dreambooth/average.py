"""Averaged weights (EMA), which draw steadier pictures than the last step's."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


class Average:
    """An exponential moving average of what learns."""

    def __init__(self, learning: Mapping[str, nn.Parameter], decay: float) -> None:
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in learning.items()}
        self._learning = learning
        self._decay = decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after a step, counted from 0; the first steps count more."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._learning.items():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def switched_in(self) -> Iterator[None]:
        """The averaged weights in the model, inside this context."""
        kept = {name: parameter.data for name, parameter in self._learning.items()}
        for name, parameter in self._learning.items():
            parameter.data = self.weights[name]
        try:
            yield
        finally:
            for name, parameter in self._learning.items():
                parameter.data = kept[name]
