"""What goes wrong while training is said with its step, keeps the last good checkpoint and publishes nothing."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.trainings import learned, prepare, specks, start, train, train_apart


@pytest.fixture
def poisoned(tiny_folder: Path, tmp_path: Path) -> Path:
    """A base whose text encoder makes no numbers of the letter q."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import CLIPTokenizer

    base = shutil.copytree(tiny_folder, tmp_path / "poisoned")
    (q,) = CLIPTokenizer.from_pretrained(base / "tokenizer")("q", add_special_tokens=False).input_ids
    file = base / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    (table,) = [tensor for name, tensor in tensors.items() if name.endswith("token_embedding.weight")]
    table[q] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    return base


def captioned(folder: Path, seed: int, bad: set[int]) -> Path:
    """Eight pictures; those that are seen at the given steps of the first epoch have the letter in their caption."""
    from training.dreambooth.chance import Chance

    specks(folder, 8)
    for step, index in enumerate(Chance(seed).order(8, "pictures", 0), 1):
        (folder / f"{index}.txt").write_text("sks q" if step in bad else "sks a")
    return folder


BY_ROW = {
    "method": "full",
    "batch_size": 1,
    "resolution": 32,
    "text_encoder": False,
    "checkpoint_every": 1,
    "seed": 7,
}


def test_a_step_whose_loss_is_no_number_changes_nothing(poisoned: Path, tmp_path: Path):
    """Up to three in a row are skipped, and the loss record says so."""
    pictures = captioned(tmp_path / "pictures", 7, {3, 4, 5})
    folder = prepare(tmp_path / "work", poisoned, pictures, steps=7, keep=9, **BY_ROW)
    events = train(folder)
    assert [e["step"] for e in events if e["event"] == "step" and e["loss"] is None] == [3, 4, 5]
    steps = sorted(f.name for f in (folder / "checkpoints").iterdir())
    assert steps == [f"{n:06d}" for n in (1, 2, 6, 7)]
    assert (folder / "product.json").is_file()
    assert "skipped: steps 3, 4, 5" in (folder / "report.html").read_text()


