"""A simulated device: a UNet's forward sleeps in each Python process that finds this file, and computes nothing.

SLOW_DEVICE="12,3" means 12 + 3 x rows milliseconds. Like a call that waits for a GPU, a sleep leaves the cores free.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
import time
from typing import Any

_MODULE = "diffusers.models.unets.unet_2d_condition"


class _Finder:
    """Finds the module of the UNet as everybody does, and changes its class once it is loaded."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)  # type: ignore[arg-type]
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            _slow_down(module.UNet2DConditionModel, module.UNet2DConditionOutput)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _slow_down(unet: Any, output: Any) -> None:
    call, row = (float(part) / 1000 for part in os.environ["SLOW_DEVICE"].split(","))

    @functools.wraps(unet.forward)
    def forward(self: Any, sample: Any, *_args: Any, return_dict: bool = True, **_kwargs: Any) -> Any:
        time.sleep(call + row * len(sample))
        answer = sample[:, : self.config.out_channels] * 0.1
        return output(sample=answer) if return_dict else (answer,)

    unet.forward = forward


if "SLOW_DEVICE" in os.environ:
    sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type]
