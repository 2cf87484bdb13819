"""A worker draws manifests with ControlNets and IP-Adapters, and refuses what cannot be, each by its field."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consumer.intake.fleet import Capabilities
from consumer.intake.names import Names
from infra.models.addons.known import Addons
from infra.models.cards import Cards
from infra.models.folders import WIDTHS
from schemas.errors import Rejected
from schemas.limits import Limits
from schemas.manifest import validate_manifest
from tests.tiny.addons import picture, save_controlnet, save_ip_adapter
from tests.worker_process import drop, result, worker

pytestmark = pytest.mark.anyio


def png(width: int = 32, height: int = 32, seed: int = 1) -> str:
    raw, buffer = picture(seed, width, height), io.BytesIO()
    Image.frombytes("RGB", (width, height), raw.data).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


NET = {"name": "canny", "image": png()}
DRAW = {"prompt": "a red dot", "steps": 2, "seed": 3, "width": 32, "height": 32}
#: By id: what is added to `DRAW`, and the field and words of the refusal; None: it is drawn.
REQUESTS: dict[str, tuple[dict[str, Any], tuple[str, str] | None]] = {
    "plain": ({}, None),
    "canny": ({"controlnet": [NET]}, None),
    "both": ({"controlnet": [NET, NET | {"name": "depth", "scale": 0.5, "end": 0.5}]}, None),
    "face": ({"ip_adapter": {"image": png(50, 40, 2)}}, None),
    "named": ({"controlnet": [NET | {"image": "uploads/edges.png"}]}, None),
    "resized": ({"controlnet": [NET | {"image": png(64, 32)}]}, None),
    "unknown": (
        {"controlnet": [NET, NET | {"name": "pose"}]},
        ("controlnet.1.name", "known are canny, depth"),
    ),
    "no-such-face": (
        {"ip_adapter": {"name": "hands", "image": png()}},
        ("ip_adapter.name", "known are face"),
    ),
    "strict": (
        {"controlnet": [NET | {"image": png(64, 32)}], "strict": True},
        ("controlnet.0.image", "was 64 x 32; scaled to cover the drawn 32 x 32"),
    ),
    "no-picture": (
        {"controlnet": [NET, NET | {"image": base64.b64encode(b"text").decode()}]},
        ("controlnet.1.image", "cannot be read as a picture"),
    ),
    "no-base64": ({"ip_adapter": {"image": "hello!"}}, ("ip_adapter.image", "is not valid base64")),
    "elsewhere": ({"controlnet": [NET | {"image": "secrets/a.png"}]}, ("controlnet.0.image", "may not read")),
    "not-there": (
        {"controlnet": [NET | {"image": "uploads/b.png"}]},
        ("controlnet.0.image", "there is no object"),
    ),
    "too-much": (
        {"controlnet": [NET | {"image": "uploads/large.png"}] * 3},
        ("controlnet.2.image", "with the pictures before it, is"),
    ),
    "order": ({"controlnet": [NET | {"start": 0.9, "end": 0.3}]}, ("controlnet.0.end", "more than start")),
}


@pytest.fixture(scope="module")
def store(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What a worker with two ControlNets and an IP-Adapter made of `REQUESTS`, all there when it began."""
    root = tmp_path_factory.mktemp("guided")
    nets = [
        f"{name}={save_controlnet(tiny_folder, root / name, seed)}"
        for seed, name in enumerate(("canny", "depth"))
    ]
    options = ["--models", f"tiny={tiny_folder}", "--model", "tiny", "--ip-adapters"]
    options += [f"face={save_ip_adapter(tiny_folder, root / 'face')}"]
    options += [part for net in nets for part in ("--controlnets", net)]
    (root / "store" / "uploads").mkdir(parents=True)
    (root / "store" / "uploads" / "edges.png").write_bytes(base64.b64decode(NET["image"]))
    (root / "store" / "uploads" / "large.png").write_bytes(base64.b64decode(png(540, 500)))
    for id, (fields, _) in REQUESTS.items():
        drop(root / "store", f"{id}.json", DRAW | fields)
    with worker(
        root / "store", "--renderer", "diffusers", "--devices", "cpu", "--max-body-mb", "1", *options
    ):
        for id in REQUESTS:
            result(root / "store", id)
        (root / "store" / "beat.json").write_bytes(next((root / "store" / "workers").iterdir()).read_bytes())
        yield root / "store"


def test_what_can_be_drawn_is_drawn(store: Path) -> None:
    """Each guide changes the picture; one that is named by a key is the same picture."""
    drawn = {}
    for id, (_, refusal) in REQUESTS.items():
        if refusal is None:
            ended = result(store, id)
            assert ended["status"] == "succeeded", ended["failure"]
            drawn[id] = (store / ended["images"][0]["key"]).read_bytes()
    pixels = {id: Image.open(io.BytesIO(data)).tobytes() for id, data in drawn.items()}
    assert pixels["canny"] == pixels["named"]
    assert len(set(pixels.values())) == len(pixels) - 1
    recipe = json.loads(Image.open(io.BytesIO(drawn["both"])).text["dreamdrop"])  # type: ignore[attr-defined]
    assert [net["name"] for net in recipe["controlnet"]] == ["canny", "depth"]
    assert not any(NET["image"][:20].encode() in data for data in drawn.values())


def test_what_was_changed_is_told(store: Path) -> None:
    """A control picture of another size; all others have no warning."""
    told = {id: result(store, id)["warnings"] for id, (_, refusal) in REQUESTS.items() if refusal is None}
    assert {id for id, notes in told.items() if notes} == {"resized"}
    assert [(note["code"], note["field"]) for note in told["resized"]] == [
        ("control_resized", "controlnet.0.image")
    ]


