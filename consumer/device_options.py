"""Options of `dreamdrop worker` that say how a device is used, and which of them exclude each other."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Annotated, Literal

import typer


def _attention(text: str) -> str:
    if text == "xformers" and find_spec("xformers") is None:  # before a model is loaded for it
        raise typer.BadParameter(
            "xformers is not installed: pip install -c constraints.txt -e '.[cuda]', or choose sdpa"
        )
    return text


Devices = Annotated[
    str, typer.Option(envvar="DREAMDROP_DEVICES", help="auto, all, cpu, cuda:0, ...; one renderer each.")
]
Dtype = Annotated[str, typer.Option(envvar="DREAMDROP_DTYPE", help="auto, float32, bfloat16 or float16.")]
Attention = Annotated[
    str, typer.Option(envvar="DREAMDROP_ATTENTION", callback=_attention, help="auto, sdpa or xformers.")
]
Compile = Annotated[
    Literal["off", "regional", "full"],
    typer.Option(
        envvar="DREAMDROP_COMPILE",
        help="Compile denoisers in the background: regional, the blocks that they repeat, in seconds a shape; full, "
        "the whole, in minutes.",
    ),
]
Offload = Annotated[
    bool,
    typer.Option(
        envvar="DREAMDROP_OFFLOAD", help="Keep idle modules in host memory, for GPUs with little memory."
    ),
]
Quantize = Annotated[
    Literal["off", "fp8"],
    typer.Option(
        envvar="DREAMDROP_QUANTIZE",
        help="fp8: keep the weights of denoisers and text encoders in 8 bits, for GPUs with little memory.",
    ),
]


def check_together(compile: str, *, exact: bool, offload: bool, quantize: str) -> None:
    """Refuse settings that compiled code cannot keep. Raises `typer.BadParameter`."""
    reasons = {
        "--exact": exact and "compiled and eager calls differ in the last bits",
        "--offload": offload and "compiled code needs the weights to stay where they are",
        "--quantize": quantize != "off" and "its layers convert their weights for each call",
    }
    for other, why in reasons.items():
        if compile != "off" and why:
            raise typer.BadParameter(
                f"--compile {compile} and {other} exclude each other: {why}; leave one out"
            )
