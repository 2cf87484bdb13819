"""What the settings "auto" and "all" mean on this machine. A child process looks for GPUs: no torch here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consumer.renderer.stderr import last_words
from infra.child_process import child_environment, python_command
from schemas.errors import DreamError

if TYPE_CHECKING:
    from consumer.renderer.protocol import RendererSettings


def dtype_of(wanted: str) -> str:
    """The precision as set, else the one that `accelerate launch` was told."""
    launched = {"bf16": "bfloat16", "fp16": "float16", "no": "float32"}
    return (
        launched.get(os.environ.get("ACCELERATE_MIXED_PRECISION", ""), wanted) if wanted == "auto" else wanted
    )


def default_model(wanted: str, devices: list[str]) -> tuple[str, str]:
    """The default model, and why."""
    if wanted != "auto":
        return wanted, "as set"
    if any(device.startswith("cuda") for device in devices):
        return "sd21", "there is a CUDA device"
    return "doodle", "bundled; there is no CUDA device"


def devices_of(renderer: RendererSettings) -> list[str]:
    """The device of each renderer. A child process looks for GPUs: this process never imports torch."""
    launched = os.environ.get("LOCAL_RANK")  # `accelerate launch` sets it where it starts several processes
    wanted = f"cuda:{launched}" if launched else renderer.device
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") and wanted in ("auto", "all"):
        wanted = "cpu"  # `accelerate launch --cpu`, which starts one process
    driver = Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()
    unasked = wanted in ("auto", "all") or launched
    if renderer.kind == "null" or wanted == "cpu" or (not driver and unasked):
        return ["cpu"]
    command = python_command("consumer.engine.devices", wanted)
    try:
        child = subprocess.run(
            command, env=child_environment(), capture_output=True, text=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DreamError(f"devices {wanted!r}: no answer: {error}") from error
    if child.returncode:  # such as torch that cannot be imported
        raise DreamError(f"devices {wanted!r}: {last_words(child.stderr.splitlines(), child.returncode)}")
    answer: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    if "error" in answer:
        raise DreamError(f"devices {wanted!r}: {answer['error']}")
    devices: list[str] = answer["devices"]
    return devices
