"""Rewrites a LoRA's safetensors file from one spelling of its keys to another: diffusers' and Kohya's.

Both hold the same two matrices for each layer. They differ in the names, and in the strength: Kohya's files have an
`alpha` for each layer, and the product is scaled by alpha / rank; a diffusers file scales by what its metadata says,
else not at all. Only names and, where the strengths differ, the numbers of one matrix are changed, a piece at a
time; neither torch nor numpy is needed.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from schemas.errors import Rejected

if TYPE_CHECKING:
    from pathlib import Path

Format = Literal["diffusers", "kohya"]
METADATA = "lora_adapter_metadata"  # where diffusers keeps the settings of a LoRA, as JSON
_LONGEST = 100 << 20  # bytes of a header, as the safetensors library allows
_PIECE = 1 << 20  # bytes
_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}
_PARTS = {
    "lora_unet_": "unet",
    "lora_te2_": "text_encoder_2",
    "lora_te1_": "text_encoder",
    "lora_te_": "text_encoder",
}
#: diffusers' and PEFT's ends of a name: which matrix it is.
_DOWN = re.compile(r"\.(?:lora_A(?:\.default)?|lora\.down|lora_linear_layer\.down)\.weight$")
_UP = re.compile(r"\.(?:lora_B(?:\.default)?|lora\.up|lora_linear_layer\.up)\.weight$")
_KOHYA = re.compile(
    r"^(lora_unet|lora_te1|lora_te2|lora_te)_(.+)\.(lora_down\.weight|lora_up\.weight|alpha)$"
)
#: Names that have an underscore, so that it is not read as a dot.
_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "text_model", "self_attn", "q_proj", "k_proj",
    "v_proj", "out_proj", "to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "time_emb_proj", "conv_shortcut",
    "conv_in", "conv_out", "time_embedding", "add_embedding", "linear_1", "linear_2", "position_embedding",
    "token_embedding", "text_projection",
)  # fmt: skip
_SPLIT = re.compile("|".join(sorted(map(re.escape, _WORDS), key=len, reverse=True)) + "|[a-z0-9]+")
_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    begin: int  # in the file
    size: int  # bytes
    scale: float = 1.0  # that its numbers are multiplied by
    value: float | None = None  # of a new one, which no file holds


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, str], int]:
    """(entries, metadata, where the data begins) of a safetensors file. Raises `Rejected`."""
    try:
        with path.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST + 1
            if length > _LONGEST:
                raise ValueError("it is not a safetensors file")
            header = json.loads(stream.read(int(length)))
        metadata = header.pop("__metadata__", None) or {}
        for entry in header.values():
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end or path.stat().st_size < 8 + length + end:
                raise ValueError("it ends too early; is the download complete?")
            tuple(map(int, entry["shape"]))
        if not header:
            raise ValueError("it holds no tensors")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) and str(error).startswith("it ") else ""
        raise Rejected(
            "unsupported", f"{path}: {why or 'it is not a safetensors file'}", field="file"
        ) from error
    return header, {str(k): str(v) for k, v in metadata.items()}, 8 + int(length)


def format_of(names: Iterator[str] | list[str]) -> Format | None:
    """How the tensors of a LoRA are spelled; None when they are not a LoRA's."""
    for name in names:
        if _KOHYA.match(name):
            return "kohya"
        if _DOWN.search(name) or _UP.search(name):
            return "diffusers"
    return None


def convert(source: Path, target: Path, to: Format) -> None:
    """Write a LoRA in the other spelling, of the same strength; in the same one it is copied.

    Raises:
        Rejected: it is not a LoRA in a spelling that is known here; the message names the first such tensor.
        OSError: a file cannot be read or written.
    """
    entries, metadata, begin = read_header(source)
    spelling = format_of(list(entries))
    if spelling is None:
        raise _refused(source, f"{next(iter(entries))!r} is not a tensor of a LoRA")
    tensors = {
        name: _Tensor(
            str(entry["dtype"]),
            tuple(map(int, entry["shape"])),
            begin + int(entry["data_offsets"][0]),
            int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
        )
        for name, entry in entries.items()
    }
    with source.open("rb") as stream:
        if spelling == to:
            renamed, kept = tensors, metadata
        elif to == "kohya":
            renamed, kept = _to_kohya(source, tensors, metadata), _without_settings(metadata)
        else:
            renamed, kept = _to_diffusers(source, tensors, stream), {"format": "pt"}
        with target.open("wb") as out:
            _write(out, renamed, kept, stream)


