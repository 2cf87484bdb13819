"""The report: one page with the loss, the pictures by step and the settings; every text escaped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

from training.report import page

EVIL = '<script>"x"</script>'


def facts(**changes: Any) -> dict[str, Any]:
    return {
        "name": "my-dog",
        "kind": "lora",
        "base": {"name": "doodle"},
        "steps": 40,
        "trigger_words": ["sks"],
        "pictures": [{"name": EVIL, "caption": EVIL}],
        "options": {"steps": 40, "instance_prompt": EVIL, "class_prompts": [], "snr_gamma": None},
        "drift": {"with_concept": 31.25, "without": None},
        **changes,
    }


def validation(folder: Path, steps: range) -> Path:
    for step in steps:
        (folder / f"{step:06d}").mkdir(parents=True)
        Image.new("RGB", (64, 64), "red").save(folder / f"{step:06d}" / "0.png")
    (folder / "prompts.json").write_text(json.dumps([EVIL, "missing"]))
    return folder


def losses(count: int) -> list[dict[str, Any]]:
    return [{"step": n, "loss": None if n == 7 else 1 / n} for n in range(1, count + 1)]


def test_everything_is_on_the_page(tmp_path: Path):
    text = page(facts(), losses(40), validation(tmp_path, range(0, 50, 10))).decode()
    assert text.count("<img ") == 5
    assert [h for h in ("<th>before</th>", "<th>step 40</th>") if h not in text] == []
    assert text.count("<polyline") == 2
    assert len(re.findall(r'class="each" points="([^"]*)"', text)[0].split()) == 39
    assert "skipped: steps 7" in text
    assert "with the concept changed by 31.2 grey levels" in text
    assert "without it" not in text
    assert "snr_gamma" not in text


def test_texts_are_escaped_and_nothing_is_fetched(tmp_path: Path):
    text = page(facts(name=EVIL), losses(3), validation(tmp_path, range(1))).decode()
    assert "<script" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "default-src 'none'" in text


def test_many_steps_are_thinned_out(tmp_path: Path):
    """The first and the last stay."""
    text = page(facts(), losses(3), validation(tmp_path, range(0, 300, 10))).decode()
    assert text.count("<img ") == 12
    assert "<th>before</th>" in text
    assert "<th>step 290</th>" in text


def test_a_training_without_validation_has_a_page(tmp_path: Path):
    assert b"<img" not in page(facts(), losses(3), tmp_path)
