"""The steps of a training: forward passes, gradients over all processes, one update, and what is remembered of it.

accelerate starts the processes, says where they compute and in which precision, and sums their gradients. Its data
loader and its saved states are not used: with them a training that goes on differs from one that never stopped.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from training import recipe as recipes
from training.dreambooth import adapters, optimizers
from training.dreambooth.average import Average
from training.dreambooth.objective import Objective
from training.dreambooth.rows import Texts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import Accelerator

    from training.dreambooth.chance import Chance
    from training.dreambooth.parts import Parts
    from training.dreambooth.rows import Latents, Row, Rows
    from training.recipe import Recipe

_PATIENCE = 3  # steps in a row that may be skipped


class NotFinite(Exception):
    """The loss or its gradient was not a number too often."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(
            f"the {what} was not a finite number at step {step}, nor at the {_PATIENCE} steps before; lower "
            "learning_rate, or use precision no"
        )
        self.step = step


@dataclass(frozen=True, slots=True)
class Loss:
    """What is remembered of a step. None: not a finite number, and the step changed nothing."""

    step: int  # from 1
    loss: float | None
    prior: float | None  # the part of `loss` that keeps the old pictures, without its weight
    norm: float | None  # of the gradient, before it is clipped
    rate: float  # of the UNet


class Loop:
    """A training between two steps. Everything that a checkpoint must hold is an attribute."""

    def __init__(
        self,
        recipe: Recipe,
        parts: Parts,
        rows: Rows,
        latents: Latents,
        chance: Chance,
        accelerator: Accelerator,
    ) -> None:
        self.recipe, self.parts, self.accelerator = recipe, parts, accelerator
        self._rows, self._latents, self._chance = rows, latents, chance
        options = recipe.options
        self.learning = prepare(parts, recipe, chance)
        unet = [p for name, p in self.learning.items() if name.startswith("unet.")]
        self._text = [p for name, p in self.learning.items() if not name.startswith("unet.")]
        self.optimizer = optimizers.make(options, [unet, self._text])
        self.average = Average(self.learning, options.ema) if options.ema else None
        self.scaler: torch.amp.GradScaler | None = accelerator.scaler
        self.done = 0  # steps
        self.skips = 0  # steps in a row that changed nothing
        self.losses: list[Loss] = []
        self._objective = Objective(parts.noise, options.snr_gamma)
        self._texts = Texts(parts, keep=not options.text_encoder)
        self._share = recipes.shared(recipe, accelerator.num_processes)

    def step(self) -> Loss:
        """Do the next step. Raises `NotFinite` when too many in a row came to nothing."""
        step = self.done
        rate = optimizers.set_rates(self.optimizer, self.recipe.options, step)
        self.optimizer.zero_grad(set_to_none=True)
        reads = self.reads_text(step)
        totals = torch.zeros(2, dtype=torch.float64)  # of the concept, and of what keeps the old pictures
        for batch in self._batches(step):
            part, seen = self._forward(batch, step, reads)
            (self.scaler.scale(part) if self.scaler else part).backward()
            totals += seen
        totals = self._sum(totals)
        if not reads:
            for parameter in self._text:
                parameter.grad = None
        loss = self._update(totals, rate)
        self.losses.append(loss)
        self.done += 1
        return loss

    def reads_text(self, step: int) -> bool:
        """Whether the text encoder learns in a step."""
        options = self.recipe.options
        return bool(options.text_encoder) and step < options.text_encoder_stop * self.recipe.steps

    def losses_as_json(self) -> list[dict[str, Any]]:
        return [asdict(loss) for loss in self.losses]

    def _batches(self, step: int) -> list[list[Row]]:
        """This process's rows, put together by size."""
        options, first = self.recipe.options, self.accelerator.process_index * self._share
        mine = [
            r for r in self._rows.of_step(step) if first <= r.number % self.recipe.rows < first + self._share
        ]
        by_size: dict[tuple[int, int], list[Row]] = {}
        for row in mine:
            by_size.setdefault(row.size, []).append(row)
        most = (options.batch_size or 1) * (2 if options.prior else 1)
        return [rows[i : i + most] for rows in by_size.values() for i in range(0, len(rows), most)]

    def _forward(self, rows: Sequence[Row], step: int, reads: bool) -> tuple[Tensor, Tensor]:
        """Some rows' share of the step's loss, and the sums that are reported."""
        device, options = self.parts.device, self.recipe.options
        clean = torch.cat([self._latents.draw(row, step) for row in rows])
        noise = torch.cat([self._noise(tuple(clean.shape[1:]), step, row) for row in rows]).to(device)
        times = torch.tensor(
            [self._chance.number("time", step, row.number) % self._objective.times for row in rows],
            device=device,
        )
        noisy = self._objective.noisy(clean, noise, times)
        target = self._objective.target(clean, noise, times)
        sizes = self._sizes(rows) if self.parts.two_encoders else None
        captions = [row.caption for row in rows]
        torch.manual_seed(self._chance.number("dropout", step, rows[0].number))
        with self.accelerator.autocast():
            off = [i for i, row in enumerate(rows) if row.kind == "off"]
            if off:
                with torch.no_grad(), adapters.switched_off(self.parts):
                    text = self.parts.encode([captions[i] for i in off])
                    some = None if sizes is None else sizes[off]
                    target[off] = self.parts.predict(noisy[off], times[off], text, some)
            with contextlib.nullcontext() if reads or not options.text_encoder else torch.no_grad():
                text = self._texts.of(captions)
            predicted = self.parts.predict(noisy, times, text, sizes)
        errors = self._objective.errors(predicted, target) * self._objective.weights(times)
        keeps = torch.tensor([row.kind != "concept" for row in rows], device=device)
        count = self.recipe.rows
        concept, prior = errors[~keeps].sum() / count, errors[keeps].sum() / count
        loss = concept + options.prior_weight * prior
        return loss, torch.stack([concept, prior]).detach().double().cpu()

    def _noise(self, shape: tuple[int, ...], step: int, row: Row) -> Tensor:
        noise = self._chance.normal((1, *shape), "noise", step, row.number)
        if offset := self.recipe.options.offset_noise:
            noise += offset * self._chance.normal((1, shape[0], 1, 1), "offset", step, row.number)
        return noise

    def _sizes(self, rows: Sequence[Row]) -> Tensor:
        """What SDXL is told of a row: original height and width, top and left of the cut, height and width."""
        told = []
        for row in rows:
            width, height = self._latents.original_size(row)
            scale = max(row.size[0] / width, row.size[1] / height)
            left = round(row.x * (round(width * scale) - row.size[0]))
            top = round(row.y * (round(height * scale) - row.size[1]))
            told.append([height, width, max(0, top), max(0, left), row.size[1], row.size[0]])
        return torch.tensor(told, dtype=torch.float32, device=self.parts.device)

    def _sum(self, numbers: Tensor) -> Tensor:
        """A sum over the processes, of the numbers and of all gradients."""
        if self.accelerator.num_processes == 1:
            return numbers
        for parameter in self.learning.values():
            if parameter.grad is not None:
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        return self.accelerator.reduce(numbers.to(self.parts.device), "sum").cpu()

    def _update(self, totals: Tensor, rate: float) -> Loss:
        """Change the weights, unless loss or gradient is not finite."""
        options = self.recipe.options
        number = self.done + 1
        concept, prior = (float(t) for t in totals)
        value = concept + options.prior_weight * prior
        if self.scaler:
            self.scaler.unscale_(self.optimizer)
        norm = float(self.accelerator.clip_grad_norm_(list(self.learning.values()), options.max_grad_norm))
        fine = math.isfinite(value) and math.isfinite(norm)
        if fine:
            if self.scaler:
                self.scaler.step(self.optimizer)
            else:
                self.optimizer.step()
            if self.average:
                self.average.update(self.done)
            self.skips = 0
        if self.scaler:
            # fp16 looks for its scale by overflowing: a few of these steps are its ordinary course.
            self.scaler.update()
            searching = not fine and math.isfinite(value) and self.scaler.get_scale() >= 1
        else:
            searching = False
        if not fine and not searching:
            self.skips += 1
            if self.skips > _PATIENCE:
                raise NotFinite(number, "gradient" if math.isfinite(value) else "loss")
        shown = prior if options.prior else None
        return Loss(number, value, shown, norm, rate) if fine else Loss(number, None, None, None, rate)


def prepare(parts: Parts, recipe: Recipe, chance: Chance) -> dict[str, nn.Parameter]:
    """Make the parts that learn ready; returns what learns by its full name, in an order that is always the same."""
    options = recipe.options
    if options.method == "lora":
        adapters.add(parts, options, chance)
    else:
        for module in [parts.unet, *(parts.encoders.values() if options.text_encoder else ())]:
            module.requires_grad_(True).float()
    if options.gradient_checkpointing:
        parts.unet.enable_gradient_checkpointing()
        for encoder in parts.encoders.values() if options.text_encoder else ():
            # Newer versions of transformers call it by the first name and warn of the other.
            enable = getattr(encoder, "activation_checkpointing_enable", None)
            (enable or encoder.gradient_checkpointing_enable)()
    practise(parts, recipe)
    return {
        f"{part}.{name}": parameter
        for part, module in parts.modules.items()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def practise(parts: Parts, recipe: Recipe) -> None:
    """Training mode for what learns: LoRA dropout and gradient checkpointing act in this mode only."""
    parts.unet.train()
    for encoder in parts.encoders.values():
        encoder.train(bool(recipe.options.text_encoder))
