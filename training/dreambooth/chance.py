"""Every random number of a training, as a function of seed, step and row.

Nothing here has a state, so a training that goes on in another process draws what it would have drawn. A row has a
global number, so the number of processes and the way rows are put into batches change nothing either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Chance:
    """The random numbers of one seed."""

    seed: int

    def number(self, purpose: str, *place: int) -> int:
        """63 uniform bits for a purpose at a place: step and row, or an epoch."""
        text = f"dreamdrop {self.seed} {purpose} {' '.join(map(str, place))}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def share(self, purpose: str, *place: int) -> float:
        """A uniform number in [0, 1)."""
        return (self.number(purpose, *place) >> 10) / 2**53

    def generator(self, purpose: str, *place: int) -> torch.Generator:
        """A generator on the CPU: its numbers are the same on every device."""
        return torch.Generator().manual_seed(self.number(purpose, *place))

    def normal(self, shape: tuple[int, ...], purpose: str, *place: int) -> Tensor:
        """float32 noise on the CPU."""
        return torch.randn(shape, generator=self.generator(purpose, *place))

    def order(self, count: int, purpose: str, epoch: int) -> list[int]:
        """A permutation of range(count), for one epoch."""
        return [int(i) for i in torch.randperm(count, generator=self.generator(purpose, epoch))]

    def pick(self, count: int, position: int, purpose: str) -> int:
        """Which of `count` things stands at a position of the endless sequence of shuffled epochs."""
        epoch, index = divmod(position, count)
        return self.order(count, purpose, epoch)[index]
