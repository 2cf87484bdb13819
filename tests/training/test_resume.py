"""A training that was killed ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.trainings import learned, prepare, train, train_apart

if TYPE_CHECKING:
    from pathlib import Path

STEPS, KILLED_AT, EVERY = 7, 5, 3  # of steps of 2 or 3 rows, and epochs of 5 pictures


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_and_resumed_equals_never_stopped(
    method: str, accumulation: int, ema: float, tiny_folder: Path, pictures: Path, tmp_path: Path
):
    """kill -9 two steps after a checkpoint, another process: weights, moments, average and losses are bit-equal."""
    options = {
        "method": method,
        "accumulation": accumulation,
        "batch_size": 2 if accumulation == 1 else 1,
        "ema": ema,
        "steps": STEPS,
        "checkpoint_every": EVERY,
        "schedule": "cosine",
        "warmup_steps": 2,
        "crop": "random",
        "flip": True,
        "caption_dropout": 0.2,
        "text_encoder": True,
        "resolution": 32,
        **({"lora_dropout": 0.1, "rank": 2} if method == "lora" else {}),
    }
    straight, killed = (
        prepare(tmp_path / n, tiny_folder, pictures, **options) for n in ("straight", "killed")
    )
    train_apart(straight)
    train_apart(killed, kill_at=KILLED_AT)
    assert [f.name for f in (killed / "checkpoints").iterdir()] == [f"{EVERY:06d}"]
    train_apart(killed)

    expected = learned(straight)
    assert ("average.safetensors" in expected) == bool(ema)
    assert {"weights.safetensors", "optimizer.safetensors", "losses.json"} <= expected.keys()
    assert learned(killed) == expected
    assert (killed / "loss.jsonl").read_bytes() == (straight / "loss.jsonl").read_bytes()
    memory = json.loads((straight / "memory.json").read_text())
    assert memory["peak_gib"] / 2 < memory["planned_gib"] < 2 * memory["peak_gib"]
    products = [json.loads((f / "product.json").read_text())["files"] for f in (straight, killed)]
    assert products[0] == products[1]


def test_the_seed_decides(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """Another seed learns something else: the equality above is not that of trainings that do nothing."""
    options = {"steps": 2, "resolution": 32, "batch_size": 2, "rank": 2}
    folders = [prepare(tmp_path / str(s), tiny_folder, pictures, seed=s, **options) for s in (1, 2)]
    for folder in folders:
        train(folder)
    assert learned(folders[0])["weights.safetensors"] != learned(folders[1])["weights.safetensors"]


def test_a_damaged_checkpoint_is_passed_over(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """The newest complete one wins; the end is the same."""
    options = {
        "resolution": 32,
        "batch_size": 2,
        "rank": 2,
        "checkpoint_every": 2,
        "schedule": "constant",
        "keep": 3,
    }
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=4, **options)
    train(folder)
    whole = learned(folder)
    (folder / "product.json").unlink()
    damaged = folder / "checkpoints" / "000004" / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    events = train(folder)
    assert [e["step"] for e in events if e["event"] == "start"] == [2]
    assert learned(folder) == whole


def test_other_options_are_refused_and_more_steps_are_not(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """A checkpoint goes on only as the training that it is of."""
    from schemas.errors import Rejected

    options = {"resolution": 32, "batch_size": 2, "rank": 2, "schedule": "constant", "warmup_steps": 0}
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=2, **options)
    train(folder)
    with pytest.raises(Rejected) as refused:
        train(prepare(folder, tiny_folder, pictures, steps=3, **options, learning_rate=1e-5))
    assert refused.value.field == "learning_rate"
    events = train(prepare(folder, tiny_folder, pictures, steps=3, **options))
    assert [e["step"] for e in events if e["event"] == "step"] == [3]
    assert any("planned were 2 steps" in e.get("message", "") for e in events)
    straight = prepare(tmp_path / "straight", tiny_folder, pictures, steps=3, **options)
    train(straight)
    assert learned(folder) == learned(straight)


def test_sigterm_saves_and_the_same_command_goes_on(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """`python -m training` ends with 0 and a last line, and its second run finishes what the first began."""
    options = {"resolution": 32, "batch_size": 2, "rank": 2, "checkpoint_every": 100_000}
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=100_000, **options)
    command = [sys.executable, "-m", "training", "--work", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        for line in process.stdout or ():
            event = json.loads(line)
            if event["event"] == "step" and event["step"] == 3:
                process.send_signal(signal.SIGTERM)
        assert process.wait(600) == 0
    assert event["event"] == "stopped"
    assert (folder / "checkpoints" / f"{event['step']:06d}" / "checkpoint.json").is_file()
    assert not (folder / "product.json").exists()
    events = train(prepare(folder, tiny_folder, pictures, steps=event["step"] + 1, **options))
    assert [e["step"] for e in events if e["event"] in ("start", "done")] == [
        event["step"],
        event["step"] + 1,
    ]
