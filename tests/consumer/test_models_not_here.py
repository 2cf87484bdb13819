"""Models that cannot be had: said in the heartbeat, and answered at once with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import consumer.engine.loading.registry as registry_module
from consumer.engine.loading.registry import ModelRegistry
from infra.models.cards import BUILT_IN, Cards
from infra.models.model_files import ModelUnavailable


def test_a_model_that_is_not_here_is_not_tried_again(tmp_path, studio, task, monkeypatch):
    """One attempt; and the next requests do not wait while the hub is asked once more."""
    looks, now = [], [0.0]

    def find(card, **_settings):
        looks.append(card.name)
        raise ModelUnavailable(f"model {card.name!r} is not here")

    monkeypatch.setattr(registry_module, "find", find)
    room = studio(ModelRegistry(Cards.of(), clock=lambda: now[0]))
    ended = room.draw(task("a", model="sd15"), task("b", model="sd15"))
    assert [(one.code, one.retry, one.field) for one in ended.values()] == [
        ("model_unavailable", False, "model")
    ] * 2
    assert "is not here" in ended["a", 0].message
    assert looks == ["sd15"]
    now[0] = 61.0
    room.draw(task("c", model="sd15"))
    assert looks == ["sd15"] * 2


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_what_is_here_is_told_by_the_files(variable, tmp_path, monkeypatch, tiny_folder):
    """A folder, or a download that has the weights in the card's revision."""
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv(variable, str(tmp_path))
    hub = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub"}[variable]
    cards = Cards.of([f"mine={tiny_folder}", "theirs=hub:somebody/model"])
    assert cards.here() == ["doodle", "mine"]

    sd21 = next(card for card in BUILT_IN if card.name == "sd21")
    repository = tmp_path / hub / "models--sd2-community--stable-diffusion-2-1"
    other = repository / "snapshots" / "other" / "unet"
    other.mkdir(parents=True)
    (other / "model.safetensors").touch()
    assert "sd21" not in cards.here()
    other.parent.rename(repository / "snapshots" / sd21.revision)
    assert "sd21" in cards.here()


def test_a_request_for_a_model_that_is_not_here_is_answered_at_once(tmp_path):
    """By a real worker without a network: one attempt, with the reason and the remedy."""
    store = tmp_path / "store"
    (store / "requests").mkdir(parents=True)
    (store / "requests" / "cat.json").write_text(json.dumps({"prompt": "a cat", "model": "sd15", "steps": 1}))
    command = [
        sys.executable,
        "-m",
        "producer.cli",
        "worker",
        "--store",
        str(store),
        "--once",
        "--model",
        "doodle",
    ]
    here = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(Path.cwd())}
    subprocess.run([*command, "--devices", "cpu"], env=os.environ | here, timeout=240, check=True)
    result = json.loads((store / "results" / "cat" / "result.json").read_text())
    assert (result["status"], result["attempts"]) == ("failed", 1)
    assert result["failure"]["code"] == "model_unavailable"
    assert "'sd15' is not here" in result["failure"]["message"]
