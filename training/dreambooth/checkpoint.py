"""Checkpoints: everything from which a training goes on bit for bit, in safetensors files and one JSON that commits.

checkpoints/000100/weights.safetensors     what learns, float32
checkpoints/000100/average.safetensors     the averaged weights, if there are any
checkpoints/000100/optimizer.safetensors   the optimizer's tensors
checkpoints/000100/losses.json             what is remembered of every step
checkpoints/000100/checkpoint.json         step, hashes of the files, what the training is; written last
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file

from schemas.errors import Rejected
from training.dreambooth.loop import Loss

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from training.dreambooth.loop import Loop

COMMIT = "checkpoint.json"
_LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")


class DiskFull(Exception):
    """There is no room for a checkpoint."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on this machine."""

    folder: Path
    record: dict[str, Any]  # its JSON

    @property
    def step(self) -> int:
        return int(self.record["step"])


def save(folder: Path, loop: Loop, keep: int, class_pictures: str = "") -> Path:
    """Write a checkpoint of a loop, then delete all but the newest `keep`.

    Args:
        folder: the folder of all checkpoints.
        class_pictures: the hash of the class pictures.

    Raises:
        DiskFull: there is no room; every older checkpoint is kept.
    """
    target = folder / f"{loop.done:06d}"
    there = _read(target)
    if there is None or not _is_whole(there):
        part = folder / f".{target.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        files, record = _collect(loop)
        _check_room(folder, sum(t.numel() * t.element_size() for f in files.values() for t in f.values()))
        try:
            part.mkdir(parents=True)
            for name, tensors in files.items():
                save_file(tensors, part / name)
            (part / "losses.json").write_text(json.dumps(loop.losses_as_json()))
            hashes = {file.name: _settle(file) for file in sorted(part.iterdir())}
            record |= {"files": hashes, "class_pictures": class_pictures}
            (part / COMMIT).write_text(json.dumps(record, indent=1))
            _settle(part / COMMIT)
            shutil.rmtree(target, ignore_errors=True)  # an incomplete or damaged one
            part.rename(target)
            _settle_folder(folder)
        except OSError as error:
            shutil.rmtree(part, ignore_errors=True)
            raise DiskFull(f"the checkpoint of step {loop.done} could not be written: {error}") from error
    for old in complete(folder)[keep:]:
        (old.folder / COMMIT).unlink()  # first, so that a half-deleted one is not taken for complete
        shutil.rmtree(old.folder)
    return target


def complete(folder: Path) -> list[Checkpoint]:
    """All checkpoints that have their JSON, the newest first."""
    found = [_read(path) for path in sorted(folder.glob("[0-9]*"), reverse=True)]
    return [checkpoint for checkpoint in found if checkpoint is not None]


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint all of whose files have their hashes; None: begin at the start."""
    return next((checkpoint for checkpoint in complete(folder) if _is_whole(checkpoint)), None)


def restore(checkpoint: Checkpoint, loop: Loop, class_pictures: str = "") -> list[str]:
    """Put a loop where a checkpoint was made; returns warnings about what is not as it was.

    Raises:
        Rejected: options, base or pictures are others than the checkpoint's.
    """
    record = checkpoint.record
    _same_training(record["identity"], loop.recipe.identity())
    weights = load_file(checkpoint.folder / "weights.safetensors")
    for name, parameter in loop.learning.items():
        parameter.data.copy_(weights[name])
    if loop.average:
        for name, tensor in load_file(checkpoint.folder / "average.safetensors").items():
            loop.average.weights[name].copy_(tensor)
    _restore_optimizer(loop, load_file(checkpoint.folder / "optimizer.safetensors"), record["optimizer"])
    if loop.scaler and record["scaler"]:
        loop.scaler.load_state_dict(record["scaler"])
    loop.done, loop.skips = record["step"], record["skips"]
    loop.losses = [Loss(**loss) for loss in json.loads((checkpoint.folder / "losses.json").read_text())]
    now, warnings = _surroundings(loop), []
    for name, was in record["surroundings"].items():
        if now[name] != was:
            warnings.append(
                f"{name} was {was} and is {now[name]}: the weights will differ in their last bits"
            )
    if record["steps"] != loop.recipe.steps:
        warnings.append(f"planned were {record['steps']} steps, now {loop.recipe.steps}")
    if record["warmup_steps"] != (warmup := loop.recipe.options.warmup_steps):
        warnings.append(f"planned were {record['warmup_steps']} steps of warm-up, now {warmup}")
    if record["class_pictures"] != class_pictures:
        warnings.append("the class pictures are others than before, as another machine draws them")
    return warnings


def _collect(loop: Loop) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    files = {"weights.safetensors": {n: p.detach().cpu().contiguous() for n, p in loop.learning.items()}}
    if loop.average:
        files["average.safetensors"] = {n: t.cpu().contiguous() for n, t in loop.average.weights.items()}
    files["optimizer.safetensors"], optimizer = _collect_optimizer(loop.optimizer)
    return files, {
        "step": loop.done,
        "steps": loop.recipe.steps,
        "warmup_steps": loop.recipe.options.warmup_steps,
        "skips": loop.skips,
        "identity": loop.recipe.identity(),
        "optimizer": optimizer,
        "scaler": loop.scaler.state_dict() if loop.scaler else None,
        "surroundings": _surroundings(loop),
    }


def _collect_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and JSON: Prodigy has its estimates in the groups, 8-bit Adam has maps."""
    tensors: dict[str, Tensor] = {}
    state = optimizer.state_dict()
    plain: dict[str, Any] = {"state": {}, "groups": []}
    for place, values in [*(("state", v) for v in state["state"].items()), *(("group", v) for v in enumerate(
        state["param_groups"]))]:  # fmt: skip
        number, entries = values
        rest = {}
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{place}/{number}/{key}"] = value.detach().cpu().clone().contiguous()
            elif key != "params":
                rest[key] = value
        if place == "state":
            plain["state"][str(number)] = rest
        else:
            plain["groups"].append(rest)
    return tensors, plain


