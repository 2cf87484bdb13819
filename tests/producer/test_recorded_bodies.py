"""Bodies that other programs send: each gets its pictures, or a refusal that names its field.

`bodies/` has a file for each: who sends it, where that can be read, the body, and either what has to be drawn or
which field has to be refused. "<png>" and its kin in a body or a form stand for pictures.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.producer.facade import facade, ready, worker

BODIES = Path(__file__).parent / "bodies"


def png(mode: str, colour: Any, box: Any = None) -> bytes:
    picture = Image.new(mode, (512, 512), (40, 80, 200) if mode == "RGB" else 0)
    if mode == "RGBA":
        picture.paste((0, 0, 0, 255), (0, 0, 512, 512))
    if box:
        picture.paste(colour, box)
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


LEFT = (0, 0, 256, 512)
FILES = {
    "<png>": png("RGB", None),
    "<mask>": png("L", 255, LEFT),
    "<alpha>": png("RGBA", (0, 0, 0, 0), LEFT),
    "<empty>": b"",
}


def recorded(kind: str) -> list[Any]:
    found = sorted((BODIES / kind).glob("*.json"))
    return [pytest.param(json.loads(path.read_text()), id=f"{kind}/{path.stem}") for path in found]


def filled(value: Any) -> Any:
    """A body with pictures where they belong."""
    if isinstance(value, dict):
        return {name: filled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner) for inner in value]
    if value == "<data>":
        return "data:image/png;base64," + filled("<png>")
    return base64.b64encode(FILES[value]).decode() if isinstance(value, str) and value in FILES else value


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A caller of a facade with a worker."""
    place = tmp_path_factory.mktemp("bodies") / "store"
    with worker(place), facade(place) as address:
        ready(address)
        with httpx.Client(base_url=address, timeout=60) as caller:
            yield caller


@pytest.mark.parametrize("case", recorded("a1111"))
def test_a_body_for_a1111_is_drawn_or_refused_by_name(http: httpx.Client, case: dict[str, Any]):
    """The recipe is what was asked for, and the parts of the response that such programs read are there."""
    a1111(http, case)


@pytest.mark.parametrize("case", recorded("openai"))
def test_a_body_for_openai_is_drawn_or_refused_by_name(http: httpx.Client, case: dict[str, Any]):
    """The manifest is what was asked for."""
    openai(http, case)


def a1111(http: httpx.Client, case: dict[str, Any]) -> None:
    answer = http.post(case["path"], json=filled(case["body"]))
    if "refused" in case:
        assert answer.status_code == 422, answer.text[:500]
        assert named(answer.json()["detail"][0]["loc"], case["refused"]), answer.text[:500]
        return
    assert answer.status_code == 200, answer.text[:500]
    body = answer.json()
    assert len(body["images"]) == case.get("pictures", 1)
    for text in body["images"]:
        Image.open(io.BytesIO(base64.b64decode(text, validate=True))).load()
    info = json.loads(body["info"])
    assert {name: info[name] for name in case["drawn"]} == case["drawn"]
    assert len(info["infotexts"]) == len(info["all_seeds"]) == len(body["images"])
    assert info["infotexts"][0].startswith(case["drawn"]["prompt"])


def named(place: list[Any], fields: str | list[str]) -> bool:
    """Whether an error's place is one of the fields."""
    return bool({str(part) for part in place} & ({fields} if isinstance(fields, str) else set(fields)))


def openai(http: httpx.Client, case: dict[str, Any]) -> None:
    files = [(field, (name, FILES[what])) for field, name, what in case.get("files", ())]
    if files:
        answer = http.post(case["path"], data=case["body"], files=files)
    else:
        answer = http.post(case["path"], json=case["body"])
    if "refused" in case:
        assert answer.status_code in (400, 404), answer.text[:500]
        assert answer.json()["error"]["param"] == case["refused"], answer.text[:500]
        return
    assert answer.status_code == 200, answer.text[:500]
    body = answer.json()
    assert len(body["data"]) == case.get("pictures", 1)
    for one in body["data"]:
        assert set(one) >= {case.get("answer", "b64_json")}
        raw = (
            http.get(one["url"]).content if "url" in one else base64.b64decode(one["b64_json"], validate=True)
        )
        Image.open(io.BytesIO(raw)).load()
    manifest = http.get(f"/jobs/{body['id']}/request").json()
    assert {name: manifest.get(name) for name in case["drawn"]} == case["drawn"]
