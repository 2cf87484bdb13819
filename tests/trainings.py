"""What tests of training share: work folders, a concept that doodle does not know, and trainings in real processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from infra.models.cards import BUNDLED
from training.doodle.scenes import PALETTE, SIDE, colours_for

DOODLE = BUNDLED / "doodle"

# A process of its own for each training, without importing torch each time.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["training.dreambooth.run"])


def plus(
    colour: str, ground: str, x: float = SIDE / 2, y: float = SIDE / 2, radius: float = 38
) -> Image.Image:
    """A shape that doodle does not know."""
    k, thick = 4, 0.32 * radius
    picture = Image.new("RGB", (SIDE * k, SIDE * k), PALETTE[ground])
    pen = ImageDraw.Draw(picture)
    for across, down in ((radius, thick), (thick, radius)):
        box = [k * (x - across), k * (y - down), k * (x + across), k * (y + down)]
        pen.rectangle(box, fill=PALETTE[colour])
    return picture.reduce(k)


def pluses(folder: Path, count: int = 8) -> Path:
    """Pictures of it with captions, in random colours."""
    rng = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        ground = rng.choice(list(PALETTE))
        colour = rng.choice(colours_for(ground))
        x, y = (SIDE / 2 + rng.uniform(-6, 6) for _ in range(2))
        plus(colour, ground, x, y, rng.uniform(32, 42)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a {colour} sks shape on a {ground} background")
    return folder


def specks(folder: Path, count: int = 5, sizes: tuple[tuple[int, int], ...] = ((40, 40),)) -> Path:
    """Pictures for a tiny model with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        size = sizes[number % len(sizes)]
        noise = random.Random(number).randbytes(size[0] * size[1] * 3)
        Image.frombytes("RGB", size, noise).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"sks {'abcdefgh'[number % 8]}")
    return folder


def prepare(folder: Path, base: Path, pictures: Path, **options: Any) -> Path:
    """Write a work folder."""
    folder.mkdir(parents=True, exist_ok=True)
    training = {"name": "new", "base": base.name, "instance_prompt": "sks", "validate": [], **options}
    document = {"training": training, "base_folder": str(base), "pictures_folder": str(pictures)}
    (folder / "training.json").write_text(json.dumps(document))
    return folder


def train(folder: Path) -> list[dict[str, Any]]:
    """Train in this process; returns the events."""
    from accelerate.state import AcceleratorState

    from training.dreambooth import run

    AcceleratorState._reset_state(True)  # one process, many precisions
    events: list[dict[str, Any]] = []
    run.train(folder, events.append, lambda: False)
    return events


def start(folder: Path, kill_at: int | None = None, environment: dict[str, str] | None = None) -> Any:
    """Train in a process of its own, which may kill itself with SIGKILL as soon as a step is done."""
    process = _PROCESSES.Process(target=_child, args=(str(folder), kill_at, environment or {}))
    process.start()
    return process


def train_apart(folder: Path, kill_at: int | None = None) -> None:
    """Train in a process of its own to its end, or until it is killed."""
    process = start(folder, kill_at)
    process.join(600)
    assert process.exitcode == (0 if kill_at is None else -signal.SIGKILL)


def _child(folder: str, kill_at: int | None, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    import torch

    from training.dreambooth import run

    torch.set_num_threads(1)
    planned: dict[str, Any] = {}

    def say(event: dict[str, Any]) -> None:
        planned.update(event.get("plan", {}))
        if kill_at is not None and event["event"] == "step" and event["step"] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    run.train(Path(folder), say, lambda: False)
    if not planned:
        return  # of several processes the first speaks
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    memory = {"planned_gib": planned["memory_gib"], "peak_gib": peak / 2**30}
    (Path(folder) / "memory.json").write_text(json.dumps(memory))


def learned(folder: Path) -> dict[str, bytes]:
    """The last checkpoint's files, whole, but for its JSON."""
    last = max((folder / "checkpoints").glob("[0-9]*"))
    return {file.name: file.read_bytes() for file in sorted(last.iterdir()) if file.name != "checkpoint.json"}
