"""Batches whose rows have ended, without the workers that would draw them."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

from PIL import Image

from infra.claims.claim import Claim, Held
from infra.stores.store import Store
from schemas import layout
from schemas.batch import split_rows
from schemas.limits import Limits
from schemas.result import Failure, Frozen, ImageResult, Result


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


def batch_of(rows: int) -> Held:
    lines = [json.dumps({"custom_id": f"row-{i}", "prompt": f"number {i}"}) for i in range(rows)]
    body = "\n".join(lines).encode()
    claim = Claim(
        id="b", fingerprint=layout.fingerprint(body), frozen=Frozen.of(body), plan=None, session="s", nonce="n",
        epoch=1, attempt=1, batch=True,
    )  # fmt: skip
    return Held(claim)


async def end(store: Store, held: Held, only: range | None = None, status: Any = "succeeded") -> None:
    """What workers do with the rows: a picture and a result each."""
    body = png()
    rows = split_rows("b", held.claim.frozen.body(), Limits())
    for row in rows if only is None else [rows[i] for i in only]:
        key = layout.image_key(row.id, 0, "png")
        image = ImageResult(
            index=0, key=key, seed=1, width=8, height=8, bytes=len(body), sha256=hashlib.sha256(body).hexdigest(),
            content_type="image/png",
        )  # fmt: skip
        if status == "succeeded":
            await store.create(key, body)
        result = Result(
            id=row.id, status=status, images=(image,) if status == "succeeded" else (), task="text2img",
            parameters={"prompt": f"number of {row.id}", "steps": 20, "model": "doodle"},
            failure=None if status == "succeeded" else Failure(code="render_error", message="it burnt"),
            fingerprint=layout.fingerprint(row.body), request=Frozen.of(row.body),
        )  # fmt: skip
        await store.create(layout.result_key(row.id), result.to_json())
