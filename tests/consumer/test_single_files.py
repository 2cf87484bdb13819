"""Models in one file: read without a network, refused by name, and drawn like the folder that they come from."""

from __future__ import annotations

import json
import pickle
import shutil
import struct

import pytest

from infra.models.card_options import split
from infra.models.cards import BUNDLED, Cards
from infra.models.model_files import find
from infra.models.single_files import read_single_file, write_configs
from schemas.errors import Rejected
from tests.single_files import write_checkpoint

DOODLE = BUNDLED / "doodle"


@pytest.fixture(scope="module")
def checkpoint(tiny_folder, tmp_path_factory):
    """The tiny Stable Diffusion 1 in one file."""
    return write_checkpoint(tiny_folder, tmp_path_factory.mktemp("files") / "pony.safetensors")


@pytest.fixture(scope="module")
def sdxl_folder(tiny_folder, tmp_path_factory):
    """A tiny SDXL whose text encoders differ in width, as those of the real one do."""
    from tests.studio import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("models") / "xl", tiny_folder, second_width=48)


@pytest.mark.parametrize("kind", ["sd1", "sd1 with a UNet in half", "sd2", "sdxl"])
def test_every_tensor_arrives(kind, tiny_folder, sdxl_folder, tmp_path):
    """In its place and precision, in all families, with nothing but the file and a folder's configs."""
    from safetensors.torch import load_file, save_file

    from consumer.engine.loading import single_file

    folder = sdxl_folder if kind == "sdxl" else tiny_folder
    path, half = tmp_path / "a.safetensors", kind.endswith("half")
    tensors = load_file(write_checkpoint(folder, path, open_clip=kind == "sd2"))
    if half:
        save_file({n: t.half() if n.startswith("model.diffusion") else t for n, t in tensors.items()}, path)
    file = read_single_file(path)
    configs = tmp_path / "configs"
    for path in folder.glob("**/*.json"):
        target = configs / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    single_file.save(file, configs, tmp_path / "out")
    weights = sorted(path.relative_to(folder) for path in folder.glob("*/*.safetensors"))
    assert weights == sorted(
        p.relative_to(tmp_path / "out") for p in (tmp_path / "out").glob("*/*.safetensors")
    )
    for path in weights:
        ours, theirs = load_file(folder / path), load_file(tmp_path / "out" / path)
        assert ours.keys() == theirs.keys()
        kept = {name: t.half() if half and path.parts[0] == "unet" else t for name, t in ours.items()}
        assert all(kept[name].equal(theirs[name]) for name in ours)
        assert all(kept[name].dtype == theirs[name].dtype for name in ours)
    assert str(tmp_path) not in "".join(p.read_text() for p in (tmp_path / "out").rglob("*.json"))


def test_a_worker_draws_with_a_file(tiny_folder, checkpoint, studio, task, apart):
    """The same picture as with the folder; the file may be named before the model that has its configs."""
    from consumer.engine.loading.registry import ModelRegistry

    cards = Cards.of([f"pony={checkpoint},steps=9,configs=tiny", f"tiny={tiny_folder}"])
    assert (cards.get("pony").steps, cards.get("pony").family) == (9, cards.get("tiny").family)
    assert "pony" in cards.here()
    room = studio(ModelRegistry(cards, offline=True))
    ended = room.draw(task("folder"), task("file", model="pony"))
    assert apart(ended["folder", 0].picture, ended["file", 0].picture) == 0
    assert ended["file", 0].model["source"] == str(checkpoint)


def test_configs_of_a_known_family_are_found(tmp_path):
    """doodle's are bundled; a folder's comma does not end its name."""
    file = write_checkpoint(DOODLE, tmp_path / "shapes.safetensors")
    found = find(Cards.of([f"shapes={file}"]).get("shapes"), offline=True, cache=None)
    assert found.configs == DOODLE
    assert found.elements == find(Cards().get("doodle"), offline=True, cache=None).elements
    assert split("a,b.safetensors,configs=/x/y,cfg=3") == (
        "a,b.safetensors",
        {"configs": "/x/y", "cfg_scale": 3},
    )