def test_a_loss_that_stays_no_number_keeps_the_last_good_checkpoint(poisoned: Path, tmp_path: Path):
    """The fourth such step in a row ends the training; what was saved before is finite, and nothing is published."""
    import torch
    from safetensors.torch import load_file

    from training.dreambooth.loop import NotFinite

    pictures = captioned(tmp_path / "pictures", 7, {3, 4, 5, 6})
    folder = prepare(tmp_path / "work", poisoned, pictures, steps=8, keep=9, **BY_ROW)
    with pytest.raises(NotFinite, match="the loss was not a finite number at step 6"):
        train(folder)
    assert sorted(f.name for f in (folder / "checkpoints").iterdir()) == ["000001", "000002"]
    weights = load_file(folder / "checkpoints" / "000002" / "weights.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    assert not (folder / "product").exists()
    assert not (folder / "product.json").exists()


def test_a_picture_that_the_vae_cannot_read_is_named(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """A VAE that overflows stops the training before its first step."""
    import torch
    from safetensors.torch import load_file, save_file

    from schemas.errors import Rejected

    base = shutil.copytree(tiny_folder, tmp_path / "broken")
    file = base / "vae" / "diffusion_pytorch_model.safetensors"
    save_file({k: torch.full_like(t, torch.nan) for k, t in load_file(file).items()}, file, {"format": "pt"})
    folder = prepare(tmp_path / "work", base, pictures, steps=1, batch_size=1, resolution=32)
    with pytest.raises(Rejected, match=r"'\d\.png'.*not numbers"):
        train(folder)


def test_a_full_disk_keeps_the_checkpoint_before(
    tiny_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A checkpoint is refused where it does not fit, and the older one stays although only one is kept."""
    from training.dreambooth import checkpoint

    options = {"rank": 2, "checkpoint_every": 1, "keep": 1, "batch_size": 1, "resolution": 32}
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=3, **options)
    real = shutil.disk_usage

    def usage(path: Path) -> object:
        full = (folder / "checkpoints" / "000001").exists()
        return real(path)._replace(free=1000 if full else real(path).free)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(checkpoint.DiskFull, match="MiB are free"):
        train(folder)
    assert [f.name for f in (folder / "checkpoints").iterdir()] == ["000001"]
    assert checkpoint.newest(folder / "checkpoints") is not None


def test_a_disk_without_room_is_told_before_the_first_step(
    tiny_folder: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from training.dreambooth import checkpoint

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real(path)._replace(free=1000))
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=3, rank=2, batch_size=1, resolution=32)
    with pytest.raises(checkpoint.DiskFull, match=r"needs about .* MiB for 3 checkpoints"):
        train(folder)
    assert not (folder / "checkpoints").exists()


def test_old_checkpoints_go_after_new_ones(tiny_folder: Path, pictures: Path, tmp_path: Path):
    """The newest `keep` are left."""
    options = {"rank": 2, "checkpoint_every": 1, "keep": 2, "batch_size": 1, "resolution": 32}
    folder = prepare(tmp_path / "work", tiny_folder, pictures, steps=4, **options)
    train(folder)
    assert sorted(f.name for f in (folder / "checkpoints").iterdir()) == ["000003", "000004"]


def test_class_pictures_are_drawn_again_only_if_they_differ(
    tiny_folder: Path, pictures: Path, tmp_path: Path
):
    """Those of another prompt, size, seed or model are not used; a damaged one is drawn again."""
    options = {"rank": 2, "batch_size": 1, "class_pictures": 9, "steps": 1}
    folder = tmp_path / "work"

    def drawn(**changes: object) -> list[int]:
        prompts = {"class_prompts": ["a", "b"], "resolution": 32}
        events = train(prepare(folder, tiny_folder, pictures, **options | prompts | changes))
        shutil.rmtree(folder / "checkpoints")
        (folder / "product.json").unlink()
        parts = [event for event in events if event["event"] == "class pictures"]
        for event in parts:  # a trainer stores these while the next ones are drawn
            assert {f"class/{event['done'] - 1:05d}{end}" for end in (".png", ".json")} <= set(event["files"])
            assert all((folder / name).is_file() for name in event["files"])
        return [event["done"] for event in parts]

    assert drawn() == [8, 9]
    before = (folder / "class" / "00008.png").read_bytes()
    assert drawn() == []
    (folder / "class" / "00008.png").write_bytes(b"torn")
    assert drawn() == [9]
    assert (folder / "class" / "00008.png").read_bytes() == before
    facts = folder / "class" / "00008.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"base": "another model's hash"}))
    assert drawn() == [9]
    assert drawn(class_prompts=["a", "c"]) == [8]
    assert drawn(resolution=48) == [8, 9]
    assert drawn(seed=3) == [8, 9]


def test_two_processes_equal_one_with_accumulation(tiny_folder: Path, tmp_path: Path):
    """The rows of a step are the plan's; two processes share them by gloo, and learn the same within 1e-5."""
    from safetensors.torch import load_file

    pictures = specks(tmp_path / "pictures", 5, ((40, 40), (64, 32)))
    options = {"method": "full", "steps": 3, "batch_size": 2, "accumulation": 2, "resolution": 32, "buckets": True,
               "class_prompts": ["a"], "class_pictures": 2, "learning_rate": 1e-3, "ema": 0.9}  # fmt: skip
    one, two = (prepare(tmp_path / name, tiny_folder, pictures, **options) for name in ("one", "two"))
    train_apart(one)  # as the others are: with as many threads, and class pictures of as many steps
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
              "ACCELERATE_USE_CPU": "true"}  # fmt: skip
    processes = [start(two, environment={**shared, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]
    for process in processes:
        process.join(600)
        assert process.exitcode == 0
    record = json.loads((two / "checkpoints" / "000003" / "checkpoint.json").read_text())
    assert record["surroundings"]["processes"] == "2"
    for name in ("weights.safetensors", "average.safetensors"):
        first, second = (load_file(f / "checkpoints" / "000003" / name) for f in (one, two))
        assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-5
    losses = [json.loads(learned(folder)["losses.json"]) for folder in (one, two)]
    assert [x["loss"] for x in losses[0]] == pytest.approx([x["loss"] for x in losses[1]], rel=1e-5)
