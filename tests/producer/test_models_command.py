"""`dreamdrop models ...`: import, show, use, rollback, verify, export and remove, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.models import lora_formats, published
from infra.models.cards import BUNDLED
from infra.models.safetensors_header import read_header
from infra.stores.open import open_store
from producer.models import exchange
from schemas.errors import Rejected
from tests.tensor_files import FLAT, LAYER, TEXT, read, write

DOODLE = BUNDLED / "doodle"
pytestmark = pytest.mark.anyio


@pytest.fixture
def lora(tmp_path):
    """A LoRA of rank 2 for SD 1.x, in diffusers' form."""
    down = [n / 8 for n in range(2 * 768)]
    tensors = {
        f"{LAYER}.lora_A.weight": ("F16", [2, 768], down),
        f"{LAYER}.lora_B.weight": ("F16", [3, 2], [1, 2, 3, 4, 5, 6]),
        f"{TEXT}.lora_linear_layer.down.weight": ("F32", [2, 1], [1, 2]),
        f"{TEXT}.lora_linear_layer.up.weight": ("F32", [1, 2], [3, 4]),
    }
    return write(tmp_path / "lora.safetensors", tensors)


@pytest.fixture
def dreamdrop(tmp_path, monkeypatch):
    """Run a command on a store; no torch may be imported."""

    def run(*arguments, ok=True):
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        environment |= {"DREAMDROP_STORE": str(tmp_path / "store")}
        code = (
            "import sys\nfrom producer.cli import app, main\nsys.argv[0]='dreamdrop'\n"
            "try: main()\nfinally: assert not {'torch', 'numpy', 'safetensors'} & sys.modules.keys()"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True, text=True, env=environment, timeout=300, check=False,
        )  # fmt: skip
        assert "Traceback" not in ended.stderr, ended.stderr
        assert (ended.returncode == 0) == ok, ended.stderr
        return ended

    (tmp_path / "store").mkdir()
    return run


def test_the_life_of_a_lora(dreamdrop, lora, tmp_path):
    """Imported, shown, imported again, moved, verified, exported for Kohya's tools, removed."""
    said = dreamdrop("models", "import", lora, "--name", "ink", "--weight", "0.8", "--trigger", "sks").stderr
    assert 'published ink@1; use it as "model": "ink"' in said
    card = json.loads(dreamdrop("models", "show", "ink", "--json").stdout)["card"]
    assert (card["base"], card["family"], card["weight"], card["kind"]) == ("sd15", "sd1", 0.8, "lora")
    shown = dreamdrop("models", "show", "ink@1").stdout
    assert "trigger words:  sks" in shown

    dreamdrop("models", "import", lora, "--name", "ink", "--base", "sd15")
    assert (
        "ink\tin the store, about 3.71 kB\tpublished: version 1, version 2"
        in dreamdrop("models", "list").stdout
    )
    assert json.loads(dreamdrop("models", "--json").stdout)["models"][0]["versions"] == ["1", "2"]
    assert "ink means ink@1 now" in dreamdrop("models", "use", "ink@1").stderr
    assert json.loads(dreamdrop("models", "rollback", "ink", "--json").stdout) == {
        "name": "ink",
        "version": 2,
    }

    assert "is sound" in dreamdrop("models", "verify", "ink").stderr
    weights = tmp_path / "store" / "models" / "ink" / "2" / "pytorch_lora_weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert "is damaged" in dreamdrop("models", "verify", "ink", ok=False).stdout
    assert "is damaged" in dreamdrop("models", "export", "ink", "-o", tmp_path / "x", ok=False).stderr

    out = tmp_path / "kohya.safetensors"
    dreamdrop("models", "export", "ink@1", "--format", "kohya", "-o", out)
    tensors, _ = read(out)
    assert tensors[f"{FLAT}.alpha"] == (2.0,)
    assert tensors[f"{FLAT}.lora_up.weight"] == (1, 2, 3, 4, 5, 6)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in tensors
    assert "is there already" in dreamdrop("models", "export", "ink@1", "-o", out, ok=False).stderr

    assert "is what ink means now" in dreamdrop("models", "remove", "ink@2", ok=False).stderr
    dreamdrop("models", "remove", "ink@1")
    dreamdrop("models", "remove", "ink")
    assert "no model is published as 'ink'" in dreamdrop("models", "show", "ink", ok=False).stderr


