"""JSON files of a model's folder that no pipeline has written: refused in one sentence that names the file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.models.cards import BUNDLED, Cards
from infra.models.model_files import check
from schemas.errors import Rejected

DEEP = "[" * 100_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the bundled model whose weights are links."""
    shutil.copytree(BUNDLED / "doodle", tmp_path / "m", copy_function=os.symlink)
    return tmp_path / "m"


def write(path: Path, text: str) -> None:
    path.unlink()
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json", "tokenizer/tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (DEEP, "nested too deeply"),
        ("\ufeff{}", "byte order mark"),
        ("", "Expecting value"),
        ("1" * 9999, "digits"),
    ],
    ids=["deep", "mark", "empty", "digits"],
)
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str, text: str, why: str):
    """No RecursionError from a stranger's file."""
    write(folder / name, text)
    with pytest.raises(Rejected, match=why) as caught:
        check(folder)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("unet", [["diffusers"], "UNet2DConditionModel"], "unet comes from"),
        ("unet", [{}, "UNet2DConditionModel"], "unet comes from"),
        ("_class_name", ["StableDiffusionPipeline"], "its pipeline is"),
    ],
)
def test_an_odd_index_is_refused(folder: Path, field: str, value: Any, why: str):
    index = json.loads((folder / "model_index.json").read_text()) | {field: value}
    write(folder / "model_index.json", json.dumps(index))
    with pytest.raises(Rejected, match=why):
        check(folder)


def test_an_index_that_is_no_object_or_no_file_is_refused(folder: Path):
    """A pipe is not opened: that would wait for its writer."""
    write(folder / "model_index.json", "[]")
    with pytest.raises(Rejected, match="holds no object"):
        check(folder)
    write(folder / "model_index.json", (BUNDLED / "doodle" / "model_index.json").read_text())
    (folder / "unet" / "config.json").unlink()
    os.mkfifo(folder / "unet" / "config.json")
    with pytest.raises(Rejected, match="not a plain file"):
        Cards.of([f"mine={folder}"])


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vae", {"block_out_channels": 5}),
        ("vae", {"block_out_channels": []}),
        ("vae", {"block_out_channels": [1] * 5000}),
        ("unet", {"sample_size": "64"}),
        ("unet", {"sample_size": []}),
        ("unet", {"sample_size": 1e400}),
        ("unet", {"sample_size": [16, -1]}),
    ],
)
def test_a_model_whose_size_cannot_be_told_stops_the_start(folder: Path, name: str, changes: dict[str, Any]):
    """By name, before anything is loaded."""
    path = folder / name / "config.json"
    write(path, json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(Rejected, match=next(iter(changes))) as caught:
        Cards.of([f"mine={folder}"])
    assert f"{name}/config.json" in str(caught.value)


def test_an_odd_scheduler_leaves_the_default(folder: Path):
    path = folder / "scheduler" / "scheduler_config.json"
    write(path, json.dumps({"_class_name": ["DDIM"]}))
    assert Cards.of([f"mine={folder}"]).get("mine").scheduler == "DPM++ 2M"
    assert (Cards.of([f"mine={folder}"]).get("mine").native_width) == 128