def test_a_worker_without_configs_says_where_to_get_them(checkpoint, tiny_folder, tmp_path, monkeypatch):
    """At its start, with the model's name, and a command."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    xl = header(tmp_path / "xl.safetensors", WHOLE | {CROSS: [1, 2048]})
    for setting, words in {
        f"pony={xl}": "model 'pony': .*hf download stabilityai/stable-diffusion-xl-base-1.0 .*pony=.*,configs=",
        f"pony={checkpoint}": "no model of its family is on this machine",
        f"pony={checkpoint},configs=doodle": "another family: pony.safetensors .* width 32, not 128",
        f"pony={checkpoint},configs=sdxl": "configs are to be those of 'sdxl', of which no file is on this machine",
        f"pony={checkpoint},configs=": "configs is ''; it should be a diffusers folder",
        f"pony={tiny_folder},configs=doodle": "a folder has its own",
        f"sd15={tmp_path}/nowhere.safetensors": "No such file",
    }.items():
        with pytest.raises(Rejected, match=words):
            Cards.of([setting])


def test_configs_that_name_other_libraries_are_refused(checkpoint, tiny_folder, tmp_path):
    """diffusers would import them; a published model's configs may be a stranger's."""
    shutil.copytree(tiny_folder, tmp_path / "configs")
    index = json.loads((tiny_folder / "model_index.json").read_text())
    index["scheduler"][0] = "somebodys_code"
    (tmp_path / "configs" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        Rejected, match="its scheduler comes from 'somebodys_code', not from diffusers or transf"
    ):
        Cards.of([f"pony={checkpoint},configs={tmp_path / 'configs'}"])


UNET, VAE, TEXT = (
    "model.diffusion_model.input_blocks.0.0.weight",
    "first_stage_model.encoder.conv_in.weight",
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
)
CROSS = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
WHOLE = {UNET: [1, 4, 1, 1], VAE: [1], TEXT: [1], CROSS: [1, 768]}


def header(file, shapes, dtype="F16", metadata=None):
    """A safetensors file of zeros."""
    document, offset = {"__metadata__": metadata or {}}, 0
    for name, shape in shapes.items():
        size = 2
        for side in shape:
            size *= side
        document[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(document).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return file


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "it holds no tensors"),
        ({"x.weight": [1]}, "'x.weight' is neither a tensor of a LoRA nor of a whole model"),
        ({"lora_unet_x.lora_down.weight": [1, 1]}, "it is a LoRA, not a whole model"),
        ({"model.diffusion_model.double_blocks.0.img_attn.proj.weight": [1]}, "such as Flux or SD 3"),
        ({"model.diffusion_model.joint_blocks.0.x": [1]}, "such as Flux or SD 3"),
        ({UNET: WHOLE[UNET], TEXT: [1]}, "it has no VAE"),
        ({UNET: WHOLE[UNET], VAE: [1]}, "it has no text encoder"),
        ({UNET: WHOLE[UNET], VAE: [1], "conditioner.embedders.0.model.ln_final.bias": [1]}, "a refiner"),
        (WHOLE | {UNET: [1, 8, 1, 1]}, "its UNet takes 8 channels"),
    ],
)
def test_what_is_not_a_checkpoint_is_named(shapes, words, tmp_path):
    with pytest.raises(Rejected, match=words):
        read_single_file(header(tmp_path / "a.safetensors", shapes))


def test_what_cannot_be_read_is_named(checkpoint, tmp_path):
    """A pickle under either name, a download that broke off, numbers of another kind."""
    body = checkpoint.read_bytes()
    contents = {
        "a.ckpt": (pickle.dumps({"state_dict": {}}), "it is a pickle"),
        "a.zip": (body, "it is not a .safetensors file"),
        "pickle.safetensors": (pickle.dumps({"state_dict": {}}), "it is not a safetensors file"),
        "short.safetensors": (body[:-1], "it ends too early; is the download complete?"),
    }
    for name, (content, words) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(Rejected, match=f"{name}: {words}"):
            read_single_file(tmp_path / name)
    with pytest.raises(Rejected, match="of the type F8_E4M3"):
        read_single_file(header(tmp_path / "b.safetensors", WHOLE, "F8_E4M3"))


@pytest.mark.parametrize(
    ("shapes", "metadata", "scheduler", "pipeline"),
    [
        (WHOLE, {}, {"prediction_type": "v_prediction"}, ""),
        (WHOLE, {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}, ""),
        (
            WHOLE | {"v_pred": [], "ztsnr": []},
            {},
            {
                "prediction_type": "v_prediction",
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
            },
            "",
        ),
        (WHOLE | {UNET: [1, 9, 1, 1]}, {}, {}, "Inpaint"),
    ],
)
def test_what_a_file_says_wins_over_the_configs(shapes, metadata, scheduler, pipeline, tmp_path):
    """What it predicts, by the marks that such files carry, and how many channels it takes."""
    file = read_single_file(header(tmp_path / "a.safetensors", shapes, metadata=metadata))
    assert file.dtypes == dict.fromkeys(("unet", "vae", "text_encoder"), "float16")
    (tmp_path / "out").mkdir()
    assert write_configs(file, DOODLE, tmp_path / "out") == f"StableDiffusion{pipeline}Pipeline"
    written = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler.items() <= written.items()
    unet = json.loads((tmp_path / "out/unet/config.json").read_text())
    assert unet["in_channels"] == file.channels
    (tmp_path / "given").mkdir()
    write_configs(file, DOODLE, tmp_path / "given", "epsilon")
    given = json.loads((tmp_path / "given/scheduler/scheduler_config.json").read_text())
    assert given["prediction_type"] == "epsilon"


def test_a_file_that_lacks_tensors_is_refused(checkpoint, tiny_folder, tmp_path):
    """diffusers would leave their layers empty."""
    from safetensors.torch import load_file, save_file

    from consumer.engine.loading import single_file

    tensors = load_file(checkpoint)
    lost = "model.diffusion_model.middle_block.1.proj_in.weight"
    word = "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1.weight"
    for kept, words in (
        ({name: t for name, t in tensors.items() if name != lost}, "tensors of its UNet or VAE are missing"),
        (
            {name: t for name, t in tensors.items() if name != word},
            r"text_encoder\..*mlp.fc1.weight is missing",
        ),
        (tensors | {lost: tensors[lost][:1].clone()}, "does not fit the configs in .* expected shape"),
    ):
        save_file(kept, tmp_path / "a.safetensors")
        with pytest.raises(Rejected, match=words):
            single_file.save(read_single_file(tmp_path / "a.safetensors"), tiny_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
