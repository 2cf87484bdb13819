"""One training from its work folder to its product, from the start or from the newest checkpoint.

training.json        the manifest, and where base and pictures lie
class/               class pictures
checkpoints/         see checkpoint.py
validation/<step>/   validation pictures
product/             the finished model
product.json         facts about it; written last: it commits the training
report.html          the training as a page
"""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from schemas.errors import Rejected
from schemas.training import parse_training_folder
from training import checks, pictures, recipe, report
from training.bases import Base
from training.dreambooth import checkpoint, formats, parts, priors, tracking, validation
from training.dreambooth.chance import Chance
from training.dreambooth.loop import Loop
from training.dreambooth.rows import Latents, Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

    from training.recipe import Recipe

    Say = Callable[[dict[str, Any]], None]

_KINDS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": torch.float32}


def train(folder: Path, say: Say, stop: Callable[[], bool], *, finish: bool = False) -> bool:
    """Train as `training.json` in a folder says; returns whether the product is there.

    Args:
        say: gets each event as JSON; see `training/__main__.py`.
        stop: asked after every step; true: save a checkpoint and return False.
        finish: take no more steps, and make the product of what the newest checkpoint has learned.

    Raises:
        Rejected: the training cannot work as it is written.
        loop.NotFinite, checkpoint.DiskFull: it had to stop; the checkpoints are kept.
    """
    work = parse_training_folder((folder / "training.json").read_bytes())
    options = work.training
    given = options.precision or os.environ.get("ACCELERATE_MIXED_PRECISION")
    if given not in (None, *_PRECISIONS):
        raise Rejected.of_field("precision", f"{given} is not supported; use bf16, fp16 or no")
    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in (
        "1",
        "true",
        "yes",
    )
    options = options.model_copy(update={"precision": given})
    found = pictures.read_folder(Path(work.pictures_folder), options.instance_prompt)
    base = Base.read(Path(work.base_folder), options.base)
    plan = recipe.resolve(options, base, found, device="cuda" if cuda else "cpu", cuda=cuda)
    if work.logging_folder is not None:
        checks.require_tensorboard("logging_folder")
    accelerator = Accelerator(
        mixed_precision=plan.options.precision,
        cpu=not cuda,
        log_with=None if work.logging_folder is None else tracking.NAME,
        project_dir=work.logging_folder,
    )
    if accelerator.distributed_type not in _KINDS:
        raise Rejected(
            "unsupported", f"{accelerator.distributed_type} is not supported; use several GPUs or none"
        )
    main = accelerator.is_main_process
    say = say if main else lambda event: None
    if main and work.logging_folder is not None:
        say = tracking.tracked(say, accelerator, folder)
    say({"event": "plan", "plan": plan.plan(), "lines": plan.lines()})
    if main:
        _check_disk(folder, plan)
    if _is_done(folder, plan):
        say({"event": "done", "step": plan.steps, "product": "product"})
        return True

    chance = Chance(plan.options.seed)
    small = plan.options.method == "lora" and accelerator.device.type == "cuda"
    dtype = _PRECISIONS[plan.options.precision or "no"] if small else torch.float32
    loaded = parts.load(base, accelerator.device, dtype)
    class_pictures: list[tuple[str, Image.Image]] = []
    prompts: list[str] = []
    class_hash = ""
    if plan.options.prior == "pictures":
        if main:
            priors.make(folder / "class", plan, loaded, chance, accelerator.autocast, _counts(say), stop)
        accelerator.wait_for_everyone()
        if _agreed(accelerator, stop()):
            say({"event": "stopped", "step": 0})
            return False
        class_pictures, prompts, class_hash = priors.read(folder / "class", plan)
    latents = Latents(loaded, chance, [(p.name, p.image) for p in found.pictures], class_pictures)
    loop = Loop(plan, loaded, Rows(plan, chance, prompts), latents, chance, accelerator)
    latest = checkpoint.newest(folder / "checkpoints")
    if latest is not None:
        for warning in checkpoint.restore(latest, loop, class_hash):
            say({"event": "warning", "message": warning})
    say({"event": "start", "step": loop.done, "steps": plan.steps, "processes": accelerator.num_processes})
    return _go_on(folder, loop, class_hash, say, stop, finish)


