"""Calls that OpenAI's client makes in several tests."""

from __future__ import annotations

import base64
import io
import json
import time
from typing import Any

import openai
from PIL import Image

OURS = {"steps": 2, "seed": 5}


def client(address: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=240)


def opened(text: str | None) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(text or "", validate=True)))
    picture.load()
    return picture


def line(name: str, **body: Any) -> dict[str, Any]:
    body = {"prompt": "x", "size": "64x64", **OURS, **body}
    return {"custom_id": name, "method": "POST", "url": "/v1/images/generations", "body": body}


def uploaded(api: openai.OpenAI, *lines: Any) -> str:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    return api.files.create(file=("requests.jsonl", text.encode()), purpose="batch").id


def made(api: openai.OpenAI, file: str, **more: Any) -> Any:
    return api.batches.create(
        input_file_id=file, endpoint="/v1/images/generations", completion_window="24h", **more
    )


def ended(api: openai.OpenAI, id: str) -> Any:
    end = time.monotonic() + 240
    while (batch := api.batches.retrieve(id)).status == "in_progress":
        assert time.monotonic() < end, batch
        time.sleep(0.05)
    return batch
