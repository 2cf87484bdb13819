"""LoRAs in two spellings: what is written, with which strength, and what is refused."""

from __future__ import annotations

import json

import pytest

from infra.models import lora_formats, lora_names
from schemas.errors import Rejected
from tests.tensor_files import FLAT, LAYER, TEXT, read, write


@pytest.mark.parametrize(
    ("settings", "alpha"),
    [
        ({}, 2.0),
        ({"unet.lora_alpha": 1}, 1.0),
        ({"unet.lora_alpha": 1, "unet.alpha_pattern": {"attn2.to_k": 4}}, 4.0),
        ({"unet.lora_alpha": 1, "unet.use_rslora": True}, 2**0.5),
    ],
)
def test_alpha_is_what_the_metadata_says(tmp_path, settings, alpha):
    """Of rank 2; diffusers' own conversion writes the rank."""
    tensors = {
        f"{LAYER}.lora_A.weight": ("F32", [2, 1], [1, 2]),
        f"{LAYER}.lora_B.weight": ("F32", [1, 2], [3, 4]),
    }
    metadata = {lora_formats.METADATA: json.dumps(settings)}
    file = write(tmp_path / "lora.safetensors", tensors, metadata)
    lora_formats.convert(file, tmp_path / "kohya.safetensors", "kohya")
    found, kept = read(tmp_path / "kohya.safetensors")
    assert found[f"{FLAT}.alpha"] == pytest.approx((alpha,))
    assert lora_formats.METADATA not in kept

    lora_formats.convert(tmp_path / "kohya.safetensors", tmp_path / "back.safetensors", "diffusers")
    back, _ = read(tmp_path / "back.safetensors")
    assert back[f"{LAYER}.lora_A.weight"] == (1, 2)
    assert back[f"{LAYER}.lora_B.weight"] == pytest.approx((3 * alpha / 2, 4 * alpha / 2))


PAIR = {
    "kohya": {
        f"{LAYER}.lora_A.weight": ("F32", [1, 1], [1]),
        f"{LAYER}.lora_B.weight": ("F32", [1, 1], [1]),
    },
    "diffusers": {
        f"{FLAT}.lora_down.weight": ("F32", [1, 1], [1]),
        f"{FLAT}.lora_up.weight": ("F32", [1, 1], [1]),
    },
}


@pytest.mark.parametrize(
    ("to", "name", "shape", "words"),
    [
        ("kohya", "transformer.blocks.0.to_q.lora_A.weight", [1, 1], "transformer"),
        ("kohya", f"{LAYER}.lora_magnitude_vector", [2, 1], "magnitudes of the shape"),
        ("diffusers", "lora_unet_input_blocks_4_1_proj_in.lora_down.weight", [1, 1], "one of its two"),
        ("diffusers", "lora_unet_x.dora_scale", [1, 1], "one of its two"),
        ("kohya", f"{TEXT}.lora_A.weight", [1, 1], "one of its two"),
        ("diffusers", f"{FLAT}.dora_scale", [1, 2], "scaled by its 1 outputs"),
        ("diffusers", f"{FLAT}.hada_w1_a", [1, 1], "LyCORIS"),
    ],
)
def test_keys_that_the_other_form_does_not_have(tmp_path, to, name, shape, words):
    """Refused by name, rather than written so that half of it is lost."""
    odd = {name: ("F32", shape, [1] * (shape[0] * shape[1]))}
    file = write(tmp_path / "a.safetensors", PAIR[to] | odd)
    with pytest.raises(Rejected, match=words):
        lora_formats.convert(file, tmp_path / "out.safetensors", to)


@pytest.mark.parametrize(
    ("up", "words"),
    [
        (("F32", [1, 0], []), "has a number, or nothing, in place of a matrix"),
        (("F32", [], [1]), "has a number, or nothing, in place of a matrix"),
        (("F32", [1, 2], [1]), "it is not a safetensors file"),  # of one number, though its shape has two
        (("F16", [1, 1], []), "it is not a safetensors file"),
    ],
)
def test_damaged_tensors_are_refused(tmp_path, up, words):
    """Before a number of them is read."""
    tensors = PAIR["diffusers"] | {f"{FLAT}.lora_up.weight": up, f"{FLAT}.alpha": ("F32", [], [2])}
    with pytest.raises(Rejected, match=words):
        lora_formats.convert(
            write(tmp_path / "a.safetensors", tensors), tmp_path / "out.safetensors", "diffusers"
        )


ORIGINAL = {
    "input_blocks_4_1_transformer_blocks_0_attn2_to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_2_0_in_layers_2": "down_blocks.0.resnets.1.conv1",
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "label_emb_0_2": "add_embedding.linear_2",
}


@pytest.mark.parametrize("name", ORIGINAL)
def test_names_of_sdxls_original_code(name):
    """As Kohya's tools train SDXL: two layers a block."""
    assert lora_names.to_diffusers(f"lora_unet_{name}") == f"unet.{ORIGINAL[name]}"
