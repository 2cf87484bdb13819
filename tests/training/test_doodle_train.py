"""The recipe runs from nothing to a pipeline that diffusers loads, and goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

QUICK = ["--scenes", "64", "--word-steps", "1", "--vae-steps", "2", "--decoder-steps", "2"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_few_steps_make_a_pipeline_that_draws(tmp_path: Path):
    """All five stages, and a longer second run that resumes the first one's checkpoints."""
    from training.doodle.evaluate import draw, load
    from training.doodle.train import main

    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *QUICK]
    main([*arguments, "--unet-steps", "1"])
    main([*arguments, "--unet-steps", "2", "3"])
    picture = draw(load(tmp_path / "out"), ["a red circle"])[0]
    assert picture.size == (128, 128)
