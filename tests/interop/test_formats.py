"""Every format that we write, read by programs that did not write it: exiftool, piexif, Pillow."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.interop.clients import Clients
from tests.interop.conftest import Figures, needs
from tests.worker_process import drop, result, worker

FORMATS = {"png": "png", "jpeg": "jpg", "webp": "webp"}
PROMPTS = {
    "plain": "a red circle",
    "accents": "un c\u0153ur rouge, \u8d64\u3044\u732b \U0001f431",
    "long": "a red circle, " * 100,
}
#: A maker's note is private by the standard: exiftool knows only those of cameras, and says so.
PRIVATE = {"[minor] Unrecognized MakerNotes"}
PIEXIF = """
import json, sys
import piexif
found = piexif.load(sys.argv[1])
comment = found["Exif"].get(piexif.ExifIFD.UserComment, b"")
print(json.dumps({"bytes": isinstance(comment, bytes), "start": list(comment[:8]), "size": len(comment)}))
piexif.dump({k: v for k, v in found.items() if k != "thumbnail"})
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One picture of each format with each prompt, as a worker leaves them."""
    store = tmp_path_factory.mktemp("formats")
    with worker(store):
        for form in FORMATS:
            for name, prompt in PROMPTS.items():
                fields = {
                    "prompt": prompt,
                    "steps": 1,
                    "width": 64,
                    "height": 64,
                    "seed": 5,
                    "output": {"format": form},
                }
                drop(store, f"{form}-{name}.json", fields)
        drawn = {(form, name): result(store, f"{form}-{name}") for form in FORMATS for name in PROMPTS}
    return {key: store / one["images"][0]["key"] for key, one in drawn.items()}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("form", FORMATS)
def test_exiftool_finds_nothing_wrong(
    clients: Clients, pictures: dict[tuple[str, str], Path], form: str, prompt: str, figures: Figures
):
    """`-validate` has neither errors nor warnings, and the recipe is readable."""
    needs(clients, "exiftool")
    path = pictures[form, prompt]
    command = [clients["exiftool"], "-validate", "-warning", "-error", "-a", "-s", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()
    said = [line.partition(": ")[2] for line in lines if line.startswith(("Warning", "Error"))]
    assert [text for text in said if text not in PRIVATE] == []
    everything = [clients["exiftool"], "-j", "-a", str(path)]
    [fields] = json.loads(subprocess.run(everything, capture_output=True, text=True, timeout=60).stdout)
    recipe = fields.get("Parameters") or fields.get("UserComment") or ""
    assert recipe.startswith(PROMPTS[prompt].strip()), fields
    figures("validation", f"exiftool {clients.version('exiftool')}", f"{form}, {prompt} prompt", "no warning")


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "png"])
def test_piexif_reads_the_recipe_and_can_write_it_again(
    clients: Clients, pictures: dict[tuple[str, str], Path], form: str, figures: Figures
):
    """Every tag has the type that the standard gives it, or piexif cannot put the tags together again."""
    command = [str(clients.home / "bin" / "python"), "-c", PIEXIF, str(pictures[form, "accents"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-1000:]
    found = json.loads(done.stdout)
    assert found["bytes"]
    assert bytes(found["start"]) in (b"UNICODE\0", b"ASCII\0\0\0")
    figures("EXIF read and written again", f"piexif {clients.version('piexif')}", form, "all tags")


@pytest.mark.parametrize("form", FORMATS)
def test_the_recipe_is_known_when_a_picture_is_opened(pictures: dict[tuple[str, str], Path], form: str):
    """Before its pixels are read, as programs that sort folders of pictures do."""
    with Image.open(pictures[form, "plain"]) as picture:
        info: dict[str, Any] = picture.info
        known = info.get("parameters") or bytes(info.get("exif", b"")).decode("utf-16-be", errors="ignore")
    assert "a red circle" in known or os.fsencode("a red circle") in bytes(info.get("exif", b""))
