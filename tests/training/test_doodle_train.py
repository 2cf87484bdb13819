"""The recipe runs from nothing to a pipeline that diffusers loads, and goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.models.cards import BUNDLED

QUICK = ["--scenes", "64", "--word-steps", "1", "--vae-steps", "1", "--decoder-steps", "1"]


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


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_training_continues_from_a_trained_folder(tmp_path: Path):
    """The bundled weights are the start: one step at a tiny rate leaves the text encoder almost as it was."""
    from training.doodle.evaluate import load
    from training.doodle.train import main

    bundled = BUNDLED / "doodle"
    arguments = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *QUICK]
    main([*arguments, "--continue-from", str(bundled), "--unet-steps", "1"])
    before, after = (load(folder).text_encoder.state_dict() for folder in (bundled, tmp_path / "out"))
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.01


def test_the_detail_channel_says_only_what_the_colours_do_not():
    """Its linear share of the three colours moves into the 1 x 1 convolutions; the redrawing stays the same."""
    import torch

    from training.doodle import modules
    from training.doodle.autoencoder import separate_detail

    torch.manual_seed(0)
    vae, pictures = modules.make_vae(), torch.rand(4, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        first = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        separate_detail(vae, pictures)
        means = vae.encode(pictures).latent_dist.mean
        again = vae.decode(means).sample
    assert (first - again).abs().max() < 1e-4
    among = torch.corrcoef(means.permute(1, 0, 2, 3).flatten(1))
    assert among[3, :3].abs().max() < 1e-3
