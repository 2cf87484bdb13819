"""Curves and validation pictures for TensorBoard, beside the project's own report, by accelerate's tracker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from accelerate import Accelerator

    Say = Callable[[dict[str, Any]], None]

NAME = "tensorboard"
_CURVES = {"loss": "loss", "prior": "prior_loss", "norm": "gradient_norm", "rate": "learning_rate"}
_LAST = ("done", "stopped")


def tracked(say: Say, accelerator: Accelerator, work: Path) -> Say:
    """`say`, which also writes what is said of steps and validations into the accelerator's project folder.

    Args:
        accelerator: made with `log_with` and `project_dir`.
        work: the folder of the training, in which the validation pictures lie.
    """

    failed = False

    def told(event: dict[str, Any]) -> None:
        nonlocal failed
        say(event)
        if failed:
            return
        try:
            write(event)
        except OSError as error:  # such as a full disk: it costs the curves, not the training
            failed = True
            text = f"no more is written for TensorBoard: {error.strerror or error}"
            say({"event": "warning", "message": text})

    def write(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "start":
            # What an earlier run wrote of later steps than this one begins at is not shown.
            accelerator.init_trackers("", init_kwargs={NAME: {"purge_step": event["step"] + 1}})
        elif kind == "step":
            curves = {shown: event[name] for name, shown in _CURVES.items() if event[name] is not None}
            accelerator.log(curves, step=event["step"])
        elif kind == "validation":
            pictures = [work / name for name in event["files"] if name.endswith(".png")]
            for number, file in enumerate(pictures):  # one by one: buckets give them different sizes
                with Image.open(file) as picture:
                    shown = {f"validation/{number}": np.asarray(picture)[None]}
                accelerator.get_tracker(NAME).log_images(shown, step=event["step"], dataformats="NHWC")
        elif kind in _LAST and accelerator.trackers:
            accelerator.get_tracker(NAME).finish()

    return told