def _go_on(
    folder: Path, loop: Loop, class_hash: str, say: Say, stop: Callable[[], bool], finish: bool
) -> bool:
    """Every step that is left, then the product."""
    options, main = loop.recipe.options, loop.accelerator.is_main_process
    pictures_at = folder / "validation"

    def save() -> None:
        if main:
            where = checkpoint.save(folder / "checkpoints", loop, options.keep, class_hash)
            say({"event": "checkpoint", "step": loop.done, "folder": str(where.relative_to(folder))})
        loop.accelerator.wait_for_everyone()

    def validate() -> None:
        if main and options.validate_prompts:
            files = [str(f.relative_to(folder)) for f in validation.validate(pictures_at, loop)]
            say({"event": "validation", "step": loop.done, "files": files})
        loop.accelerator.wait_for_everyone()

    if finish and loop.done == 0:
        raise Rejected("unsupported", "nothing is learned yet: there is no checkpoint to make a model of")
    if loop.done == 0 or finish:
        validate()
    while loop.done < loop.recipe.steps and not finish:
        began = time.monotonic()
        loss = loop.step()
        seconds = time.monotonic() - began
        say({"event": "step", "step": loss.step, "steps": loop.recipe.steps, "loss": loss.loss,
             "prior": loss.prior, "norm": loss.norm, "rate": loss.rate, "seconds": round(seconds, 4)})  # fmt: skip
        last = loop.done == loop.recipe.steps
        stopping = _agreed(loop.accelerator, stop()) and not last
        if last or stopping or loop.done % options.checkpoint_every == 0:
            if loop.skips and not stopping and not last:
                continue  # no checkpoint in the middle of a failure: the one before is good
            save()
        if stopping:
            say({"event": "stopped", "step": loop.done})
            return False
        if last or loop.done % (options.validate_every or 1) == 0:
            validate()
    if main:
        _finish(folder, loop, say)
    loop.accelerator.wait_for_everyone()
    return True


def _finish(folder: Path, loop: Loop, say: Say) -> None:
    """Write product and report, then product.json."""
    part, product = folder / "product.part", folder / "product"
    (folder / "product.json").unlink(missing_ok=True)
    for old in (part, product):
        shutil.rmtree(old, ignore_errors=True)
    with loop.average.switched_in() if loop.average else nullcontext():
        formats.save(part, loop.recipe, loop.parts)
    part.rename(product)
    (folder / "loss.jsonl").write_text("".join(json.dumps(x) + "\n" for x in loop.losses_as_json()))
    facts = _facts(folder, loop)
    (folder / "report.html").write_bytes(report.page(facts, loop.losses_as_json(), folder / "validation"))
    text = json.dumps(facts, indent=1, ensure_ascii=False, sort_keys=True)
    (folder / "product.json.part").write_text(text + "\n")
    (folder / "product.json.part").rename(folder / "product.json")
    say({"event": "done", "step": loop.done, "product": "product"})


def _facts(folder: Path, loop: Loop) -> dict[str, Any]:
    """What a model card needs to know."""
    plan, base = loop.recipe, loop.recipe.base
    product = folder / "product"
    files = {str(f.relative_to(product)): f for f in sorted(product.rglob("*")) if f.is_file()}
    losses = [loss.loss for loss in loop.losses if loss.loss is not None]
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "name": plan.options.name,
        "kind": plan.options.method,
        "base": {"name": base.name, "sha256": base.sha256, "config_sha256": base.config_sha256},
        "family": base.family,
        "prediction_type": base.prediction_type,
        "resolution": plan.options.resolution,
        "trigger_words": list(plan.triggers),
        "instance_prompt": plan.options.instance_prompt,
        "weight": plan.options.weight if plan.options.method == "lora" else None,
        "steps": loop.done,
        "loss": sum(tail) / len(tail) if tail else None,
        "options": plan.options.model_dump(mode="json", exclude={"pictures"}),
        "recipe_sha256": plan.sha256(),
        "pictures": [{"name": v.name, "sha256": v.sha256, "caption": v.caption} for v in plan.views],
        "versions": {n: version(n) for n in ("torch", "diffusers", "transformers", "peft", "accelerate")},
        "drift": validation.drift(folder / "validation", loop),
        "files": {
            name: {"size": file.stat().st_size, "sha256": checkpoint.sha256(file)}
            for name, file in files.items()
        },
    }


def _is_done(folder: Path, plan: Recipe) -> bool:
    try:
        return bool(json.loads((folder / "product.json").read_text())["recipe_sha256"] == plan.sha256())
    except (OSError, ValueError, KeyError):
        return False


def _check_disk(folder: Path, plan: Recipe) -> None:
    """Refuse to begin where two checkpoints and the product would not fit."""
    need, free = checks.disk_bytes(plan.options, plan.base), shutil.disk_usage(folder).free
    if free < need:
        raise checkpoint.DiskFull(
            f"{folder} has {free >> 20} MiB free, and the training needs about {need >> 20} MiB for "
            f"{plan.options.keep + 1} checkpoints and the product; make room, or lower keep"
        )


def _counts(say: Say) -> Callable[[int, int, list[str]], None]:
    return lambda done, count, files: say(
        {
            "event": "class pictures",
            "done": done,
            "count": count,
            "files": [f"class/{name}" for name in files],
        }
    )


def _agreed(accelerator: Accelerator, stopping: bool) -> bool:
    """Whether any process was told to stop; all of them learn it at the same step."""
    if accelerator.num_processes == 1:
        return stopping
    flag = torch.tensor([float(stopping)], device=accelerator.device)
    return float(accelerator.reduce(flag, "sum")) > 0
