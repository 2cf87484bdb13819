"""A training with nothing left open: what will happen, what it needs, and what is refused before the first step.

No torch here: the plan is printed on machines that only ask for it.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from schemas.errors import Rejected
from training import buckets, checks, defaults, tokens

if TYPE_CHECKING:
    from schemas.training import Training
    from training.bases import Base
    from training.pictures import PictureSet

#: Options that say what is kept and shown; they may differ when a training goes on.
KEPT_AND_SHOWN = frozenset(
    {
        "checkpoint_every",
        "keep",
        "validate",
        "validate_every",
        "weight",
        "name",
        "pictures",
        "archive",
        "resume_from",
    }
)
_TEXTS = {"name", "base", "instance_prompt", "pictures", "archive", "class_prompts", "validate_prompts"}
_LENGTH = frozenset({"steps", "epochs", "warmup_steps"})  # a longer training may go on from a shorter one


@dataclass(frozen=True, slots=True)
class View:
    """One picture as the model will see it."""

    name: str
    sha256: str
    caption: str
    width: int  # pixels of the file's picture, upright
    height: int
    size: tuple[int, int]  # width and height of the cut that is learned, pixels
    cut: float  # share of the picture outside a centred cut
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """The plan of a training."""

    options: Training  # without open defaults
    base: Base
    views: tuple[View, ...]
    skipped: tuple[tuple[str, str], ...]  # name and reason
    triggers: tuple[str, ...]  # words of the prompt that are the concept's own
    warnings: tuple[str, ...]
    device: str  # cuda, mps or cpu

    @property
    def rows(self) -> int:
        """Pictures of the concept in one optimizer step, over all processes."""
        return _positive(self.options.batch_size) * self.options.accumulation

    @property
    def steps(self) -> int:
        return _positive(self.options.steps)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a training goes on: not its length, nor what is kept and shown."""
        options = self.options.model_dump(mode="json")
        return {
            "options": {k: v for k, v in options.items() if k not in KEPT_AND_SHOWN | _LENGTH},
            "base": self.base.sha256,
            "pictures": [[v.name, v.sha256, v.caption] for v in self.views],
        }

    def sha256(self) -> str:
        """A hash of the whole plan: `identity` and the length."""
        text = json.dumps(
            [self.identity(), self.steps, self.options.warmup_steps], sort_keys=True, ensure_ascii=False
        )
        return hashlib.sha256(text.encode()).hexdigest()

    def plan(self) -> dict[str, Any]:
        """The plan as JSON."""
        prompts = dict.fromkeys([self.options.instance_prompt, *(v.caption for v in self.views)])
        return {
            "base": {"name": self.base.name, "family": self.base.family, "sha256": self.base.sha256,
                     "prediction_type": self.base.prediction_type},
            "options": self.options.model_dump(mode="json", exclude={"pictures"}),
            "pictures": [
                {"name": v.name, "size": [v.width, v.height], "cut_to": list(v.size),
                 "outside_the_cut": round(v.cut, 3), "caption": v.caption, "notes": list(v.notes)}
                for v in self.views
            ],
            "skipped": [{"name": name, "why": why} for name, why in self.skipped],
            "trigger_words": list(self.triggers),
            "tokens": {p: tokens.pieces(self.base.folder / "tokenizer", p) for p in list(prompts)[:20]},
            "rows_per_step": self.rows,
            "epochs": round(self.steps * self.rows / len(self.views), 2),
            "memory_gib": round(checks.memory_bytes(self.options, self.base, self.device) / 2**30, 2),
            "disk_gib": round(checks.disk_bytes(self.options, self.base) / 2**30, 2),
            "warnings": list(self.warnings),
            "sha256": self.sha256(),
        }  # fmt: skip

    def _settings(self) -> dict[str, Any]:
        """Every option by name, but for texts, which other lines have; what is left out was not given."""
        shown = self.options.model_dump(mode="json", exclude=_TEXTS, exclude_none=True)
        words = {True: "yes", False: "no"}
        return {name: words[v] if isinstance(v, bool) else v for name, v in shown.items()}

    def lines(self) -> list[str]:
        """The plan for people, a fact a line."""
        options, base = self.options, self.base
        cuts = [
            f"  {v.name}: {v.width} x {v.height}, cut to {v.size[0]} x {v.size[1]}"
            + (f" ({v.cut:.0%} falls off)" if v.cut >= 0.01 else "")
            + f", {v.caption!r}"
            + "".join(f"; {note}" for note in v.notes)
            for v in self.views
        ]
        counts = ", ".join(
            f"`{word}` = {n} {'token' if n == 1 else 'tokens'}"
            for word in self.triggers
            if (n := len(tokens.pieces(base.folder / "tokenizer", word)))
        )
        learns = "all weights of the UNet" if options.method == "full" else (
            f"a {'DoRA' if options.dora else 'LoRA'} of rank {options.rank}, alpha {options.alpha:g}, on "
            f"{options.targets} layers of the UNet"
        )  # fmt: skip
        prior = {
            None: "nothing keeps the old pictures (give class prompts)",
            "pictures": f"{options.class_pictures} pictures by the base from {len(options.class_prompts)} prompts",
            "adapter_off": "the base's own predictions",
        }[options.prior]
        return [
            f"{options.name}: {base.name} ({base.family}, {base.prediction_type}) learns {learns}"
            + (" and the text encoder" if options.text_encoder else ""),
            f"{len(self.views)} pictures:",
            *cuts,
            *(f"  left out: {name}: {why}" for name, why in self.skipped),
            f"prompt {options.instance_prompt!r}; its own words: {counts}",
            f"against forgetting: {prior}",
            f"{self.steps} steps of {self.rows} pictures = "
            f"{self.steps * self.rows / len(self.views):.1f} times each picture; {options.optimizer}, rate "
            f"{options.learning_rate:g}, {options.schedule}"
            + (f", {options.warmup_steps} steps of warm-up" if options.warmup_steps else "")
            + (f", averaged with decay {options.ema:g}" if options.ema else ""),
            f"about {checks.memory_bytes(options, base, self.device) / 2**30:.1f} GiB of memory on {self.device}, "
            f"{checks.disk_bytes(options, base) / 2**30:.1f} GiB of disk",
            "all settings: " + ", ".join(f"{name} {value}" for name, value in self._settings().items()),
            *(f"warning: {text}" for text in self.warnings),
        ]


