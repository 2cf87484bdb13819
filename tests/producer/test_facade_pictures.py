"""Pictures that callers send are decoded outside the web server's process, which holds the store's credentials."""

from __future__ import annotations

import io
import os
import sys

import pytest
from PIL import Image

from producer.web import pictures
from schemas.errors import Rejected
from schemas.limits import Limits
from tests.decoding import decoder_children


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA"])
def test_a_callers_picture_is_decoded_in_a_child(mode: str, monkeypatch: pytest.MonkeyPatch):
    """Its pixels come back; this process cannot even read the file."""
    file = io.BytesIO()
    Image.new("RGB", (12, 7), "red").convert(mode).save(file, "PNG")

    def must_not(*_: object, **__: object) -> None:
        raise AssertionError("a stranger's file was opened here")

    monkeypatch.setattr("PIL.Image.open", must_not)
    picture = pictures.decode_picture(file.getvalue(), "init_images", Limits())
    assert (picture.size, picture.mode) == ((12, 7), {"P": "RGB", "LA": "RGBA"}.get(mode, mode))
    assert pictures.recipe_texts(file.getvalue(), "image", Limits()) == {}
    with pytest.raises(Rejected, match="mask cannot be read as a picture"):
        pictures.decode_picture(b"no picture", "mask", Limits())
    [child] = decoder_children(os.getpid())
    assert b"AWS_" not in (child / "environ").read_bytes()
