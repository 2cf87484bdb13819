"""The synchronous endpoints, over real HTTP, with a real worker behind the store."""

from __future__ import annotations

import base64
import io
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from PIL import Image

from producer import Client
from tests.producer.facade import facade, ready, worker

PROMPT = {"prompt": "a red circle on a blue background", "steps": 2, "width": 64, "height": 64, "seed": 5}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with a worker."""
    place = tmp_path_factory.mktemp("facade") / "store"
    with worker(place):
        yield place


@pytest.fixture(scope="module")
def http(store: Path) -> Iterator[httpx.Client]:
    """A caller of a facade over that directory, once the worker is alive."""
    with facade(store) as address, httpx.Client(base_url=address, timeout=240) as caller:
        ready(address)
        yield caller


def picture(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text, validate=True)))
    image.load()
    return image


def test_the_documented_example_runs_unchanged(http: httpx.Client):
    """Eight documented fields in, a list of base64 PNGs out."""
    body = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "width": 768,
        "height": 768,
        "cfg_scale": 9,
        "steps": 100,
        "number_of_images": 1,
        "seed": 5,
    }
    for path in ("/generate/", "/generate"):
        answer = http.post(path, json=body)
        assert answer.status_code == 200
        images = answer.json()["images"]
        assert [picture(image).size for image in images] == [(768, 768)]
        assert picture(images[0]).format == "PNG"


def test_an_answer_tells_seeds_id_and_timings(http: httpx.Client):
    """What was drawn can be drawn again, and found again."""
    answer = http.post("/text2img/", json=PROMPT | {"number_of_images": 2}).json()
    assert answer["seeds"] == [5, 6]
    assert answer["timings"]["total"] > 0
    assert http.get(f"/jobs/{answer['id']}").json()["status"] == "succeeded"


def test_each_task_has_its_own_endpoint(http: httpx.Client, data_uri: str):
    """A picture and a mask go to the endpoints that are made for them, and nowhere else."""
    redraw = {"prompt": "x", "steps": 2, "image": data_uri}
    assert http.post("/img2img/", json=redraw).status_code == 200
    assert http.post("/inpainting/", json=redraw | {"mask_image": data_uri}).status_code == 200
    refused = http.post("/text2img/", json=redraw)
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["body", "image"]


@pytest.fixture(scope="module")
def data_uri() -> str:
    """A small picture, as manifests carry it."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def test_a_caller_that_accepts_a_picture_gets_one(http: httpx.Client):
    """The bytes of the single image, in the format that was asked for."""
    for kind in ("png", "jpeg", "webp"):
        answer = http.post("/generate/", json=PROMPT, headers={"Accept": f"image/{kind}"})
        assert answer.headers["content-type"] == f"image/{kind}"
        assert Image.open(io.BytesIO(answer.content)).format == kind.upper()
    many = http.post("/generate/", json=PROMPT | {"number_of_images": 2}, headers={"Accept": "image/png"})
    assert many.status_code == 422
    assert many.json()["detail"][0]["loc"] == ["body", "number_of_images"]


