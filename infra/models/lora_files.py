"""The LoRA files that an operator registers, checked before the worker starts. No torch here."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.models.safetensors_header import read_shapes
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Iterable

_USUAL = "pytorch_lora_weights.safetensors"  # what diffusers calls the file in a folder


@dataclass(frozen=True, slots=True)
class LoraFile:
    """One registered file, and the hash of its bytes."""

    path: Path
    sha256: str


def find_loras(texts: Iterable[str]) -> dict[str, LoraFile]:
    """Read `name=file` or `name=folder` settings, and check each file. Raises `Rejected` with one sentence."""
    found: dict[str, LoraFile] = {}
    for text in texts:
        name, _, source = (part.strip() for part in text.partition("="))
        if not (name and source):
            raise Rejected.of_field("loras", f"has {text!r}: write name=file.safetensors")
        if name in found:
            raise Rejected.of_field("loras", f"names {name!r} twice: give each LoRA a name of its own")
        path = weights_in(name, Path(source).expanduser())
        shapes_of(name, path)
        found[name] = LoraFile(path, content_hash(path))
    return found


def weights_in(name: str, source: Path) -> Path:
    """The LoRA's file: the source itself, or the one that a folder holds. Raises `Rejected`."""
    if source.is_dir():
        files = sorted(source.glob("*.safetensors"))
        files = [file for file in files if file.name == _USUAL] or files
        if len(files) != 1:
            held = f"{len(files)} safetensors files; name the one" if files else "no safetensors file"
            raise _refused(name, source, f"the folder holds {held}")
        return files[0]
    if not source.exists():
        raise _refused(name, source, "there is no such file")
    return source


def shapes_of(name: str, path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a LoRA's file. Raises `Rejected` for what is not a whole safetensors file."""
    try:
        shapes = read_shapes(path)
    except OSError as error:
        raise _refused(name, path, f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise _refused(name, path, str(error)) from error
    if not shapes:
        raise _refused(name, path, "it holds no tensors")
    if path.suffix != ".safetensors":  # diffusers tells by the name how to read a file
        raise _refused(name, path, "its name does not end in .safetensors; rename it")
    return shapes


def content_hash(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refused(name: str, path: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"LoRA {name!r} in {path}: {why}", field="loras")
