"""Limits on one request, with safe defaults; operators can change them."""

from __future__ import annotations

from dataclasses import dataclass, replace

ALWAYS_DRAWN = 1024 * 1024  # pixels that every model draws, however small it is: what clients of OpenAI send


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a manifest, checked before any work."""

    max_body_bytes: int = 32 << 20  # one manifest, its base64 pictures included
    max_batch_bytes: int = 200 << 20  # one .jsonl file
    max_batch_rows: int = 50_000
    max_prompt_chars: int = 8_000
    max_side: int = 2048  # pixels of width and of height
    max_pixels: int = 4_194_304  # width x height of an image to draw
    max_native_areas: int = 8  # the same, as a multiple of the model's native width x height; see `for_model`
    max_input_pixels: int = 16_777_216  # width x height of a picture sent in, from its header
    max_steps: int = 150
    max_images: int = 64  # number_of_images
    max_cfg_scale: float = 50.0
    max_metadata_bytes: int = 16_384  # of `metadata`, as JSON
    max_loras: int = 8
    max_controlnets: int = 4

    def for_model(self, native_width: int, native_height: int) -> Limits:
        """These limits with the `max_pixels` that hold for one model.

        A small model draws a large picture badly, and for minutes: the work grows faster than the area. So
        the bound is its native area (pixels) times `max_native_areas`, or 1024 x 1024 if that is more.
        """
        most = max(self.max_native_areas * native_width * native_height, ALWAYS_DRAWN)
        return replace(self, max_pixels=min(self.max_pixels, most))
