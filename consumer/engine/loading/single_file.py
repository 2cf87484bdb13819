"""A model in one .safetensors file becomes a pipeline, without a network.

`python -m consumer.engine.loading.single_file FILE CONFIGS TARGET [PREDICTION]` saves it as a diffusers folder, and
prints one line of JSON: `{"saved": TARGET}` or `{"refused": why}`. `dreamdrop models import` runs it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.loading.libraries import library, quiet
from infra.models.single_files import SingleFile, check_configs, read_single_file, write_configs
from schemas.errors import DreamError, Rejected

if TYPE_CHECKING:
    from collections.abc import Sequence

_MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")


def load(file: SingleFile, configs: Path, dtype: torch.dtype, prediction_type: str = "") -> Any:
    """A pipeline with the file's weights.

    Args:
        configs: a diffusers folder of the same family, for its configs and tokenizers.
        prediction_type: instead of what the file says, or else the configs.

    Raises:
        Rejected: the weights do not fit the configs, or some are missing.
    """
    check_configs(file, configs)
    with tempfile.TemporaryDirectory(prefix="dreamdrop-") as scratch:
        kind = getattr(library("diffusers"), write_configs(file, configs, Path(scratch), prediction_type))
        try:
            pipe = kind.from_single_file(str(file.path), config=scratch, dtype=dtype, local_files_only=True)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OSError) as error:
            text = " ".join(str(error).split())[:300]
            if "meta tensor" in text:  # one that got no numbers
                text = "tensors of its UNet or VAE are missing"
            raise _refused(file, f"it does not fit the configs in {configs}: {text}") from error
    for part in _MODELS:
        module = getattr(pipe, part, None)
        missing = next((n for n, p in module.named_parameters() if p.is_meta), None) if module else None
        if missing:  # of a text encoder, which is left so without a word
            raise _refused(file, f"it does not fit the configs in {configs}: {part}.{missing} is missing")
    return pipe


def save(file: SingleFile, configs: Path, target: Path, prediction_type: str = "") -> None:
    """Write a diffusers folder in the file's own precision. Raises `Rejected`."""
    same = set(file.dtypes.values())  # else all is read as float32, and each part gets its own type again
    wanted = getattr(torch, same.pop()) if len(same) == 1 else torch.float32
    pipe = load(file, configs, wanted, prediction_type)
    for part in _MODELS:
        if (module := getattr(pipe, part, None)) is not None:
            module.to(getattr(torch, file.dtypes[part]))
    pipe.save_pretrained(target, safe_serialization=True)
    for path in (target / "model_index.json", *target.glob("*/*config.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        document.pop("_name_or_path", None)  # a folder of this machine
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _refused(file: SingleFile, why: str) -> Rejected:
    return Rejected("unsupported", f"{file.path}: {why}", field="model")


def main(arguments: Sequence[str]) -> None:
    out = os.fdopen(os.dup(1), "w")  # ours alone; whatever a library prints goes to stderr
    os.dup2(2, 1)
    file, configs, target, *prediction = arguments
    quiet()
    try:
        save(read_single_file(Path(file)), Path(configs), Path(target), *prediction)
        answer = {"saved": target}
    except DreamError as error:
        answer = {"refused": str(error)}
    except OSError as error:
        answer = {"refused": f"{error.filename or target}: {error.strerror or error}"}
    print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
