"""What every peer serves: one plain diffusers pipeline, one request at a time, a base64 PNG out."""

from __future__ import annotations

import base64
import io
import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


class Pipeline:
    """The folder named by `PEER_MODEL`, as a server's author would load it."""

    def __init__(self) -> None:
        import torch
        from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

        torch.set_num_threads(1)
        pipe = StableDiffusionPipeline.from_pretrained(os.environ["PEER_MODEL"], safety_checker=None)
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        self._pipe, self._torch = pipe, torch

    def draw(self, body: dict[str, Any]) -> dict[str, list[str]]:
        """A manifest's fields in, `{"images": [base64 PNG]}` out."""
        picture = self.draw_together([body])[0]
        out = io.BytesIO()
        picture.save(out, "PNG")
        return {"images": [base64.b64encode(out.getvalue()).decode("ascii")]}

    def draw_together(self, bodies: list[dict[str, Any]]) -> list[Any]:
        """One call of the pipeline for manifests that agree in all but prompt and seed."""
        first = bodies[0]
        pictures: list[Any] = self._pipe(
            [body["prompt"] for body in bodies],
            num_inference_steps=first["steps"],
            guidance_scale=first["cfg_scale"],
            width=first["width"],
            height=first["height"],
            generator=[self._torch.Generator("cpu").manual_seed(body["seed"]) for body in bodies],
        ).images
        return pictures
