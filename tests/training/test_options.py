"""Every pair of options trains for two steps, on a UNet that predicts epsilon, one that predicts v, and SDXL."""

from __future__ import annotations

import itertools
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainings import learned, prepare, specks, train

COMMON: dict[str, list[Any]] = {
    "base": ["epsilon", "v", "xl"],
    "prior": [None, "pictures", "adapter_off"],
    "text_encoder": [True, False],
    "accumulation": [1, 2],
    "buckets": [False, True],
    "crop": ["center", "random"],
    "flip": [False, True],
    "caption_dropout": [0.0, 0.5],
    "snr_gamma": [None, 5.0],
    "offset_noise": [0.0, 0.1],
    "ema": [0.0, 0.9],
    "schedule": ["constant", "constant_with_warmup", "linear", "cosine"],
    "optimizer": ["adamw", "adafactor"],
    "gradient_checkpointing": [False, True],
    "precision": ["no", "bf16"],
    "text_encoder_stop": [1.0, 0.5],
    "method": ["full", "lora"],
    "targets": [None, "attention", "linear", "all"],
    "dora": [False, True],
    "lora_dropout": [0.0, 0.1],
}


def pairs() -> list[dict[str, Any]]:
    """Few runs that contain every pair of values which may stand together."""
    rng = random.Random(0)
    names = list(COMMON)
    left = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(COMMON[a]))
        for j in range(len(COMMON[b]))
    }
    left = {
        pair for pair in left if _fits({pair[0]: COMMON[pair[0]][pair[1]], pair[2]: COMMON[pair[2]][pair[3]]})
    }
    runs = []
    while left:
        best: tuple[int, dict[str, int]] = (0, {})
        for _ in range(60):
            seed = rng.choice(sorted(left))
            run = {name: rng.randrange(len(COMMON[name])) for name in names} | {
                seed[0]: seed[1],
                seed[2]: seed[3],
            }
            run = _mended(run, {seed[0], seed[2]})
            found = sum((a, run[a], b, run[b]) in left for a, b in itertools.combinations(names, 2))
            if found > best[0] and (seed[0], run[seed[0]], seed[2], run[seed[2]]) in left:
                best = (found, run)
        run = best[1]
        left -= {(a, run[a], b, run[b]) for a, b in itertools.combinations(names, 2)}
        runs.append({name: COMMON[name][i] for name, i in run.items()})
    return runs


def _fits(values: dict[str, Any]) -> bool:
    lora_only = [
        values.get("prior") == "adapter_off",
        values.get("targets"),
        values.get("dora"),
        values.get("lora_dropout"),
    ]
    if values.get("method") == "full" and any(lora_only):
        return False
    return not (values.get("text_encoder") is False and values.get("text_encoder_stop") == 0.5)


def _mended(run: dict[str, int], kept: set[str]) -> dict[str, int]:
    """Change values outside `kept` until the run is allowed."""
    for name in ("prior", "targets", "dora", "lora_dropout", "text_encoder_stop", "method", "text_encoder"):
        if _fits({n: COMMON[n][i] for n, i in run.items()}):
            return run
        if name not in kept:
            run = {**run, name: 1 if name == "method" else 0}
    return run


@pytest.fixture(scope="session")
def bases(tiny_folder: Path, sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("models") / "tiny-v")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "prediction_type": "v_prediction"}))
    return {"epsilon": tiny_folder, "v": folder, "xl": sdxl_folder}


def test_every_pair_of_options_trains_two_steps(bases: dict[str, Path], tmp_path: Path):
    """Losses are numbers, and something is learned; each failure names its run."""
    from training.dreambooth import checkpoint  # noqa: F401 - imported once, outside the runs

    uneven = specks(tmp_path / "uneven", 5, ((40, 40), (64, 32), (32, 64)))
    runs, failures = pairs(), []
    assert 12 < len(runs) < 60
    for number, run in enumerate(runs):
        options = {k: v for k, v in run.items() if k != "base"}
        if options["prior"]:
            options |= {"class_prompts": ["a", "b"], "class_pictures": 2}
        if options["method"] == "lora":
            options["rank"] = 2
        else:
            options = {k: v for k, v in options.items() if k not in ("targets", "dora", "lora_dropout")}
        folder = prepare(
            tmp_path / str(number),
            bases[run["base"]],
            uneven,
            steps=2,
            batch_size=2,
            resolution=32,
            **options,
        )
        try:
            events = train(folder)
            losses = [event["loss"] for event in events if event["event"] == "step"]
            assert len(losses) == 2
            assert all(loss is not None and loss > 0 for loss in losses)
            assert (folder / "product.json").is_file()
            shutil.rmtree(folder)
        except Exception as error:
            failures.append(f"{run}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


def test_the_rate_is_a_function_of_the_step():
    """Warm-up rises to 1; linear and cosine fall to 0 after the last step."""
    from training.dreambooth.optimizers import factor

    assert [factor("constant_with_warmup", s, 10, 4) for s in (0, 3, 4, 9)] == [0.25, 1, 1, 1]
    assert [factor("linear", s, 4, 0) for s in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert [round(factor("cosine", s, 4, 0), 4) for s in (0, 2, 4)] == [1, 0.5, 0]


def test_the_text_encoder_stops(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """After its share of the steps its weights stay as they are, and the UNet's go on."""
    from safetensors.torch import load_file

    options = {
        "method": "full",
        "steps": 4,
        "text_encoder_stop": 0.5,
        "resolution": 32,
        "checkpoint_every": 1,
        "keep": 9,
    }
    folder = prepare(
        tmp_path / "work", tiny_folder, pictures, batch_size=1, text_encoder=True, ema=0.0, **options
    )
    train(folder)
    weights = [load_file(folder / "checkpoints" / f"{s:06d}" / "weights.safetensors") for s in (1, 2, 4)]
    for part, changes in (("text_encoder.", [True, False]), ("unet.", [True, True])):
        names = [name for name in weights[0] if name.startswith(part)]
        for (before, after), expected in zip(itertools.pairwise(weights), changes, strict=True):
            assert any(not before[n].equal(after[n]) for n in names) == expected
    assert learned(folder)