def test_a_folder_is_imported_and_exported(dreamdrop, tmp_path):
    """Only what a worker loads; the rest is named."""
    said = dreamdrop("models", "import", DOODLE, "--name", "copy", "--licence", "Apache-2.0").stderr
    assert "left out: README.md, grid.png" in said
    card = json.loads(dreamdrop("models", "show", "copy", "--json").stdout)["card"]
    assert (card["family"], card["prediction_type"]) == ("doodle", "v_prediction")
    assert (card["native_width"], card["kind"], card["licence"]) == (128, "full", "Apache-2.0")
    dreamdrop("models", "export", "copy", "-o", tmp_path / "out")
    for name in ("model_index.json", "unet/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (DOODLE / name).read_bytes()
    assert "is for LoRAs" in dreamdrop(
        "models", "export", "copy", "--format", "kohya", "-o", tmp_path / "x", ok=False
    ).stderr  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: p / "nowhere", "there is no such file"),
        (lambda p: p, "neither a diffusers folder"),
        (lambda p: write(p / "a.safetensors", {"x": ("F32", [1], [1])}), "a tensor neither of a LoRA"),
        (
            lambda p: write(p / "a.safetensors", {"model.diffusion_model.x": ("F32", [1], [1])}),
            "such as Flux or SD 3",
        ),
        (lambda p: write(p / "a.safetensors", {f"{TEXT}.lora_A.weight": ("F32", [1, 1], [1])}), "--base"),
    ],
)
def test_what_is_not_imported(dreamdrop, tmp_path, make, words):
    """By name, with what to do; nothing is published."""
    folder = tmp_path / "given"
    folder.mkdir()
    assert words in dreamdrop("models", "import", make(folder), "--name", "x", ok=False).stderr
    assert list((tmp_path / "store").rglob("*.taken")) == []


