"""Rewrites a LoRA's safetensors file from one spelling of its names to another: diffusers' and Kohya's.

Both hold the same two matrices for each layer, and of a DoRA the magnitude of each output. They differ in the names,
and in the strength: Kohya's files have an `alpha` for each layer, and the product is scaled by alpha / rank; a
diffusers file scales by what its metadata says, else not at all. Only names and, where the strengths differ, the
numbers of one matrix are changed, a piece at a time; neither torch nor numpy is needed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from infra.models import lora_names
from infra.models.lora_names import Format, Piece, format_of
from infra.models.safetensors_header import BYTES, Header, read_header
from schemas.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

METADATA = "lora_adapter_metadata"  # where diffusers keeps the settings of a LoRA, as JSON
_PIECE = 1 << 20  # bytes


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file
    size: int  # bytes
    scale: float = 1.0  # that its numbers are multiplied by
    value: float | None = None  # of a new one, which no file holds


def header_of(source: Path) -> Header:
    """The header of a file that somebody gave. Raises `Rejected` for what is not a whole safetensors file."""
    try:
        header = read_header(source)
    except ValueError as error:
        raise _refused(source, str(error)) from error
    if not header.entries:
        raise _refused(source, "it holds no tensors")
    return header


def convert(source: Path, target: Path, to: Format) -> None:
    """Write a LoRA in the other spelling, of the same strength; in the same one it is copied.

    Raises:
        Rejected: it is not a LoRA in a spelling that is known here; the message names the first such tensor.
        OSError: a file cannot be read or written.
    """
    header = header_of(source)
    spelling = format_of(header.entries)
    if spelling is None:
        raise _refused(source, f"{next(iter(header.entries))!r} is not a tensor of a LoRA")
    tensors = {
        name: _Tensor(entry.dtype, entry.shape, entry.begin, entry.size)
        for name, entry in header.entries.items()
    }
    with source.open("rb") as stream:
        if spelling == to:
            renamed, kept = tensors, header.metadata
        elif to == "kohya":
            renamed = _to_kohya(source, _layers(source, tensors, spelling), header.metadata)
            kept = {name: text for name, text in header.metadata.items() if name != METADATA}
        else:
            renamed = _to_diffusers(source, _layers(source, tensors, spelling), stream)
            kept = {"format": "pt"}
        with target.open("wb") as out:
            _write(out, renamed, kept, stream)


def _layers(
    source: Path, tensors: Mapping[str, _Tensor], spelling: Format
) -> dict[str, dict[Piece, _Tensor]]:
    """The tensors of each layer, both matrices of which must be there."""
    found: dict[str, dict[Piece, _Tensor]] = {}
    for name, tensor in tensors.items():
        place = lora_names.split(name, spelling)
        if place is None:
            raise _refused(source, f"{name!r} is not a tensor of a LoRA or DoRA (is it a LyCORIS file?)")
        found.setdefault(place[0], {})[place[1]] = tensor
    for layer, pieces in found.items():
        if "down" not in pieces or "up" not in pieces:
            raise _refused(source, f"{layer!r} has only one of its two matrices")
        if any(not half.shape or 0 in half.shape for half in (pieces["down"], pieces["up"])):
            raise _refused(source, f"{layer!r} has a number, or nothing, in place of a matrix")
    return found


def _to_kohya(
    source: Path, layers: Mapping[str, Mapping[Piece, _Tensor]], metadata: Mapping[str, str]
) -> dict[str, _Tensor]:
    alpha_of = _alphas(source, metadata)
    two_encoders = any(layer.startswith("text_encoder_2.") for layer in layers)
    renamed: dict[str, _Tensor] = {}
    for layer, pieces in layers.items():
        try:
            stem = lora_names.to_kohya(layer, two_encoders=two_encoders)
        except ValueError as error:
            raise _refused(source, f"{layer!r} cannot be written for Kohya's tools: {error}") from error
        for piece, tensor in pieces.items():
            if piece == "magnitude":
                tensor = _magnitude(source, layer, pieces, "kohya")
            renamed[lora_names.join(stem, piece, "kohya")] = tensor
        part, _, inner = layer.removeprefix("base_model.model.").partition(".")
        if "alpha" in pieces:  # which diffusers reads, too
            continue
        alpha = alpha_of(part, inner, pieces["down"].shape[0])
        renamed[lora_names.join(stem, "alpha", "kohya")] = _Tensor("F32", (), 0, 4, value=alpha)
    return renamed


def _alphas(source: Path, metadata: Mapping[str, str]) -> Callable[[str, str, int], float]:
    """A function from (part, layer, rank) to the alpha that the file's metadata gives, else the rank."""
    try:
        settings = json.loads(metadata.get(METADATA, "{}"))
        if not isinstance(settings, dict):
            raise ValueError
    except ValueError as error:
        raise _refused(source, f"its metadata {METADATA} is damaged") from error

    def alpha(part: str, layer: str, rank: int) -> float:
        patterns = settings.get(f"{part}.alpha_pattern") or {}
        given = next(
            (value for key, value in patterns.items() if layer == key or layer.endswith(f".{key}")), None
        )
        if given is None:
            given = settings.get(f"{part}.lora_alpha")
        if given is None:
            return float(rank)
        rslora = settings.get(f"{part}.use_rslora") is True  # scales by the rank's square root
        return float(given) * (rank**0.5 if rslora else 1.0)

    return alpha


