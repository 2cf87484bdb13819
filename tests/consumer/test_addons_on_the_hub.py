"""ControlNets and IP-Adapters of the hub: found in a download cache, and told apart from what is not here."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from infra.models.addons.known import Addons
from infra.models.model_files import ModelUnavailable
from schemas.errors import Rejected
from tests.tiny.addons import save_controlnet, save_ip_adapter

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with both, in the layout of the hub's library; nothing else can be reached."""

    def snapshot(name: str) -> Path:
        return tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / REVISION

    save_controlnet(tiny_folder, snapshot("own/canny"), cross_attention_dim=768)
    save_ip_adapter(tiny_folder, snapshot("own/face") / "models")
    shutil.copytree(
        snapshot("own/canny"),
        snapshot("own/config"),
        ignore=lambda *_: ["diffusion_pytorch_model.safetensors"],
    )
    shutil.copytree(snapshot("own/config"), snapshot("own/flux"))
    (snapshot("own/flux") / "config.json").write_text(json.dumps({"_class_name": "FluxControlNetModel"}))
    monkeypatch.setenv("DREAMDROP_BAKED_MODELS", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_what_is_in_a_cache_is_used(cache: Path) -> None:
    """By its revision; the config tells the family before the weights are there."""
    at = f"@{REVISION}"
    nets = [f"canny=hub:own/canny{at}", f"config=hub:own/config{at}", f"none=hub:own/none{at}"]
    known = Addons.of(nets, [f"face=hub:own/face{at}:models/adapter.safetensors"], fetch=True)
    assert {name: net.family for name, net in known.controlnets.items()} == {
        "canny": "sd1",
        "config": "sd1",
        "none": "",
    }
    assert known.controlnets["canny"].folder(offline=True).name == REVISION
    (cache / "models--own--face" / "snapshots" / REVISION / "models" / "image_encoder").rename(
        cache / "encoder"
    )
    face = known.ip_adapters["face"]
    with pytest.raises(ModelUnavailable):  # half of it is there
        face.files(offline=True)
    assert replace(face, encoder=str(cache / "encoder")).files(offline=True).encoder == cache / "encoder"
    (cache / "encoder").rename(cache / "models--own--face" / "snapshots" / REVISION / "image_encoder")
    files = replace(face, encoder="image_encoder").files(offline=True)
    assert (files.weights.name, files.encoder.name, files.reads_tokens) == (
        "adapter.safetensors",
        "image_encoder",
        False,
    )


def test_what_is_not_here_is_said_and_refused_before_a_download(cache: Path) -> None:
    """Offline at once, and else with what the hub's library said."""
    at = f"@{REVISION}"
    known = Addons.of([f"config=hub:own/config{at}"], [f"face=hub:own/none{at}:models/a.safetensors"])
    with pytest.raises(
        ModelUnavailable, match="'config' is not in the download cache, and the worker is offline"
    ):
        known.controlnets["config"].folder(offline=True)
    with pytest.raises(ModelUnavailable, match="the hub did not provide hub:own/none"):
        known.ip_adapters["face"].files(offline=False)
    with pytest.raises(Rejected, match="it holds a FluxControlNetModel"):
        Addons.of([f"flux=hub:own/flux{at}"])