def test_what_cannot_be_drawn_names_its_field(store: Path) -> None:
    for id, (_, refusal) in REQUESTS.items():
        if refusal is not None:
            ended = result(store, id)
            assert (ended["status"], ended["attempts"]) == ("failed", 1), id
            assert ended["failure"]["field"] == refusal[0], ended["failure"]
            assert refusal[1] in ended["failure"]["message"], ended["failure"]


def test_a_heartbeat_says_what_the_worker_knows(store: Path) -> None:
    beat = json.loads((store / "beat.json").read_bytes())
    assert (beat["controlnets"], beat["ip_adapters"]) == (["canny", "depth"], ["face"])


@pytest.fixture(scope="module")
def addons(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Addons:
    """A ControlNet and an IP-Adapter for SD 1.x, by what their configs and weights say."""
    folder = tmp_path_factory.mktemp("addons")
    net = save_controlnet(tiny_folder, folder / "net", cross_attention_dim=768)
    return Addons.of([f"canny={net}"], [f"tiny={save_ip_adapter(tiny_folder, folder / 'face')}"])


async def test_one_of_another_family_is_refused_when_it_is_planned(addons: Addons) -> None:
    """By its config, before anything is loaded."""
    face = addons.ip_adapters["tiny"]
    faces = {"sd": replace(face, name="sd", family="sd1"), "xl": replace(face, name="xl")}
    cards = replace(Cards(), addons=replace(addons, ip_adapters=faces))
    names = Names(cards, "sd15", None, lambda: 0.0)
    assert WIDTHS[768] == addons.controlnets["canny"].family == "sd1"

    async def ask(**fields: Any) -> Any:
        return await names.read(validate_manifest({"prompt": "x"} | fields), 0.0)

    assert (await ask(controlnet=[NET])).ip_adapter is None
    with pytest.raises(
        Rejected, match=r"canny, which is made for models of the family sd1; sdxl is of sdxl"
    ) as caught:
        await ask(controlnet=[NET], model="sdxl")
    assert (caught.value.code, caught.value.field) == ("unsupported", "controlnet.0.name")
    looks = {"image": png()}
    assert (await ask(ip_adapter=looks, model="sdxl")).ip_adapter == "xl"  # the only one that fits
    with pytest.raises(
        Rejected, match="is left out, and 2 of this worker's IP-Adapters fit sd15; known are sd, xl"
    ):
        await ask(ip_adapter=looks)
    with pytest.raises(Rejected, match="IP-Adapter sd, which is made for models of the family sd1"):
        await ask(ip_adapter=looks | {"name": "sd"}, model="sdxl")


def test_a_worker_leaves_what_another_knows(addons: Addons) -> None:
    own = Capabilities.own(["tiny"], (), Limits())
    other = Capabilities.read(Capabilities.own(["tiny"], (), Limits(), addons).facts())
    for fields, able in (
        ({"controlnet": [NET]}, True),
        ({"controlnet": [NET | {"name": "pose"}]}, False),
        ({"ip_adapter": {"image": "x"}}, True),
        ({"ip_adapter": {"image": "x", "name": "hands"}}, False),
    ):
        body = json.dumps(DRAW | fields).encode()
        field = f"{next(iter(fields))}.0.name"
        error = Rejected.of_field(field, "names none that is known here", "unknown_model")
        assert other.can_draw(error, body, len(body), batch=False, refused_by=own) is able
        assert not own.can_draw(error, body, len(body), batch=False, refused_by=other)


def test_a_folder_that_is_none_stops_the_worker_at_its_start(tiny_folder: Path, tmp_path: Path) -> None:
    """With the sentence that says why."""
    flux = save_controlnet(tiny_folder, tmp_path / "flux")
    config = json.loads((flux / "config.json").read_text())
    (flux / "config.json").write_text(json.dumps(config | {"_class_name": "FluxControlNetModel"}))
    pickle = save_controlnet(tiny_folder, tmp_path / "pickle")
    weights = pickle / "diffusion_pytorch_model.safetensors"
    weights.rename(pickle / "diffusion_pytorch_model.bin")
    file = save_ip_adapter(tiny_folder, tmp_path / "face")
    wrong = json.loads((file.parent / "image_encoder" / "config.json").read_text()) | {"projection_dim": 99}
    (file.parent / "other").mkdir()
    (file.parent / "other" / "config.json").write_text(json.dumps(wrong))
    (file.parent / "other" / "model.safetensors").write_bytes(b"")
    cases: list[tuple[list[str], list[str], str]] = [
        (["canny"], [], "write name=source"),
        ([f"a={tmp_path}"], [], "it has no config.json"),
        ([f"a={flux}"], [], "it holds a FluxControlNetModel; known are ControlNetModel"),
        ([f"a={pickle}"], [], "is a pickle, which this worker never loads"),
        ([f"a={tiny_folder / 'unet'}"], [], "it holds a UNet2DConditionModel"),
        ([], [f"a={tmp_path / 'none.safetensors'}"], "there is no such file"),
        ([], [f"a={tiny_folder / 'unet'}"], "this worker cannot use this IP-Adapter"),
        ([], [f"a={file},encoder={tmp_path}"], "its image encoder is not in"),
        ([], [f"a={file},encoder={file.parent / 'other'}"], "projection_dim of 24; the one in"),
        ([], ["a=hub:h94/IP-Adapter"], "name the file, too"),
        ([f"a={flux}", "a=x"], [], "known are ControlNetModel"),
        ([], [f"a={file}", f"a={file}"], "names 'a' twice"),
    ]
    for controlnets, ip_adapters, words in cases:
        with pytest.raises(Rejected) as caught:
            Addons.of(controlnets, ip_adapters)
        assert words in caught.value.message
