"""LoRA files: what is loaded, what is refused and in which words, and what is unloaded again."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import re
import struct
import subprocess
import sys

import pytest
import torch

from consumer.intake.claiming import RequestClaimer
from consumer.renderer.protocol import Drawn, Lora
from infra.models.cards import Cards
from infra.models.lora_files import find_loras
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from schemas.plan import Plan


def test_loras_are_switched_between_rows_that_differ(make_registry, lora_file, studio, task, alone, apart):
    """Images with, without, and with a weaker LoRA are drawn side by side, each as if alone."""
    registry = make_registry(loras={"style": lora_file})
    tasks = [
        task("bare", steps=3),
        task("full", steps=3, loras=(Lora("style", 1.0),)),
        task("half", steps=3, loras=(Lora("style", 0.5),)),
    ]
    room = studio(registry)
    ended = room.draw(*tasks)
    pictures = [ended[t.request, 0].picture for t in tasks]

    assert all(apart(p, alone(registry, t)) <= 1 for p, t in zip(pictures, tasks, strict=True))
    assert apart(pictures[0], pictures[1]) > 1
    assert apart(pictures[1], pictures[2]) > 1
    assert room.engine.counters.unet_calls == 9
    assert room.engine.counters.text_rows == 6  # two texts under three LoRA sets


def test_an_unknown_lora_is_rejected_with_the_known(make_registry, lora_file, studio, task):
    """The image that asks for it fails with the field; its neighbour is drawn."""
    room = studio(make_registry(loras={"style": lora_file}))
    ended = room.draw(task("bad", loras=(Lora("stile", 1.0),)), task("good"))

    assert (ended["bad", 0].code, ended["bad", 0].field) == ("unknown_lora", "loras")
    assert "known are style" in ended["bad", 0].message
    assert isinstance(ended["good", 0], Drawn)


def test_a_file_that_is_no_lora_is_rejected(make_registry, tiny_folder, studio, task):
    """Weights that do not fit are named, and the model goes on without them."""
    wrong = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    room = studio(make_registry(loras={"wrong": wrong}))
    ended = room.draw(task("bad", loras=(Lora("wrong", 1.0),)), task("good"))

    assert ended["bad", 0].code == "unsupported"
    assert isinstance(ended["good", 0], Drawn)


@pytest.fixture
def tensors(lora_file):
    """The tensors of the LoRA that fits, to be spoilt."""
    from safetensors.torch import load_file

    return load_file(lora_file)


def _kohya(tensors, alpha=4.0):
    """The same LoRA with Kohya's names; its rank is 4."""
    import torch

    renamed = {}
    for key, tensor in tensors.items():
        layer, half = re.match(
            r"(.+?)(?:\.lora|\.lora_linear_layer)?\.(lora_A|lora_B|down|up)\.weight$", key
        ).groups()
        part, _, inner = layer.partition(".")
        prefix = "lora_unet_" if part == "unet" else "lora_te_text_model_"
        name = prefix + inner.removeprefix("text_model.").replace(".", "_")
        renamed[f"{name}.lora_{'down' if half in ('lora_A', 'down') else 'up'}.weight"] = tensor
        renamed[f"{name}.alpha"] = torch.tensor(alpha)
    return renamed


def test_kohyas_names_give_the_same_picture(make_registry, lora_file, tensors, studio, task, apart, tmp_path):
    """Both spellings of one LoRA are placed layer by layer."""
    from safetensors.torch import save_file

    save_file(_kohya(tensors), tmp_path / "kohya.safetensors")
    room = studio(make_registry(loras={"ours": lora_file, "kohya": tmp_path / "kohya.safetensors"}))
    ended = room.draw(task("a", loras=(Lora("ours", 1.0),)), task("b", loras=(Lora("kohya", 1.0),)))
    assert apart(ended["a", 0].picture, ended["b", 0].picture) <= 1


def test_kohyas_alpha_counts(make_registry, tensors, studio, task, apart, tmp_path):
    """In the UNet and in the text encoder: alpha 1 at rank 4 is a quarter of the strength."""
    from safetensors.torch import save_file

    weak = {
        key: tensor / 4 if re.search(r"lora_B|\.up\.", key) else tensor for key, tensor in tensors.items()
    }
    files = {"alpha": _kohya(tensors, 1.0), "weak": _kohya(weak)}
    for name, content in files.items():
        save_file(content, tmp_path / f"{name}.safetensors")
    room = studio(make_registry(loras={name: tmp_path / f"{name}.safetensors" for name in files}))
    ended = room.draw(*[task(name, loras=(Lora(name, 1.0),)) for name in files])
    assert apart(ended["alpha", 0].picture, ended["weak", 0].picture) <= 1


