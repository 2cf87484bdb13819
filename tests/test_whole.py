"""Everything at once: `dreamdrop up`, the bundled model, and callers who look at what they got."""

from __future__ import annotations

import base64
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image, ImageChops

from training.doodle.judge import judge

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A caller of a machine on which `dreamdrop up` runs, without any setting but the port."""
    place = tmp_path_factory.mktemp("up")
    up = subprocess.Popen(
        [sys.executable, "-m", "producer.cli", "up", "--port", "0"],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert up.stderr is not None
        address = next(found[1] for line in up.stderr if (found := re.search(r"ready: (http://\S+)", line)))
        with httpx.Client(base_url=address, timeout=300) as caller:
            yield caller
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=120)
    assert (place / "dreamdrop-data" / "results").is_dir()


def test_the_picture_in_the_answer_is_what_the_words_say(http: httpx.Client):
    """A red circle on blue, as the judge that graded the model sees it."""
    body = {"prompt": "a red circle on a blue background", "steps": 20, "cfg_scale": 4, "seed": 3}
    answer = http.post("/generate/", json=body).json()
    seen = judge(Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB"))
    assert seen.background == "blue"
    assert [(shape.colour, shape.kind) for shape in seen.shapes] == [("red", "circle")]
    assert answer["model"]["name"] == "doodle"


def test_what_the_mask_keeps_is_kept_over_http(http: httpx.Client):
    """Inpainting by POST: the white part is repainted, the rest stays as it was."""
    picture = Image.new("RGB", (128, 128), (40, 80, 200))
    mask = Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    body = {"prompt": "a yellow star on a blue background", "steps": 10, "cfg_scale": 4, "seed": 1}
    body |= {"image": coded(picture), "mask_image": coded(mask)}
    answer = http.post("/inpainting/", json=body).json()
    drawn = Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")
    assert drawn.size == (128, 128)
    seen, sent = drawn.crop((96, 0, 128, 128)), picture.crop((96, 0, 128, 128))
    apart = ImageChops.difference(seen, sent).getextrema()
    assert max(high for _, high in apart) < 60  # the model's own encoder and decoder are in between


def coded(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