def _to_kohya(
    source: Path, tensors: Mapping[str, _Tensor], metadata: Mapping[str, str]
) -> dict[str, _Tensor]:
    alphas = _alphas(source, metadata)
    two_encoders = any(name.startswith("text_encoder_2.") for name in tensors)
    renamed: dict[str, _Tensor] = {}
    for name, tensor in tensors.items():
        down, up = _DOWN.search(name), _UP.search(name)
        found = down or up
        if found is None:
            why = (
                "a DoRA has no spelling in which Kohya's tools agree"
                if "magnitude" in name
                else "it is unknown"
            )
            raise _refused(source, f"{name!r} cannot be written for Kohya's tools: {why}")
        layer = name[: found.start()].removeprefix("base_model.model.")
        part, _, inner = layer.partition(".")
        if part not in _PREFIX:
            raise _refused(source, f"{name!r} belongs to {part!r}, for which Kohya's tools have no name")
        prefix = "lora_te1_" if part == "text_encoder" and two_encoders else _PREFIX[part]
        if part != "unet" and not inner.startswith("text_model."):
            inner = f"text_model.{inner}"
        stem = prefix + inner.replace(".", "_")
        renamed[f"{stem}.lora_{'down' if down else 'up'}.weight"] = tensor
        if down:
            rank = tensor.shape[0]
            alpha = alphas(part, layer.partition(".")[2], rank)
            renamed[f"{stem}.alpha"] = _Tensor("F32", (), 0, 4, value=alpha)
    return renamed


def _alphas(source: Path, metadata: Mapping[str, str]) -> Any:
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


def _without_settings(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in metadata.items() if name != METADATA}


def _to_diffusers(source: Path, tensors: Mapping[str, _Tensor], stream: BinaryIO) -> dict[str, _Tensor]:
    found: dict[str, dict[str, _Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KOHYA.match(name)
        if match is None:
            raise _refused(source, f"{name!r} has no place in a diffusers LoRA (a LyCORIS file or a DoRA?)")
        found.setdefault(f"{match[1]}_{match[2]}", {})[match[3]] = tensor
    renamed: dict[str, _Tensor] = {}
    for stem, parts in found.items():
        down, up = parts.get("lora_down.weight"), parts.get("lora_up.weight")
        if down is None or up is None:
            raise _refused(source, f"{stem!r} has only one of its two matrices")
        layer = _dotted(source, stem)
        scale = _read_alpha(source, parts["alpha"], stream) / down.shape[0] if "alpha" in parts else 1.0
        if scale != 1.0 and up.dtype not in _BYTES:
            raise _refused(
                source, f"{stem!r} has numbers of the type {up.dtype}, which cannot be scaled here"
            )
        renamed[f"{layer}.lora_A.weight"] = down
        renamed[f"{layer}.lora_B.weight"] = _Tensor(up.dtype, up.shape, up.begin, up.size, scale)
    return renamed


def _dotted(source: Path, stem: str) -> str:
    """`lora_unet_mid_block_attentions_0_proj_in` as `unet.mid_block.attentions.0.proj_in`."""
    prefix = next(prefix for prefix in _PARTS if stem.startswith(prefix))
    part, inner = _PARTS[prefix], stem.removeprefix(prefix)
    if part == "unet" and re.match(
        r"(input_blocks|output_blocks|middle_block|time_embed_|label_emb|out_)", inner
    ):
        raise _refused(
            source, f"{stem!r} is named after the original code of SDXL; keep this file in Kohya's form"
        )
    words = _SPLIT.findall(inner)
    if "_".join(words) != inner:
        raise _refused(source, f"{stem!r} names no layer that is known here")
    return ".".join([part, *words])


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
    count = len(piece) // _BYTES[dtype]
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
