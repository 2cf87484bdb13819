"""Idle latency beside other servers: the same pipeline, one request at a time, one run.

LitServe and BentoML are measured where they are installed: `pip install litserve bentoml`.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.benchmarks import backlogs
from tests.benchmarks.facade import manifest, same, serving
from tests.benchmarks.models import SIDES
from tests.benchmarks.table import Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.contenders import Child

_ROOT = Path(__file__).parents[3]
_MODEL, _STEPS = "mixed", 20
PEERS = {"FastAPI with a lock": ("plain", "fastapi"), "LitServe": ("litserve_app", "litserve")}
PEERS |= {"BentoML": ("bento_app", "bentoml")}


def measure(child: Child, folders: dict[str, Path], place: Path, table: Table, quick: bool) -> None:
    """Each server's milliseconds beyond a direct call of the renderer, in turn within a round."""
    samples = 4 if quick else 30
    table.head(
        f"Idle latency beside other servers, {_MODEL}", f"{_STEPS} steps, {samples} samples, PNG in base64"
    )
    worker = ["--model", _MODEL, "--models", f"{_MODEL}={folders[_MODEL]}", "--devices", "cpu"]
    with contextlib.ExitStack() as stack:
        servers = {"Dreamdrop": stack.enter_context(serving(str(place / "peers"), worker)) + "/generate"}
        for name, (module, package) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                table.say(f"{name} is skipped: {package} is not installed")
                continue
            servers[name] = stack.enter_context(serving_peer(module, folders[_MODEL])) + "/generate"
        took: dict[str, list[float]] = {name: [] for name in servers}
        for i in range(-2, samples):
            task = backlogs.homogeneous(_MODEL, SIDES[_MODEL], 1, _STEPS, 500 + i)[0]
            direct = child.draw([task])
            for name in sorted(servers, key=lambda name, i=i: hash((name, i))):
                body: dict[str, Any] = manifest(task)
                began = time.perf_counter()
                answer = httpx.post(
                    servers[name], json={"body": body} if name == "BentoML" else body, timeout=120
                )
                seconds = time.perf_counter() - began
                answer.raise_for_status()
                same(base64.b64decode(answer.json()["images"][0]), direct.pictures[0])
                if i >= 0:
                    took[name].append(seconds)
    for name, seconds in took.items():
        table.add(Row(name, [1000 * s for s in seconds], unit="ms"))
    for name in took.keys() - {"Dreamdrop"}:
        ratios = [ours / theirs for ours, theirs in zip(took["Dreamdrop"], took[name], strict=True)]
        table.add(Row(f"Dreamdrop over {name}", ratios))


@contextlib.contextmanager
def serving_peer(module: str, model: Path, **variables: str) -> Iterator[str]:
    """Another server with the model; yields its address. `variables` are of its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.benchmarks.peers.{module}", str(port)],
        env={
            **os.environ,
            "PYTHONPATH": str(_ROOT),
            "PEER_MODEL": str(model),
            "BENTOML_DO_NOT_TRACK": "1",
            **variables,
        },
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/", timeout=5)
                break
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{module} did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