def _half_foreign(tensors):
    kept = dict(list(tensors.items())[: len(tensors) // 2])
    return kept | {
        "transformer.blocks.0.attn.to_q." + k.rsplit(".", 2)[1] + ".weight": v for k, v in tensors.items()
    }


def _magnitudes(tensors, part):
    ups = {k: v for k, v in tensors.items() if k.startswith(part) and re.search(r"lora_B|\.up\.", k)}
    return {
        re.sub(r"\.lora(_B|_linear_layer\.up|\.up)\.weight", ".lora_magnitude_vector", k): v[:, 0]
        for k, v in ups.items()
    }


SPOILT = {
    "half of it is foreign": (_half_foreign, "another family"),
    "all of it is foreign": (lambda t: {"transformer." + k: v for k, v in t.items()}, "another family"),
    "a second text encoder": (
        lambda t: t | {k.replace("text_encoder", "text_encoder_2"): v for k, v in t.items() if "text" in k},
        "SDXL",
    ),
    "one layer too many": (
        lambda t: t | {f"unet.mid_block.attentions.7.proj_in.{k.rsplit('.', 2)[1]}.weight": v for k, v in t.items()},
        "unet.mid_block.attentions.7.proj_in",
    ),
    "another width": (lambda t: {k: v.repeat(1, 2) if v.shape[0] == 4 else v for k, v in t.items()}, "shape"),
    "one half of a pair": (lambda t: dict(list(t.items())[1:]), "no other half"),
    "LyCORIS": (lambda t: _kohya(t) | {"lora_unet_x.lokr_w1": next(iter(t.values()))}, "LyCORIS"),
    "a DoRA of Kohya's": (lambda t: _kohya(t) | {"lora_unet_x.dora_scale": next(iter(t.values()))}, "DoRA"),
    "a DoRA of the text encoder": (lambda t: t | _magnitudes(t, "text_encoder."), "leaves out"),
    "no LoRA at all": (lambda t: {"conv.weight": next(iter(t.values()))}, "conv.weight"),
}  # fmt: skip


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_that_does_not_fit_as_a_whole_is_refused(
    how, make_registry, lora_file, tensors, studio, task, apart, tmp_path
):
    """At the first attempt, with the file's name and what is wrong; a LoRA that fits works beside it."""
    from safetensors.torch import save_file

    spoil, words = SPOILT[how]
    file = tmp_path / "spoilt.safetensors"
    save_file({key: tensor.clone().contiguous() for key, tensor in spoil(tensors).items()}, file)
    registry = make_registry(loras={"spoilt": file, "style": lora_file})
    room = studio(registry)
    style = task("style", loras=(Lora("style", 1.0),))
    before = room.draw(style)["style", 0].picture
    ended = room.draw(task("bad", loras=(Lora("spoilt", 1.0),)), task("both", loras=(Lora("style", 1.0),)))

    bad = ended["bad", 0]
    assert (bad.code, bad.field, bad.retry) == ("unsupported", "loras", False)
    assert "spoilt.safetensors" in bad.message
    assert words in bad.message
    assert apart(before, ended["both", 0].picture) == 0
    assert registry.get("tiny").adapters.loaded() == ["style"]


def _write(folder, how, good):
    body = good.read_bytes()
    header = json.dumps({"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}).encode()
    contents = {
        "empty": b"",
        "truncated": body[: len(body) // 2],
        "cut in its header": body[:40],
        "a pickle": pickle.dumps({"a": 1}),
        "no tensors": struct.pack("<Q", 2) + b"{}",
        "no numbers": struct.pack("<Q", len(header)) + header,
        "not JSON": struct.pack("<Q", 2) + b"[]",
    }
    file = folder / "bad.safetensors"
    file.write_bytes(contents[how])
    return file


BROKEN = ["empty", "truncated", "cut in its header", "a pickle", "no tensors", "no numbers", "not JSON"]


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_file_is_refused_at_the_first_attempt(how, make_registry, lora_file, studio, task, tmp_path):
    """Also when it broke after the worker's start."""
    room = studio(make_registry(loras={"bad": _write(tmp_path, how, lora_file)}))
    bad = room.draw(task("bad", loras=(Lora("bad", 1.0),)))["bad", 0]
    assert (bad.code, bad.retry) == ("unsupported", False)
    assert "bad.safetensors" in bad.message


@pytest.mark.parametrize(
    "how", [*BROKEN, "missing", "a pickle's name", "empty folder", "named twice", "no name"]
)
def test_a_bad_setting_stops_the_start(how, lora_file, tmp_path):
    """One sentence that names the LoRA."""
    settings = {
        "missing": [f"bad={tmp_path / 'nowhere.safetensors'}"],
        "a pickle's name": [f"bad={tmp_path / 'bad.bin'}"],
        "empty folder": [f"bad={tmp_path}"],
        "named twice": [f"bad={lora_file}", f"bad={lora_file}"],
        "no name": [str(lora_file)],
    }
    (tmp_path / "bad.bin").write_bytes(lora_file.read_bytes())
    with pytest.raises(Rejected, match=r"bad|name=file"):
        find_loras(settings.get(how) or [f"bad={_write(tmp_path, how, lora_file)}"])


def test_the_worker_says_in_one_line_why_it_does_not_start(tmp_path):
    """No traceback, and a status of its own."""
    command = [sys.executable, "-m", "producer.cli", "worker", "--store", str(tmp_path / "store")]
    options = ["--renderer", "null", "--once", "--loras", f"ink={tmp_path / 'ink.safetensors'}"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 3
    assert "there is no such file" in ended.stderr
    assert "Traceback" not in ended.stderr


def _plan(cards, manifest):
    claimer = RequestClaimer(None, None, cards, "doodle", Limits(), lambda: 0.0, random.Random(1))
    return claimer.plan(manifest, asyncio.run(claimer.names.read(manifest, 0.0)))


def test_the_plan_holds_each_files_hash(lora_file, tmp_path):
    """Another file under the same name is another plan; a plan of an older worker stays readable."""
    manifest = validate_manifest({"prompt": "x", "seed": 1, "loras": [{"name": "ink"}]})
    other = tmp_path / "other.safetensors"
    other.write_bytes(lora_file.read_bytes() + b" ")
    plans = [_plan(Cards.of((), [f"ink={file}"]), manifest) for file in (lora_file, other)]
    assert plans[0].hash() != plans[1].hash()
    assert len(plans[0].document()["lora_hashes"]["ink"]) == 64

    bare = _plan(Cards.of(), validate_manifest({"prompt": "x", "seed": 1}))
    assert "lora_hashes" not in bare.document()
    old = {key: value for key, value in plans[0].document().items() if key != "lora_hashes"}
    assert Plan.model_validate(old).document() == old


def test_an_unknown_lora_is_refused_when_it_is_claimed():
    """Before any model is loaded."""
    with pytest.raises(Rejected, match="no LoRA is named 'ink'; none is known") as refused:
        _plan(Cards.of(), validate_manifest({"prompt": "x", "loras": [{"name": "ink"}]}))
    assert (refused.value.code, refused.value.field) == ("unknown_lora", "loras")


def test_one_lora_named_twice_is_refused():
    """It would act once, with one of the two weights."""
    with pytest.raises(Rejected, match="loras names 'ink' twice"):
        validate_manifest({"prompt": "x", "loras": [{"name": "ink"}, {"name": "ink", "weight": 0.5}]})


def test_a_file_that_was_replaced_is_not_drawn_with(make_registry, lora_file, studio, task):
    """The plan's hash is another one: the request goes back, and says why."""
    room = studio(make_registry(loras={"style": lora_file}))
    bad = room.draw(task("bad", loras=(Lora("style", 1.0, "0" * 64),)))["bad", 0]
    assert bad.retry
    assert "not the file that the request was planned with" in bad.message


def test_loras_are_unloaded_by_use(make_registry, lora_file, studio, task, apart):
    """Eight stay in the layers; one that was unloaded is loaded again when it is asked for."""
    registry = make_registry(loras={f"style{n}": lora_file for n in range(11)})
    room = studio(registry)
    pictures = [
        room.draw(task(f"r{n}", steps=1, loras=(Lora(f"style{n}", 1.0),)))[f"r{n}", 0].picture
        for n in range(11)
    ]
    assert registry.get("tiny").adapters.loaded() == [f"style{n}" for n in range(3, 11)]
    again = room.draw(task("again", steps=1, loras=(Lora("style0", 1.0),)))["again", 0].picture
    assert apart(again, pictures[0]) == 0
    assert registry.get("tiny").adapters.loaded() == [*(f"style{n}" for n in range(4, 11)), "style0"]
    layer = next(m for m in registry.get("tiny").plain["text2img"].unet.modules() if hasattr(m, "lora_A"))
    assert len(layer.lora_A) == 8


def test_more_loras_than_are_kept_stay_while_images_use_them(make_registry, lora_file, studio, task):
    """Twelve images in flight, each with its own."""
    registry = make_registry(loras={f"style{n}": lora_file for n in range(12)})
    room = studio(registry, max_rows=16)
    ended = room.draw(*[task(f"r{n}", steps=2, loras=(Lora(f"style{n}", 1.0),)) for n in range(12)])
    assert all(isinstance(one, Drawn) for one in ended.values()), ended


def test_a_switch_sets_what_diffusers_would_set(make_registry, lora_file, monkeypatch):
    """Bit by bit, and without its walk through every module of the model."""
    model = make_registry(loras={"a": lora_file, "b": lora_file}).get("tiny")
    pipe, latents = model.plain["text2img"], torch.ones(1, 4, 4, 4)

    def answer() -> torch.Tensor:
        return pipe.unet(latents, 5, torch.ones(1, 16, 32), return_dict=False)[0]

    drawn = []
    for loras in ((Lora("a", 1.0),), (Lora("a", 0.5), Lora("b", -2.0)), (), (Lora("b", 1.0),)):
        with monkeypatch.context() as patched:
            for name in ("set_adapters", "enable_lora", "disable_lora"):
                patched.setattr(type(pipe), name, None, raising=False)
            model.adapters.ensure(loras)
            model.adapters.switch(loras)
            drawn.append(answer())
        inner = {name: inner for name, inner in model.adapters._names.values()}
        pipe.enable_lora() if loras else pipe.disable_lora()
        if loras:
            pipe.set_adapters([inner[lora.name] for lora in loras], [lora.weight for lora in loras])
        assert torch.equal(answer(), drawn[-1])
        model.adapters._active = None
    assert not torch.equal(drawn[0], drawn[2])