def test_pickles_and_code_are_not_imported(dreamdrop, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(DOODLE, folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "weights.bin")
    assert (
        "its unet is a pickle (weights.bin)"
        in dreamdrop("models", "import", folder, "--name", "x", ok=False).stderr
    )
    (folder / "pipeline.py").write_text("")
    assert "brings its own code" in dreamdrop("models", "import", folder, "--name", "x", ok=False).stderr
    assert "built-in model" in dreamdrop("models", "import", DOODLE, "--name", "sd21", ok=False).stderr


@pytest.mark.parametrize(
    ("tensors", "options", "words"),
    [
        ({f"{LAYER}.lora_A.weight": 768}, {"base": "sdxl"}, "of the family sd1; sdxl is of sdxl"),
        (
            {f"{LAYER}.lora_A.weight": 768, "transformer.x.weight": 1},
            {},
            "'transformer.x.weight' is a tensor neither",
        ),
        (
            {f"{FLAT}.lora_down.weight": 768, "lora_unet_x.lokr_w1": 1},
            {},
            "'lora_unet_x.lokr_w1' is a tensor neither",
        ),
        (
            {f"{TEXT}.lora_A.weight": 1, f"{TEXT}.lora_magnitude_vector": 1},
            {"base": "sd15"},
            "a DoRA of a text encoder",
        ),
    ],
)
def test_loras_that_no_worker_would_draw_are_not_imported(tmp_path, tensors, options, words):
    """A worker would refuse them with their first request."""
    shapes = {name: ("F32", [1, width], [0] * width) for name, width in tensors.items()}
    file = write(tmp_path / "a.safetensors", shapes)
    with pytest.raises(Rejected, match=words):
        exchange.prepare(file, "x", tmp_path, **options)


@pytest.mark.parametrize("spelling", ["diffusers", "kohya"])
def test_a_lora_is_published_as_it_is(lora, tmp_path, spelling):
    """In either spelling, which workers read; a folder with one file is that file."""
    given = tmp_path / "given"
    given.mkdir()
    lora_formats.convert(lora, given / "a.safetensors", spelling)
    folder, card, left_out = exchange.prepare(given, "x", tmp_path, trigger=("sks",))
    assert (folder / "pytorch_lora_weights.safetensors").read_bytes() == (
        given / "a.safetensors"
    ).read_bytes()
    assert (card.kind, card.base, card.family, card.trigger_words, left_out) == (
        "lora",
        "sd15",
        "sd1",
        ("sks",),
        [],
    )


def test_a_whole_model_in_one_file_is_told_from_a_lora(lora, tmp_path):
    """By its header; a pickle is refused before it is opened, and so is a file that broke off."""
    model = write(tmp_path / "a.safetensors", {"model.diffusion_model.x": ("F32", [1], [1])})
    found = [exchange.is_single_file(path) for path in (model, lora, DOODLE, tmp_path / "nowhere")]
    assert found == [True, False, False, False]
    for name, words in (("a.ckpt", "it is a pickle"), ("b.safetensors", "it ends too early")):
        (tmp_path / name).write_bytes(model.read_bytes()[:-1])
        with pytest.raises(Rejected, match=f"{name}: {words}"):
            exchange.is_single_file(tmp_path / name)


def test_a_weight_is_a_number_and_for_loras(lora, tmp_path):
    with pytest.raises(Rejected, match="weight is nan"):
        exchange.prepare(lora, "x", tmp_path, weight=float("nan"))
    with pytest.raises(Rejected, match="--weight is for a LoRA"):
        exchange.prepare(DOODLE, "x", tmp_path, weight=0.5)


async def test_a_dora_goes_to_kohyas_tools_and_comes_back(tmp_path):
    """Magnitudes have one number for each output; the file that comes back has the same tensors and strength."""
    conv = "unet.down_blocks.0.resnets.0.conv1"
    tensors = {
        f"{LAYER}.lora_A.weight": ("F32", [2, 768], [n / 8 for n in range(2 * 768)]),
        f"{LAYER}.lora_B.weight": ("F32", [3, 2], [1, 2, 3, 4, 5, 6]),
        f"{LAYER}.lora_magnitude_vector": ("F32", [3], [7, 8, 9]),
        f"{conv}.lora_A.weight": ("F16", [1, 2, 1, 1], [1, 2]),
        f"{conv}.lora_B.weight": ("F16", [2, 1, 1, 1], [1, 2]),
        f"{conv}.lora_magnitude_vector": ("F16", [1, 2, 1, 1], [3, 4]),
    }
    settings = {"unet.r": 2, "unet.lora_alpha": 1, "unet.alpha_pattern": {"conv1": 1}, "unet.use_dora": True}
    file = write(tmp_path / "dora.safetensors", tensors, {lora_formats.METADATA: json.dumps(settings)})
    kohya = tmp_path / "kohya.safetensors"
    async with open_store(str(tmp_path / "store")) as store:

        async def bring(source, name):
            scratch = tmp_path / name
            scratch.mkdir()
            folder, card, _ = exchange.prepare(source, name, scratch)
            return await published.publish(store, folder, card)

        await bring(file, "ink")
        await exchange.save(store, "ink", kohya, "kohya", lambda *_: None)
        shapes = {name: list(entry.shape) for name, entry in read_header(kohya).entries.items()}
        assert shapes[f"{FLAT}.dora_scale"] == [3, 1]
        assert shapes["lora_unet_down_blocks_0_resnets_0_conv1.dora_scale"] == [2, 1, 1, 1]
        assert read(kohya)[0][f"{FLAT}.alpha"] == (1.0,)

        card = await bring(kohya, "back")
        assert (card.base, card.family) == ("sd15", "sd1")
        await exchange.save(store, "back", tmp_path / "out.safetensors", "diffusers", lambda *_: None)
    back = read_header(tmp_path / "out.safetensors").entries
    assert {name: list(entry.shape) for name, entry in back.items()} == {n: t[1] for n, t in tensors.items()}
    numbers, _ = read(tmp_path / "out.safetensors")
    halved = {f"{LAYER}.lora_B.weight"}  # alpha 1 at rank 2, folded in
    for name, (_, _, expected) in tensors.items():
        assert numbers[name] == tuple(n / 2 if name in halved else n for n in expected), name
