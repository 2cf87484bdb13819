"""`make demo`: starts a worker, drops requests of every kind, and says where the pictures are.

Requests are dropped as a user's own script would drop them: by writing files into `requests/`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.child_process import child_environment, python_command
from producer.client import AsyncClient
from producer.commands import progress, show
from schemas.layout import request_id
from schemas.result import Result

STORE = Path("dreamdrop-demo")
PATIENCE = 300.0  # seconds for all requests

DRAWINGS: dict[str, dict[str, Any]] = {
    "circle": {"prompt": "a red circle on a blue background", "seed": 1},
    "star": {"prompt": "a yellow star on a black background", "seed": 2, "number_of_images": 2},
    "square": {"prompt": "a green square on a white background", "seed": 3, "cfg_scale": 5},
    "triangle": {"prompt": "an orange triangle on a black background", "seed": 4, "scheduler": "Euler a"},
    "heart": {"prompt": "a red heart on a white background", "seed": 5, "steps": 12},
    "ring": {"prompt": "a purple ring on a yellow background", "seed": 6, "scheduler": "DPM++ 2M Karras"},
    "two": {"prompt": "a red circle and a blue square on a white background", "seed": 7},
}


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


ROWS: list[dict[str, Any]] = [
    {
        "custom_id": prompt.replace(" ", "-"),
        "prompt": f"{_article(prompt)} {prompt} on a {ground} background",
        "seed": 30 + k,
    }
    for k, (prompt, ground) in enumerate(
        (
            ("red circle", "white"),
            ("yellow star", "blue"),
            ("green square", "black"),
            ("purple ring", "white"),
            ("white heart", "red"),
            ("orange triangle", "black"),
            ("small blue star", "white"),
            ("large pink heart", "blue"),
        )
    )
]


def requests() -> dict[str, bytes]:
    """The files to drop: name below `requests/` to content."""
    plain, mask = _picture(), _mask()
    files = {f"{name}.json": _json(document) for name, document in DRAWINGS.items()}
    redraw = {"image": plain, "strength": 0.75}
    files["redrawn/star.json"] = _json({"prompt": "a yellow star on a blue background", "seed": 8} | redraw)
    files["redrawn/square.json"] = _json({"prompt": "a white square on a red background", "seed": 9} | redraw)
    repaint = {"image": plain, "mask_image": mask}
    files["repainted/circle.json"] = _json(
        {"prompt": "a green circle on a blue background", "seed": 10} | repaint
    )
    files["repainted/heart.json"] = _json(
        {"prompt": "a red heart on a blue background", "seed": 11} | repaint
    )
    files["express/now.json"] = _json({"prompt": "a white circle on a black background", "seed": 12})
    files["wall.jsonl"] = b"".join(_json(row) + b"\n" for row in ROWS)
    files["broken.json"] = b'{"prompt": "a red circle",\n "steps": }\n'
    return files


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _picture() -> str:
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (128, 128), (40, 80, 200))
    ImageDraw.Draw(picture).ellipse((32, 32, 96, 96), fill=(220, 40, 40))
    return _base64(picture)


def _mask() -> str:
    from PIL import Image, ImageDraw

    mask = Image.new("L", (128, 128), 0)
    ImageDraw.Draw(mask).rectangle((24, 24, 104, 104), fill=255)
    return _base64(mask)


def _base64(picture: Any) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")


def drop(store: Path) -> list[str]:
    """Write the files, each whole or not at all. Returns the ids."""
    ids = []
    for name, body in requests().items():
        path = store / "requests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")  # workers ignore hidden files
        part.write_bytes(body)
        os.replace(part, path)
        ids.append(request_id(f"requests/{name}"))
    return ids


@contextlib.contextmanager
def worker(store: Path, arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A running worker, whose output goes to a file."""
    log = store / "worker.log"
    command = python_command("producer.cli", "worker", "--store", str(store), *arguments)
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=child_environment(), stdout=output, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def wait(store: Path, ids: list[str], process: subprocess.Popen[bytes]) -> dict[str, Result]:
    """Follow all requests until they end. Exits when the worker stops early."""
    async with AsyncClient(store) as client:
        rows = {"wall": [f"wall/{row['custom_id']}" for row in ROWS]}
        following = asyncio.create_task(progress.follow(client, ids, rows, timeout=PATIENCE, quiet=False))
        ending = asyncio.create_task(_ended(process))
        await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if not following.done():
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            raise SystemExit(f"the worker stopped early; its log is {store / 'worker.log'}")
        ended, late = following.result()
        if late is not None:
            raise SystemExit(f"{late}\nthe worker's log is {store / 'worker.log'}")
        return ended


async def _ended(process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        await asyncio.sleep(0.2)


def main(store: Path = STORE, worker_arguments: list[str] | None = None) -> int:
    """Run the demo. Returns the exit code: 0 when everything ended as it should."""
    shutil.rmtree(store, ignore_errors=True)  # what an earlier demo left
    store.mkdir(parents=True)
    began = time.monotonic()
    with worker(store, worker_arguments or []) as process:
        ids = drop(store)
        show.people.print(
            f"dropped {len(ids)} files into {store / 'requests'}; the worker is loading its model"
        )
        ended = asyncio.run(wait(store, ids, process))
    show.summary([result for result in ended.values() if result.batch is None], {})  # a batch is its rows
    seconds = time.monotonic() - began
    show.people.print(f"(broken.json is meant to fail.) {seconds:.0f} s in all")
    print(f"pictures:  {store / 'results'}/<request>/0.png, such as {store / 'results' / 'circle' / '0.png'}")
    batch = ended["wall"].batch
    if batch is not None and batch.gallery:
        print(f"gallery:   {store / batch.gallery}")
    command = Path(sys.executable).with_name("dreamdrop")
    with contextlib.suppress(ValueError):
        # as it can be typed here, whether or not the environment is active
        command = command.relative_to(Path.cwd())
    print(f"your own:  {command} worker --store ./{store}  and  cp examples/cat.json {store / 'requests'}/")
    good = {result.id for result in ended.values() if result.status == "succeeded"}
    return 0 if set(ended) - good == {"broken"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
