"""A1111's endpoints, called by `webuiapi`, the client that its users have."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import webuiapi
from PIL import Image

from producer.web.api_keys import new_key, read_keys
from schemas.text import infotext
from tests.producer.facade import facade, ready, worker

SMALL = {"steps": 2, "width": 64, "height": 48, "sampler_name": "Euler a"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker that takes its time."""
    folder = tmp_path_factory.mktemp("a1111")
    place, header = folder / "store", b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (folder / "style.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    loras = ("--loras", f"style={folder / 'style.safetensors'}")
    with worker(place, *loras, "--null", json.dumps({"seconds_per_step": 0.02})):
        yield place


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    with facade(store) as listening:
        ready(listening)
        yield listening


@pytest.fixture
def api(address: str) -> Iterator[webuiapi.WebUIApi]:
    """The foreign client, as its own documentation makes it."""
    yield from client(address)


def client(address: str, key: str | None = None) -> Iterator[webuiapi.WebUIApi]:
    api = webuiapi.WebUIApi(baseurl=f"{address}/sdapi/v1", sampler="Euler a")
    if key:
        api.set_auth("anybody", key)
    yield api
    api.session.close()


def picture(size: tuple[int, int] = (64, 48), colour: Any = (40, 80, 200), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def test_words_become_pictures_with_seeds_and_infotexts(api: webuiapi.WebUIApi):
    """batch_size times n_iter pictures in one request, each with the text that its file carries."""
    drawn = api.txt2img(
        prompt="a red circle", negative_prompt="blue", seed=7, batch_size=2, n_iter=2, cfg_scale=5, **SMALL
    )
    assert [image.size for image in drawn.images] == [(64, 48)] * 4
    assert drawn.info["all_seeds"] == [7, 8, 9, 10]
    assert drawn.info["all_prompts"] == ["a red circle"] * 4
    for image, text in zip(drawn.images, drawn.info["infotexts"], strict=True):
        image.load()
        assert image.info["parameters"] == text
    assert infotext.read(drawn.info["infotexts"][1])["seed"] == 8
    assert drawn.parameters["negative_prompt"] == "blue"


def test_a_seed_of_minus_one_is_drawn_by_lot_and_told(api: webuiapi.WebUIApi):
    """The seed in the answer draws the same picture again."""
    first = api.txt2img(prompt="x", seed=-1, **SMALL)
    again = api.txt2img(prompt="x", seed=first.info["seed"], **SMALL)
    assert first.image.tobytes() == again.image.tobytes()


def test_sampler_and_schedule_become_one_scheduler(api: webuiapi.WebUIApi):
    """The old spelling, with both in one name, works too; a pair that does not exist is refused."""
    small = {**SMALL, "sampler_name": "DPM++ 2M"}
    assert api.txt2img(prompt="x", scheduler="karras", **small).info["sampler_name"] == "DPM++ 2M Karras"
    assert api.txt2img(prompt="x", **small).info["sampler_name"] == "DPM++ 2M"
    old = api.txt2img(prompt="x", **{**small, "sampler_name": "DPM++ 2M Karras"})
    assert old.info["sampler_name"] == "DPM++ 2M Karras"
    for wrong in ({"scheduler": "karras"}, {"scheduler": "exponential"}, {"sampler_name": "Restart"}):
        with pytest.raises(RuntimeError) as refused:
            api.txt2img(prompt="x", **{**SMALL, **wrong})
        assert refused.value.args[0] == 422


def test_settings_of_one_request_count(api: webuiapi.WebUIApi):
    """Model, clip skip and LoRA tags arrive as what they mean here."""
    settings = {"sd_model_checkpoint": "sd15 [0123abcdef]", "CLIP_stop_at_last_layers": 2}
    drawn = api.txt2img(prompt="a cat", override_settings=settings, **SMALL)
    assert (drawn.info["sd_model_name"], drawn.info["clip_skip"]) == ("sd15", 2)
    tagged = api.txt2img(prompt="a cat <lora:style:0.5>", **SMALL).info
    assert tagged["prompt"] == "a cat"
    assert infotext.read(tagged["infotexts"][0])["loras"] == [{"name": "style", "weight": 0.5}]


@pytest.mark.parametrize(
    "field",
    [
        {"hr_prompt": "a dog", "enable_hr": True},
        {"restore_faces": True},
        {"tiling": True},
        {"script_name": "x/y/z plot"},
        {"styles": ["anime"]},
        {"subseed_strength": 0.5},
        {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True}]}}},
        {"override_settings": {"sd_vae": "other.pt"}},
        {"batch_size": 100},
    ],
    ids=lambda field: next(iter(field)),
)
def test_what_would_change_the_picture_and_cannot_be_done_is_refused_by_name(
    api: webuiapi.WebUIApi, field: dict[str, Any]
):
    """422, with the field and what to do."""
    with pytest.raises(RuntimeError) as refused:
        api.txt2img(prompt="x", **SMALL, **field)
    status, text = refused.value.args
    assert status == 422
    assert next(iter(field)) in text