def resolve(training: Training, base: Base, pictures: PictureSet, *, device: str, cuda: bool) -> Recipe:
    """Fill in every default, and refuse what cannot work.

    Args:
        device: where it will be computed, as the plan calls it.
        cuda: whether that is a CUDA device.

    Raises:
        Rejected: with the field, the fault and what to do.
    """
    checks.options_as_given(training, base)
    fields = defaults.of(base.kind, {f: getattr(training, f) for f in type(training).model_fields})
    side = checks.resolution(training, base)
    fields["resolution"] = side
    if fields["precision"] is None:
        fields["precision"] = "bf16" if cuda else "no"
    if training.epochs is not None:
        rows = fields["batch_size"] * fields["accumulation"]
        steps = math.ceil(training.epochs * len(pictures.pictures) / rows)
        fields["steps"] = steps
        if training.warmup_steps is None:
            fields["warmup_steps"] = min(fields["warmup_steps"], steps // 10)
    if fields["validate_prompts"] is None:
        own = dict.fromkeys([training.instance_prompt, *(p.caption for p in pictures.pictures)])
        fields["validate_prompts"] = (*list(own)[:2], *training.class_prompts[:2])
    if fields["validate_every"] is None:
        fields["validate_every"] = max(1, fields["steps"] // 5)
    options = training.model_copy(update=fields)
    checks.options_together(options, cuda=cuda)
    sizes = buckets.sizes(side, base.multiple) if options.buckets else ((side, side),)
    views = []
    for picture in pictures.pictures:
        size = buckets.nearest(picture.image.size, sizes)
        scale = max(size[0] / picture.image.width, size[1] / picture.image.height)
        cut = 1 - size[0] * size[1] / (picture.image.width * picture.image.height * scale * scale)
        notes = picture.notes if scale <= 1.01 else (*picture.notes, f"enlarged {scale:.1f} times")
        views.append(
            View(picture.name, picture.sha256, picture.caption, *picture.size, size, max(0.0, cut), notes)
        )
    triggers = checks.triggers(options)
    warnings = checks.pictures_and_prompts(options, base, views, triggers)
    return Recipe(
        options=options,
        base=base,
        views=tuple(views),
        skipped=tuple((s.name, s.why) for s in pictures.skipped),
        triggers=triggers,
        warnings=tuple(warnings),
        device=device,
    )


def shared(recipe: Recipe, processes: int) -> int:
    """Rows of a step for each process. Raises `Rejected` where they cannot be shared evenly."""
    if recipe.rows % processes:
        raise Rejected.of_field(
            "batch_size",
            f"x accumulation is {recipe.rows} rows a step, which {processes} processes cannot share evenly; "
            f"make it a multiple of {processes}",
        )
    return recipe.rows // processes


def _positive(number: int | None) -> int:
    assert number is not None  # `resolve` has filled it in
    return number