def _to_diffusers(
    source: Path, layers: Mapping[str, Mapping[Piece, _Tensor]], stream: BinaryIO
) -> dict[str, _Tensor]:
    renamed: dict[str, _Tensor] = {}
    for stem, pieces in layers.items():
        try:
            layer = lora_names.to_diffusers(stem)
        except ValueError as error:
            raise _refused(source, f"{stem!r}: {error}") from error
        down, up = pieces["down"], pieces["up"]
        scale = _read_alpha(source, pieces["alpha"], stream) / down.shape[0] if "alpha" in pieces else 1.0
        if scale != 1.0 and up.dtype not in BYTES:
            raise _refused(
                source, f"{stem!r} has numbers of the type {up.dtype}, which cannot be scaled here"
            )
        renamed[lora_names.join(layer, "down", "diffusers")] = down
        renamed[lora_names.join(layer, "up", "diffusers")] = replace(up, scale=scale)
        if "magnitude" in pieces:
            if not layer.startswith("unet."):
                raise _refused(
                    source, f"{stem!r} is a DoRA of a text encoder, whose magnitudes diffusers leaves out"
                )
            magnitude = _magnitude(source, stem, pieces, "diffusers")
            renamed[lora_names.join(layer, "magnitude", "diffusers")] = magnitude
    return renamed


def _magnitude(source: Path, layer: str, pieces: Mapping[Piece, _Tensor], to: Format) -> _Tensor:
    """A DoRA's magnitudes, one for each output, in the shape of the other spelling.

    LyCORIS, ComfyUI and the others of Kohya's spelling have (outputs, 1, ...), and (1, inputs, ...) for a DoRA that is
    scaled by its inputs; peft has (outputs,), and for a convolution (1, outputs, 1, 1).
    """
    tensor, outputs = pieces["magnitude"], pieces["up"].shape[0]
    ones = (1,) * (len(pieces["down"].shape) - 1)
    kohya, peft = (outputs, *ones), (1, outputs, *ones[1:]) if len(ones) > 1 else (outputs,)
    given, wanted = (peft, kohya) if to == "kohya" else (kohya, peft)
    if tensor.shape not in (given, (outputs,)):
        raise _refused(
            source,
            f"{layer!r} has magnitudes of the shape {list(tensor.shape)}; only a DoRA that is scaled by its "
            f"{outputs} outputs can be converted",
        )
    return replace(tensor, shape=wanted)


def _read_alpha(source: Path, tensor: _Tensor, stream: BinaryIO) -> float:
    stream.seek(tensor.begin)
    try:
        [value] = _numbers(stream.read(tensor.size), tensor.dtype)
    except (ValueError, KeyError, struct.error) as error:
        raise _refused(source, "an alpha in it is not one number") from error
    return value


def _write(
    out: BinaryIO, tensors: Mapping[str, _Tensor], metadata: Mapping[str, str], stream: BinaryIO
) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in tensors.items():
        ends = offset + tensor.size
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, ends]}
        offset = ends
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for tensor in tensors.values():
        if tensor.value is not None:
            out.write(struct.pack("<f", tensor.value))
            continue
        stream.seek(tensor.begin)
        left = tensor.size
        while left:
            piece = stream.read(min(left, _PIECE))
            if not piece:
                raise ValueError("the file became shorter while it was read")
            left -= len(piece)
            out.write(piece if tensor.scale == 1.0 else _scaled(piece, tensor.dtype, tensor.scale))


def _scaled(piece: bytes, dtype: str, scale: float) -> bytes:
    numbers = [number * scale for number in _numbers(piece, dtype)]
    if dtype == "BF16":
        return struct.pack(f"<{len(numbers)}H", *map(_bfloat, numbers))
    code = {"F64": "d", "F32": "f", "F16": "e"}[dtype]
    return struct.pack(f"<{len(numbers)}{code}", *numbers)


def _numbers(piece: bytes, dtype: str) -> tuple[float, ...]:
    count = len(piece) // BYTES[dtype]
    if dtype == "BF16":
        halves = struct.unpack(f"<{count}H", piece)
        return struct.unpack(f"<{count}f", struct.pack(f"<{count}I", *(half << 16 for half in halves)))
    return struct.unpack(f"<{count}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }".replace(" ", ""), piece)


def _bfloat(number: float) -> int:
    """The upper half of a float32, rounded to nearest, ties to even."""
    bits: int = struct.unpack("<I", struct.pack("<f", number))[0]
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def _refused(source: Path, why: str) -> Rejected:
    return Rejected("unsupported", f"{source}: {why}", field="file")