def test_a_slip_in_a_field_is_refused_and_a_field_that_nobody_knows_is_told(address: str):
    """An extension's field that is off is accepted without a word; one that is on is told in `info`."""
    ask = {"prompt": "x", **SMALL}
    assert httpx.post(f"{address}/sdapi/v1/txt2img", json={**ask, "some_extension": None}).status_code == 200
    drawn = httpx.post(
        f"{address}/sdapi/v1/txt2img", json={**ask, "some_extension": "on"}, timeout=120
    ).json()
    [warning] = json.loads(drawn["info"])["dreamdrop"]["warnings"]
    assert warning["message"] == "some_extension is ignored: it is not a field of A1111"
    refused = httpx.post(f"{address}/sdapi/v1/txt2img", json={**ask, "cfg_scael": 3})
    assert refused.json()["detail"][0]["loc"] == ["body", "cfg_scael"]


def test_a_picture_is_redrawn_in_the_size_that_is_asked_for(api: webuiapi.WebUIApi):
    """Stretched or cropped, as A1111 does."""
    for mode in (0, 1):
        drawn = api.img2img(images=[picture((100, 60))], prompt="x", resize_mode=mode, **SMALL)
        assert drawn.image.size == (64, 48)
        assert drawn.info["denoising_strength"] == 0.75
    with pytest.raises(RuntimeError, match="resize_mode"):
        api.img2img(images=[picture()], prompt="x", resize_mode=2, **SMALL)
    with pytest.raises(RuntimeError, match="init_images"):
        api.img2img(images=[], prompt="x", **SMALL)


def test_the_white_part_of_a_mask_is_what_the_worker_repaints(api: webuiapi.WebUIApi, address: str):
    """With invert, the black part. Warnings say what differs from A1111."""
    mask = picture(colour=0, mode="L")
    mask.paste(255, (0, 0, 32, 48))
    for invert in (0, 1):
        drawn = api.img2img(
            images=[picture()], mask_image=mask, inpainting_mask_invert=invert, prompt="x", seed=3, **SMALL
        )
        sent = httpx.get(f"{address}/jobs/{drawn.info['dreamdrop']['id']}/request").json()
        assert (sent["task"], sent["strength"]) == ("inpainting", 0.75)
        white = Image.open(io.BytesIO(base64.b64decode(sent["mask_image"])))
        assert [white.getpixel(at) for at in ((10, 24), (50, 24))] == ([0, 255] if invert else [255, 0])
        fields = {note["field"] for note in drawn.info["dreamdrop"]["warnings"] if "field" in note}
        assert {"mask_blur", "inpainting_fill", "inpaint_full_res"} <= fields


def test_a_picture_tells_its_recipe(api: webuiapi.WebUIApi, address: str):
    """As text and parsed; a picture without a recipe has none, and text is not a picture."""
    drawn = api.txt2img(prompt="a red circle", seed=7, **SMALL)
    drawn.image.load()
    assert api.png_info(drawn.image).info == drawn.info["infotexts"][0]
    out = io.BytesIO()
    drawn.image.info.pop("dreamdrop")
    read = httpx.post(
        f"{address}/sdapi/v1/png-info", json={"image": webuiapi.raw_b64_img(drawn.image)}
    ).json()
    assert read["parameters"]["Prompt"] == "a red circle"
    assert (read["parameters"]["Seed"], read["parameters"]["Size-1"]) == ("7", "64")
    assert list(read["items"]) == ["parameters"]
    picture().save(out, "PNG")
    bare = base64.b64encode(out.getvalue()).decode()
    none = httpx.post(f"{address}/sdapi/v1/png-info", json={"image": bare}).json()
    assert none == {"info": "", "items": {}, "parameters": {}}
    assert httpx.post(f"{address}/sdapi/v1/png-info", json={"image": "bm9uZQ=="}).status_code == 422


