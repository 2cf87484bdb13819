"""ControlNet through A1111's endpoints: the units of its extension, and its lists."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image

from producer.web.a1111.controlnet import controls, names
from schemas.errors import Rejected
from schemas.limits import Limits
from tests.producer.facade import facade, ready, worker

ASK = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64}


def png(size: tuple[int, int] = (64, 64)) -> str:
    out = io.BytesIO()
    Image.new("RGB", size, "teal").save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


UNIT = {"image": png(), "model": "canny"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker that knows a ControlNet of two for its model, and one for another."""
    folder = tmp_path_factory.mktemp("controlnet")
    header = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    nets = []
    for name, width in (("canny", 128), ("depth", 128), ("wide", 2048)):
        config = {"_class_name": "ControlNetModel", "cross_attention_dim": width}
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        weights = len(header).to_bytes(8, "little") + header + b"x"
        (folder / name / "diffusion_pytorch_model.safetensors").write_bytes(weights)
        nets += ["--controlnets", f"{name}={folder / name}"]
    with worker(folder / "store", *nets):
        yield folder / "store"


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    with facade(store) as listening:
        ready(listening)
        yield listening


def asked(address: str, *units: dict[str, Any], path: str = "txt2img", **fields: Any) -> httpx.Response:
    body = {**ASK, "alwayson_scripts": {"controlnet": {"args": list(units)}}, **fields}
    return httpx.post(f"{address}/sdapi/v1/{path}", json=body, timeout=60)


def manifest_of(store: Path, answer: httpx.Response) -> dict[str, Any]:
    """The request that a worker was given."""
    assert answer.status_code == 200, answer.text
    id = json.loads(answer.json()["info"])["dreamdrop"]["id"]
    frozen = json.loads((store / "results" / id / "result.json").read_text())["request"]
    document: dict[str, Any] = json.loads(frozen["text"])
    return document


def test_the_client_of_its_users_draws_with_it(address: str) -> None:
    """With the values that it sends unasked; and it finds the lists."""
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", sampler="Euler a")
    unit = webuiapi.ControlNetUnit(image=Image.new("RGB", (64, 64), "teal"), model="canny", weight=0.5)
    mine: dict[
        str, Any
    ] = {}  # the client writes into its default, and the next test's request would have the unit
    drawn = api.txt2img(
        prompt="x", steps=2, width=64, height=64, controlnet_units=[unit], alwayson_scripts=mine
    )
    assert drawn.image.size == (64, 64)
    assert drawn.info["dreamdrop"]["warnings"] == []
    assert api.controlnet_model_list() == ["canny", "depth", "wide"]
    assert (api.controlnet_module_list(), api.controlnet_version()) == (["none"], 3)
    models = httpx.get(f"{address}/models").json()
    assert (models["controlnets"], models["ip_adapters"]) == (["canny", "depth", "wide"], [])
    api.session.close()


def test_units_become_controlnets(address: str, store: Path) -> None:
    """Those that are on; a hash behind a model's name is left out; a response repeats no picture."""
    off = {"enabled": False, "module": "canny", "model": "nope"}
    other = {
        "input_image": png(),
        "model": "depth [d14c016b]",
        "weight": "0.5",
        "guidance_start": 0.1,
        "guidance_end": 0.9,
    }
    answer = asked(
        address, UNIT, off, other | {"control_mode": "Balanced", "pixel_perfect": True, "resize_mode": 2}
    )
    made = manifest_of(store, answer)["controlnet"]
    assert made == [
        {"name": "canny", "image": UNIT["image"]},
        {"name": "depth", "image": UNIT["image"], "scale": 0.5, "start": 0.1, "end": 0.9},
    ]
    assert UNIT["image"] not in json.dumps(answer.json()["parameters"])
    assert answer.json()["parameters"]["alwayson_scripts"]["controlnet"]["args"][0]["model"] == "canny"


def test_in_img2img_a_unit_without_a_picture_reads_the_one_that_is_redrawn(address: str, store: Path) -> None:
    """As the extension does."""
    made = manifest_of(store, asked(address, {"model": "canny"}, path="img2img", init_images=[png()]))
    assert made["controlnet"][0]["image"] == made["image"]


def test_a_picture_of_another_size_is_told_by_the_callers_name(address: str) -> None:
    answer = asked(address, UNIT | {"image": png((128, 64))})
    notes = json.loads(answer.json()["info"])["dreamdrop"]["warnings"]
    assert [(note["code"], note["field"]) for note in notes] == [
        ("control_resized", "alwayson_scripts.controlnet.args.0.image")
    ]
    assert notes[0]["message"].startswith("alwayson_scripts.controlnet.args.0.image was 128 x 64")


@pytest.mark.parametrize(
    ("unit", "field", "words"),
    [
        ({"module": "canny"}, "module", "preprocessors do not run here"),
        ({"model": "None"}, "model", "is missing"),
        ({"model": "pose"}, "model", "known are canny, depth"),
        ({"model": "wide"}, "model", "made for models of the family sdxl; doodle is of doodle"),
        ({"image": None}, "image", "is missing"),
        ({"image": "hello!"}, "image", "is not valid base64"),
        ({"image": base64.b64encode(b"text").decode()}, "image", "cannot be read as a picture"),
        ({"image": {"image": png(), "mask": png()}}, "image.mask", "is not supported"),
        ({"mask": png()}, "mask", "is not supported"),
        ({"control_mode": "ControlNet is more important"}, "control_mode", "use Balanced"),
        ({"weight": 9}, "weight", "is 9"),
        ({"weight": "much"}, "weight", "should be a number"),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_end", "should be more than"),
        ({"guidance": 0.5}, "guidance", "is not supported"),
        ({"wieght": 1}, "wieght", "is not supported"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_its_name(
    address: str, unit: dict[str, Any], field: str, words: str
) -> None:
    """Also where the worker refuses it."""
    refused = asked(address, {"enabled": False}, UNIT | unit)
    assert refused.status_code == 422, refused.text
    fault = refused.json()["detail"][0]
    assert ".".join(fault["loc"][1:]) == f"alwayson_scripts.controlnet.args.1.{field}"
    assert words in fault["msg"]


def test_too_many_units_are_refused(address: str) -> None:
    fault = asked(address, *[UNIT] * 5).json()["detail"][0]
    assert ".".join(fault["loc"][1:]) == "alwayson_scripts.controlnet.args"
    assert "names 5; at most 4 can be combined" in fault["msg"]


def test_no_shape_of_units_breaks_the_translation() -> None:
    """Whatever a program sends is translated or refused."""
    for scripts in (
        None,
        [],
        "x",
        {"controlnet": None},
        {"controlnet": {"args": {}}},
        {"ControlNet": {"args": [None, 7]}},
    ):
        assert (
            controls({"alwayson_scripts": scripts}, Limits(), None),
            names({"alwayson_scripts": scripts}),
        ) == ([], {})
    with pytest.raises(Rejected):
        controls({"alwayson_scripts": {"controlnet": {"args": [{"model": ["x"]}]}}}, Limits(), None)