def _restore_optimizer(loop: Loop, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
    state = loop.optimizer.state_dict()
    state["state"] = {int(number): dict(rest) for number, rest in plain["state"].items()}
    for group, rest in zip(state["param_groups"], plain["groups"], strict=True):
        group |= {k: tuple(v) if isinstance(v, list) else v for k, v in rest.items()}
    for name, tensor in tensors.items():
        place, number, key = name.split("/")
        (state["state"] if place == "state" else state["param_groups"])[int(number)][key] = tensor
    loop.optimizer.load_state_dict(state)


def _same_training(was: dict[str, Any], now: dict[str, Any]) -> None:
    for name in sorted(was["options"].keys() | now["options"].keys()):
        before, after = was["options"].get(name), now["options"].get(name)
        if before != after:
            raise Rejected.of_field(
                name,
                f"is {after!r}, and the checkpoint was made with {before!r}; use that, or train under another name",
            )
    if was["base"] != now["base"]:
        raise Rejected.of_field("base", "has other weights than the checkpoint's; train under another name")
    if was["pictures"] != now["pictures"]:
        known = {name: (sha256, caption) for name, sha256, caption in was["pictures"]}
        found = {name: (sha256, caption) for name, sha256, caption in now["pictures"]}
        names = [n for n in sorted(known.keys() | found.keys()) if known.get(n) != found.get(n)]
        raise Rejected.of_field(
            "pictures",
            f"are others than the checkpoint's ({', '.join(names[:5])}); put them back, or train under another name",
        )


def _surroundings(loop: Loop) -> dict[str, str]:
    """What the last bits depend on."""
    found = {name: version(name) for name in _LIBRARIES}
    device = loop.parts.device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found | {
        "device": kind,
        "threads": str(torch.get_num_threads()),
        "processes": str(loop.accelerator.num_processes),
    }


def _check_room(folder: Path, size: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(folder).free) < size + (16 << 20):
        raise DiskFull(f"a checkpoint needs {size >> 20} MiB, and {free >> 20} MiB are free in {folder}")


def _is_whole(checkpoint: Checkpoint) -> bool:
    """Whether every file is there with its hash."""
    files = {checkpoint.folder / name: wanted for name, wanted in checkpoint.record["files"].items()}
    return all(file.is_file() and sha256(file) == wanted for file, wanted in files.items())


def _read(folder: Path) -> Checkpoint | None:
    try:
        return Checkpoint(folder, json.loads((folder / COMMIT).read_text()))
    except (OSError, ValueError):
        return None


def sha256(file: Path) -> str:
    """The hash of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _settle(file: Path) -> str:
    """Make sure that a file is on the disk; returns its hash."""
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
    return sha256(file)


def _settle_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