def test_progress_is_told_and_an_interrupt_ends_the_work(api: webuiapi.WebUIApi, address: str):
    """Idle, then rising, then canceled with 409, then idle."""
    assert api.get_progress()["progress"] == 0
    refused: list[RuntimeError] = []

    def draw() -> None:
        other = next(client(address))
        try:
            other.txt2img(prompt="a long one", batch_size=8, **{**SMALL, "steps": 150})
        except RuntimeError as error:
            refused.append(error)
        finally:
            other.session.close()

    drawing = threading.Thread(target=draw)
    drawing.start()
    end = time.monotonic() + 240
    while not (progress := api.get_progress())["progress"]:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert progress["state"]["job_count"] == 1
    assert 0 < progress["state"]["sampling_step"] < progress["state"]["sampling_steps"]
    assert api.interrupt() == {}
    drawing.join(240)
    assert refused[0].args[0] == 409
    api.util_wait_for_ready(check_interval=0.05)


def test_an_interrupt_leaves_other_callers_alone(tmp_path: Path):
    """It cancels what its own key waits for, and nothing else."""
    (one, first), (two, second) = new_key("one"), new_key("two")
    slow = json.dumps({"seconds_per_step": 0.05})
    with worker(tmp_path, "--null", slow), facade(tmp_path, keys=read_keys(f"{first},{second}")) as address:
        with httpx.Client(base_url=address, headers={"X-API-Key": two}) as http:
            while http.get("/readyz").status_code != 200:
                time.sleep(0.05)
        drawn: list[Any] = []

        def draw() -> None:
            for other in client(address, one):
                drawn.append(other.txt2img(prompt="mine", **{**SMALL, "steps": 60}))

        drawing = threading.Thread(target=draw)
        drawing.start()
        for mine, other in zip(client(address, one), client(address, two), strict=True):
            while not mine.get_progress()["state"]["job_count"]:
                assert drawing.is_alive()
            assert other.get_progress()["state"]["job_count"] == 0
            other.interrupt()
            drawing.join(240)
        assert len(drawn[0].images) == 1


def test_the_lists_say_what_there_is(api: webuiapi.WebUIApi):
    """Samplers, schedules and models by name; nothing where there is nothing."""
    assert {"Euler a", "DPM++ 2M Karras"} <= set(api.util_get_sampler_names())
    assert api.util_get_scheduler_names() == ["automatic", "karras"]
    assert "doodle" in api.util_get_model_names()
    assert [upscaler["name"] for upscaler in api.get_upscalers()] == ["Lanczos"]
    lists = (
        api.get_sd_vae, api.get_loras, api.get_hypernetworks, api.get_face_restorers,
        api.get_realesrgan_models, api.get_prompt_styles, api.get_latent_upscale_modes,
    )  # fmt: skip
    assert [read() for read in lists] == [[]] * len(lists)
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert (api.get_cmd_flags(), api.get_memory()) == ({}, {"ram": {}, "cuda": {}})
    assert not api.has_controlnet
    assert api.refresh_checkpoints() == {}


def test_a_chosen_model_is_remembered(api: webuiapi.WebUIApi):
    """For later requests of the same caller; an unknown one is refused, an unknown setting has no effect."""
    assert api.util_get_current_model() == "doodle"
    api.util_set_model("sd15")
    assert api.util_get_current_model() == "sd15"
    assert api.txt2img(prompt="x", **SMALL).info["sd_model_name"] == "sd15"
    assert "sd15" in str(api.set_options({"sd_model_checkpoint": "no-such-model"})["detail"])
    before = api.get_options()
    api.set_options({"eta_noise_seed_delta": 31337})
    assert api.get_options() == before
    api.set_options({"sd_model_checkpoint": ""})
    assert api.util_get_current_model() == "doodle"
