"""Opens a model's files as a diffusers pipeline."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from consumer.engine.loading import single_file
from consumer.engine.loading.libraries import library
from infra.models.json_files import read_object
from infra.models.single_files import read_single_file
from schemas.errors import Rejected

if TYPE_CHECKING:
    import torch

    from infra.models.model_files import ModelFolder

_CALLED_WITH = {"prompt", "num_inference_steps", "generator", "output_type"}


def open_pipeline(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The pipeline in a folder, or in one file with the configs of a folder."""
    if folder.configs is not None:
        return single_file.load(read_single_file(folder.path), folder.configs, dtype)
    return library("diffusers").DiffusionPipeline.from_pretrained(
        str(folder.path),
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        variant=folder.variant,
        **_processors(folder),
        **dict.fromkeys(folder.left_out),
        **({"requires_safety_checker": False} if "safety_checker" in folder.left_out else {}),
    )


def _processors(folder: ModelFolder) -> dict[str, Any]:
    """The processor of a pipeline whose text encoder sees pictures."""
    part = read_object(folder.path / "model_index.json").get("processor")
    if not isinstance(part, list):
        return {}
    from consumer.engine.loading import processors

    return {"processor": processors.load(folder.path / "processor")} if part[1] in processors.NAMES else {}


def check_class(model: str, pipeline: str) -> None:
    """Refuse a class that no table knows and that cannot be called with a prompt. Raises `Rejected`."""
    diffusers = library("diffusers")
    kind = getattr(diffusers, pipeline, None)
    if kind is None:
        why = f"which diffusers {diffusers.__version__} does not have"
    elif (
        not (called := set(inspect.signature(kind.__call__).parameters)) >= _CALLED_WITH
        or "num_frames" in called
    ):
        why = "which does not draw a picture from a prompt"
    else:
        return
    raise Rejected("unsupported", f"model {model!r}: its pipeline is {pipeline}, {why}", field="model")
