"""The rows of a step: which picture each one shows, how it is cut, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from schemas.errors import Rejected
from training import buckets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL import Image

    from training.dreambooth.chance import Chance
    from training.dreambooth.parts import Parts, Text
    from training.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a forward pass."""

    number: int  # in the step, over all processes
    kind: Literal["concept", "prior", "off"]  # off: learns what the base itself predicts
    picture: int  # of the concept's pictures, or, for `prior`, of the class pictures
    caption: str
    size: tuple[int, int]  # width, height in pixels
    x: float  # where the cut lies, 0 to 1
    y: float
    flip: bool


@dataclass(frozen=True)
class Rows:
    """The rows of every step. Each picture is seen once an epoch; epochs follow one another without a gap."""

    recipe: Recipe
    chance: Chance
    class_prompts: Sequence[str] = ()  # of the class pictures, one each

    def of_step(self, step: int) -> list[Row]:
        """The concept's rows of a step (counted from 0), then as many that keep the old pictures."""
        options, count = self.recipe.options, self.recipe.rows
        rows = [self._concept(step, number) for number in range(count)]
        if options.prior == "pictures":
            rows += [self._prior(step, number) for number in range(count, 2 * count)]
        elif options.prior == "adapter_off":
            rows += [self._off(step, number) for number in range(count, 2 * count)]
        return rows

    def _concept(self, step: int, number: int) -> Row:
        views = self.recipe.views
        index = self.chance.pick(len(views), step * self.recipe.rows + number, "pictures")
        caption = self._caption(step, number, views[index].caption)
        return Row(number, "concept", index, caption, views[index].size, *self._cut(step, number))

    def _prior(self, step: int, number: int) -> Row:
        position = step * self.recipe.rows + number - self.recipe.rows
        index = self.chance.pick(len(self.class_prompts), position, "class pictures")
        caption = self._caption(step, number, self.class_prompts[index])
        side = self.recipe.options.resolution or 0
        flip = self._cut(step, number)[2]
        return Row(number, "prior", index, caption, (side, side), 0.5, 0.5, flip)

    def _off(self, step: int, number: int) -> Row:
        same = self._concept(step, number - self.recipe.rows)
        prompts = self.recipe.options.class_prompts
        position = step * self.recipe.rows + number - self.recipe.rows
        caption = self._caption(
            step, number, prompts[self.chance.pick(len(prompts), position, "class prompts")]
        )
        return Row(number, "off", same.picture, caption, same.size, same.x, same.y, same.flip)

    def _caption(self, step: int, number: int, caption: str) -> str:
        share = self.recipe.options.caption_dropout
        return "" if share and self.chance.share("caption", step, number) < share else caption

    def _cut(self, step: int, number: int) -> tuple[float, float, bool]:
        options, x, y = self.recipe.options, 0.5, 0.5
        if options.crop == "random":
            x, y = self.chance.share("x", step, number), self.chance.share("y", step, number)
        return x, y, options.flip and self.chance.share("flip", step, number) < 0.5


class Latents:
    """Pictures as the VAE sees them. What is seen again (no random cuts) is kept."""

    def __init__(
        self,
        parts: Parts,
        chance: Chance,
        pictures: Sequence[tuple[str, Image.Image]],
        class_pictures: Sequence[tuple[str, Image.Image]] = (),
    ) -> None:
        self._parts, self._chance = parts, chance
        self._pictures, self._class_pictures = pictures, class_pictures
        self._kept: dict[tuple[bool, int, bool], tuple[Tensor, Tensor]] = {}

    def draw(self, row: Row, step: int) -> Tensor:
        """Latents (1, channels, height, width) of a row, drawn from the VAE's posterior, scaled for the UNet.

        Raises:
            Rejected: the VAE makes something that is not a number of this picture.
        """
        mean, spread = self._moments(row)
        noise = self._chance.normal(tuple(mean.shape), "posterior", step, row.number)
        config = self._parts.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return (mean + spread * noise.to(mean.device) - shift) * config.scaling_factor

    def original_size(self, row: Row) -> tuple[int, int]:
        """Width and height of a row's picture."""
        return self._source(row)[1].size

    def _source(self, row: Row) -> tuple[str, Image.Image]:
        return (self._class_pictures if row.kind == "prior" else self._pictures)[row.picture]

    @torch.no_grad()
    def _moments(self, row: Row) -> tuple[Tensor, Tensor]:
        centred = (row.x, row.y) == (0.5, 0.5)
        key = (row.kind == "prior", row.picture, row.flip)
        if centred and key in self._kept:
            return self._kept[key]
        name, picture = self._source(row)
        cut = buckets.crop(picture, row.size, x=row.x, y=row.y, flip=row.flip)
        pixels = torch.from_numpy(np.array(cut, np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        posterior = self._parts.vae.encode(
            pixels.to(self._parts.device)
        ).latent_dist  # alone: neighbours change bits
        if not (torch.isfinite(posterior.mean).all() and torch.isfinite(posterior.std).all()):
            raise Rejected.of_field(
                "pictures",
                f"has {name!r}, of which the base's VAE makes values that are not numbers; leave it out",
            )
        moments = (posterior.mean, posterior.std)
        if centred:
            self._kept[key] = moments
        return moments


class Texts:
    """Captions as the UNet sees them. They are kept where the text encoder does not learn."""

    def __init__(self, parts: Parts, *, keep: bool) -> None:
        self._parts, self._keep = parts, keep
        self._kept: dict[str, Text] = {}

    def of(self, captions: Sequence[str]) -> Text:
        """Embeddings of captions, with a gradient where the text encoder learns."""
        from training.dreambooth.parts import Text

        if not self._keep:
            return self._parts.encode(captions)
        for caption in dict.fromkeys(captions):
            if caption not in self._kept:
                with torch.no_grad():
                    self._kept[caption] = self._parts.encode([caption])
        found = [self._kept[caption] for caption in captions]
        pooled = [text.pooled for text in found if text.pooled is not None]
        return Text(torch.cat([text.hidden for text in found]), torch.cat(pooled) if pooled else None)