def test_a_caller_that_will_not_wait_is_told_where_to_look(http: httpx.Client):
    """202 and the address of a job that has the pictures later."""
    answer = http.post("/generate/", json=PROMPT, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "respond-async"
    job = finished(http, answer.headers["location"])
    assert http.get(job["images"][0]["url"]).headers["content-type"] == "image/png"


def test_a_caller_may_fetch_the_pictures_itself(http: httpx.Client):
    """With `Prefer: return=minimal` the answer says where they are, and does not carry them."""
    answer = http.post("/generate/", json=PROMPT, headers={"Prefer": "return=minimal"})
    assert answer.headers["preference-applied"] == "return=minimal"
    assert http.get(answer.json()["images"][0]["url"]).content.startswith(b"\x89PNG")


def finished(http: httpx.Client, place: str) -> dict:
    end = time.monotonic() + 240
    while (job := http.get(place).json())["status"] in ("queued", "processing"):
        assert time.monotonic() < end, job
        time.sleep(0.02)
    return job


def test_a_wrong_field_is_told_as_fastapi_tells_it_in_the_words_of_a_failed_result(
    http: httpx.Client, store: Path
):
    """The same sentence, whether a file was dropped or a body was posted."""
    wrong = {"prompt": "x", "stepz": 3}
    answer = http.post("/generate/", json=wrong)
    assert answer.status_code == 422
    fault = answer.json()["detail"][0]
    assert fault["loc"] == ["body", "stepz"]
    (store / "requests" / "wrong.json").write_text(json.dumps(wrong))
    with Client(store) as client:
        failure = client.wait("wrong", timeout=240).failure
    assert failure is not None
    assert (fault["msg"], fault["type"]) == (failure.message, failure.code)


def test_broken_json_is_told_with_line_and_column(http: httpx.Client):
    """As an editor counts them."""
    answer = http.post("/generate/", content=b'{"prompt": "x",\n "steps": }')
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["ctx"] == {"line": 2, "column": 11}


def test_a_failed_drawing_is_told_in_its_own_words(http: httpx.Client):
    """Errors that only a worker can find, such as a damaged picture."""
    answer = http.post("/generate/", json=PROMPT | {"image": "bm8gcGljdHVyZQ=="} | {"width": 64})
    assert answer.status_code == 422
    bad = {"prompt": "x", "image": "bm8gcGljdHVyZQ=="}
    fault = http.post("/generate/", json=bad).json()["detail"][0]
    assert fault["loc"] == ["body", "image"]
    assert fault["type"] == "invalid_image"


def test_a_body_over_the_limit_is_not_read(store: Path):
    """413 from the announced length, and from the counted one."""
    from schemas.limits import Limits

    with facade(store, limits=Limits(max_body_bytes=1000)) as address:
        announced = httpx.post(f"{address}/generate/", content=b"x" * 2000)
        assert announced.status_code == 413
        counted = httpx.post(f"{address}/generate/", content=iter([b"x" * 600, b"x" * 600]))
        assert counted.status_code == 413


def test_without_a_worker_nobody_waits(tmp_path: Path):
    """503 at once, and nothing is left behind; a job may be queued all the same."""
    with facade(tmp_path / "store") as address:
        answer = httpx.post(f"{address}/generate/", json=PROMPT)
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert not list((tmp_path / "store" / "requests").rglob("*.json"))
        assert httpx.put(f"{address}/jobs/later", json=PROMPT).status_code == 201
        assert httpx.get(f"{address}/jobs/later").json()["status"] == "queued"


def test_a_wait_that_ends_before_the_picture_tells_the_id_and_the_work_goes_on(tmp_path: Path):
    """504, and the picture can be fetched later."""
    slow = json.dumps({"seconds_per_step": 0.3})
    with worker(tmp_path, "--null", slow), facade(tmp_path) as address:
        ready(address)
        answer = httpx.post(
            f"{address}/generate/", json=PROMPT | {"steps": 5}, headers={"Prefer": "wait=1"}, timeout=240
        )
        assert answer.status_code == 504
        place = answer.headers["location"]
        assert place == f"/jobs/{answer.json()['id']}"
        with httpx.Client(base_url=address) as http:
            assert finished(http, place)["status"] == "succeeded"


def test_a_caller_that_leaves_takes_its_own_request_along(tmp_path: Path):
    """It is canceled, unless the caller chose its id, by which others may ask for it."""
    slow = json.dumps({"seconds_per_step": 0.5})
    with worker(tmp_path, "--null", slow), facade(tmp_path) as address:
        ready(address)
        for id in (None, "kept"):
            body = PROMPT | {"steps": 100} | ({"id": id} if id else {})
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{address}/generate/", json=body, timeout=1)
        end = time.monotonic() + 240
        while len(jobs := httpx.get(f"{address}/jobs").json()["latest"]) < 1:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert [job["status"] for job in jobs] == ["canceled"]
        while (kept := httpx.get(f"{address}/jobs/kept").json())["status"] == "queued":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert kept["status"] == "processing", kept


def test_a_caller_that_leaves_in_the_middle_of_its_body_is_no_fault(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """It is counted, and the log has no traceback."""
    with facade(tmp_path) as address:
        with socket.create_connection(("127.0.0.1", httpx.URL(address).port or 0)) as caller:
            caller.sendall(b'POST /jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{"prompt')
        end = time.monotonic() + 240
        while 'route="/jobs",status="499"' not in httpx.get(f"{address}/metrics").text:
            assert time.monotonic() < end
            time.sleep(0.02)
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_lane_sends_callers_away_for_a_while(tmp_path: Path):
    """429, with the seconds after which to try again."""
    with facade(tmp_path, room=2) as address, httpx.Client(base_url=address) as http:
        for n in range(2):
            assert http.put(f"/jobs/{n}", json=PROMPT).status_code == 201
        time.sleep(1.1 - 0.2)  # the lane is counted once a second
        end = time.monotonic() + 240
        while (answer := http.post("/jobs", json=PROMPT)).status_code != 429:
            assert time.monotonic() < end
        assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_a_full_lane_is_noticed_within_the_moment_for_which_its_count_is_believed(tmp_path: Path):
    """However fast requests come: those sent since the lane was counted are added to the count."""
    with facade(tmp_path, room=5) as address, ThreadPoolExecutor(8) as callers:
        tries = [callers.submit(httpx.post, f"{address}/jobs", json=PROMPT, timeout=240) for _ in range(24)]
        answers = [one.result().status_code for one in tries]
    assert (answers.count(202), answers.count(429)) == (5, 19)


def test_two_hundred_callers_at_once_all_get_their_picture(http: httpx.Client):
    """Without an error, each its own."""

    def one(n: int) -> int:
        with httpx.Client(base_url=http.base_url, timeout=600) as caller:
            answer = caller.post("/generate/", json=PROMPT | {"seed": n})
            answer.raise_for_status()
            return int(answer.json()["seeds"][0])

    with ThreadPoolExecutor(200) as pool:
        assert list(pool.map(one, range(200))) == list(range(200))
