"""Safetensors files that a test writes number by number, and reads back."""

from __future__ import annotations

import json
import struct

from infra.models.safetensors_header import read_header


def write(path, tensors, metadata=None):
    """A safetensors file of float32 or float16 tensors: name to (dtype, shape, numbers)."""
    header = {"__metadata__": metadata} if metadata else {}
    data = b""
    for name, (dtype, shape, numbers) in tensors.items():
        piece = struct.pack(f"<{len(numbers)}{'f' if dtype == 'F32' else 'e'}", *numbers)
        ends = [len(data), len(data) + len(piece)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": ends}
        data += piece
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def read(path):
    header = read_header(path)
    body = path.read_bytes()
    codes = {"F32": "f", "F16": "e"}
    return {
        name: tuple(v[0] for v in struct.iter_unpack("<" + codes[e.dtype], body[e.begin : e.begin + e.size]))
        for name, e in header.entries.items()
    }, header.metadata


LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
FLAT = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
