"""What needs a package that is not installed everywhere: trackers and other optimizers."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from schemas.errors import Rejected
from tests.trainings import learned, prepare, train

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {"resolution": 32, "batch_size": 2, "rank": 2}


def test_a_tracker_that_is_not_installed_is_refused(
    tiny_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By the command line, and by the process that trains; accelerate would leave it out without a word."""
    from training.cli import train as command
    from training.cli import trainer

    real = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "tensorboard" else real(name)
    )
    for app, given in ((command, ["dreambooth"]), (trainer, [])):
        result = CliRunner().invoke(
            app, [*given, "--report-to", "tensorboard", "--store", str(tmp_path / "store")]
        )
        assert result.exit_code == 2
        assert "pip install tensorboard" in " ".join(result.output.replace("│", " ").split())
    assert not (tmp_path / "store").exists()
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=1, **OPTIONS)
    document = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps(document | {"logging_folder": str(tmp_path / "logs")}))
    with pytest.raises(Rejected, match="pip install tensorboard"):
        train(folder)


def test_other_trackers_are_refused_by_name(tmp_path: Path):
    from training.cli import train as command

    result = CliRunner().invoke(command, ["dreambooth", "--report-to", "wandb"])
    assert result.exit_code == 2
    assert "'wandb' is not supported; use tensorboard" in " ".join(result.output.replace("│", " ").split())


def test_a_folder_for_curves_needs_a_tracker(tmp_path: Path):
    from training.cli import train as command
    from training.cli import trainer

    for app, given in ((command, ["dreambooth"]), (trainer, [])):
        result = CliRunner().invoke(
            app, [*given, "--logging-dir", str(tmp_path), "--store", str(tmp_path / "store")]
        )
        assert result.exit_code == 2
        assert "goes with --report-to tensorboard" in " ".join(result.output.replace("│", " ").split())


def test_tensorboard_shows_curves_and_pictures(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """Also of a training that was stopped in between: each step once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    work, logs = tmp_path / "work", tmp_path / "logs"
    for steps in (2, 3):
        prepare(work, tiny_folder, pictures, steps=steps, schedule="constant", warmup_steps=0, validate=["sks"],
                **OPTIONS)  # fmt: skip
        document = json.loads((work / "training.json").read_text())
        (work / "training.json").write_text(json.dumps(document | {"logging_folder": str(logs)}))
        train(work)
    found = EventAccumulator(str(logs))
    found.Reload()
    losses = [json.loads(line)["loss"] for line in (work / "loss.jsonl").read_text().splitlines()]
    curve = found.Scalars("loss")
    assert [point.step for point in curve] == [1, 2, 3]
    assert [point.value for point in curve] == pytest.approx(losses, rel=1e-6)
    assert {"learning_rate", "gradient_norm"} <= set(found.Tags()["scalars"])
    assert {image.step for image in found.Images("validation/0")} >= {0, 3}


def test_a_full_disk_costs_the_curves_and_not_the_training(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """Nobody may write to the folder of the curves, so nothing of them is kept; the training says it once."""
    pytest.importorskip("tensorboard")
    blocked = tmp_path / "logs"
    blocked.write_text("a file where the folder should be")
    work = prepare(tmp_path / "work", tiny_folder, pictures, steps=2, **OPTIONS)
    document = json.loads((work / "training.json").read_text())
    (work / "training.json").write_text(json.dumps(document | {"logging_folder": str(blocked)}))
    events = train(work)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert [text for text in warnings if text.startswith("no more is written for TensorBoard")] == warnings[
        -1:
    ]
    assert events[-1]["event"] == "done"


def test_prodigy_goes_on_bit_for_bit(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """Its estimate of the rate is in the checkpoint."""
    pytest.importorskip("prodigyopt")
    options = {
        "optimizer": "prodigy",
        "text_encoder": True,
        "schedule": "constant",
        "warmup_steps": 0,
        **OPTIONS,
    }
    straight, stopped = (tmp_path / name for name in ("straight", "stopped"))
    train(prepare(straight, tiny_folder, pictures, steps=4, **options))
    for steps in (2, 4):
        train(prepare(stopped, tiny_folder, pictures, steps=steps, **options))
    assert learned(stopped) == learned(straight)


def test_prodigy_finds_one_rate_for_all(tiny_folder: Path, pictures: Path, tmp_path: Path):
    pytest.importorskip("prodigyopt")
    options = {"optimizer": "prodigy", "text_encoder": True, "text_encoder_learning_rate": 0.5, **OPTIONS}
    with pytest.raises(Rejected) as refused:
        train(prepare(tmp_path / "work", tiny_folder, pictures, steps=1, **options))
    assert refused.value.field == "text_encoder_learning_rate"
