"""A client on a store, and a small stand-in for a worker that writes results as the contract says."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from PIL import Image

from producer import AsyncClient, cli
from schemas.layout import fingerprint, image_key, request_id, result_key
from schemas.result import Failure, Frozen, ImageResult, Result
from tests.cloud import Cloud
from tests.conftest import pretend_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from infra.stores.store import Store

ROOT = Path(__file__).parents[2]

# httpx's calls share one default, five seconds: too short where other work shares the cores.
_timeout = httpx.Client.__init__.__kwdefaults__["timeout"]
_timeout.connect = _timeout.read = _timeout.write = _timeout.pool = 240.0


@pytest.fixture
async def client(store: Store) -> AsyncIterator[AsyncClient]:
    """A client of a fresh store, of each kind in turn."""
    async with AsyncClient(store) as opened:
        yield opened


@pytest.fixture
async def home(tmp_path: Path) -> AsyncIterator[AsyncClient]:
    """A client of a fresh directory."""
    async with AsyncClient(tmp_path / "store") as opened:
        yield opened


def png(seed: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (seed % 256, 0, 0)).save(out, "PNG")
    return out.getvalue()


async def draw(store: Store, key: str, **fields: Any) -> Result:
    """Answer one request object as a worker does: images, then the result, then the request goes."""
    stored = await store.get(key)
    id = fields.pop("id", request_id(key))
    images = []
    if fields.get("status", "succeeded") == "succeeded":
        for index in range(int(json.loads(stored.body).get("number_of_images", 1))):
            body = png(index)
            where = image_key(id, index, "png")
            await store.create(where, body)
            images.append(
                ImageResult(
                    index=index,
                    key=where,
                    seed=index,
                    width=8,
                    height=8,
                    bytes=len(body),
                    sha256=hashlib.sha256(body).hexdigest(),
                    content_type="image/png",
                )
            )
    else:
        fields.setdefault("failure", Failure(code="render_error", message="it broke"))
    result = Result(
        **{"status": "succeeded", **fields},
        id=id,
        images=tuple(images),
        fingerprint=fingerprint(stored.body),
        request=Frozen.of(stored.body),
    )
    await store.create(result_key(id), result.to_json())
    await store.delete(key)
    return result


@pytest.fixture
def cloud(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A bucket and queues on a server of its own, which the AWS variables point to."""
    pretend_credentials(monkeypatch, moto_url)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    cloud = Cloud(moto_url)
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    return cloud


@pytest.fixture
def worker() -> Callable[..., Any]:
    """`await worker(store, key)`: a stand-in that answers one request object."""
    return draw


@pytest.fixture
def dreamdrop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line's root in this process (a process each would be slow), in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("AWS_", "DREAMDROP_"))]:
        monkeypatch.delenv(name)

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["dreamdrop", *arguments])
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
            for name, value in environment.items():
                patch.setenv(name, value)
            capsys.readouterr()
            with pytest.raises(SystemExit) as caught:
                cli.main()
            out, err = capsys.readouterr()
        return subprocess.CompletedProcess(list(arguments), int(caught.value.code or 0), out, err)

    return run


@pytest.fixture
def dreamdrop_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as a process of its own."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DREAMDROP_"))}
        return subprocess.run(
            [sys.executable, "-W", "error", "-m", "producer.cli", *arguments],
            cwd=tmp_path,
            env=kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1"} | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
