"""A paused call of a real module: all that the device side knows of an image. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer.engine.denoisers import PLAIN, Denoiser

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import nn


@dataclass(eq=False, slots=True)
class Call:
    """One paused call of a real module's method: what the engine stacks with others."""

    kind: str  # text | encode | side | unet | decode
    module: nn.Module
    method: str  # "__call__", "encode" or "decode"
    arguments: dict[str, Any]  # by parameter name
    rows: int  # along the first dimension
    key: Hashable = None  # calls with equal keys can run as one, with the same weights; set by the engine
    size: int = 1  # what a row costs beside rows of other sizes that share its key; set by the engine
    own: Hashable = None  # the key of its size alone, where sizes share `key`; set by the engine
    switched: bool = False  # its module is to have LoRAs or an IP-Adapter; set by the engine
    ticket: int = 0  # order of arrival, set by the engine
    layers: tuple[int, ...] = ()  # of a text encoder's hidden states, the ones that are read
    layout: Denoiser = PLAIN  # how its arguments are joined

    @property
    def limits(self) -> Hashable:
        """The key of its row limits and times: rows of another size cost more or less."""
        return self.key if self.own is None else self.own
