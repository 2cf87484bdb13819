"""The command line, a store and a real worker process (its renderer draws flat pictures)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from producer import Client
from producer.commands.local import demo

ROOT = Path(__file__).parents[2]
Cli = Callable[..., subprocess.CompletedProcess[str]]


@contextlib.contextmanager
def running(store: Path, *options: str) -> Iterator[None]:
    """A worker of a directory, until the block ends."""
    command = [
        sys.executable,
        "-m",
        "producer.cli",
        "worker",
        "--store",
        str(store),
        "--renderer",
        "null",
        *options,
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory store with a worker."""
    store = tmp_path_factory.mktemp("served") / "store"
    store.mkdir()
    with running(store):
        yield store


def look(path: Path) -> tuple[tuple[int, int], bytes]:
    """A picture's size and pixels."""
    with Image.open(path) as picture:
        return picture.size, picture.tobytes()


def test_from_a_prompt_to_pictures_and_back(dreamdrop: Cli, served: Path, tmp_path: Path):
    """imagine draws, replay rebuilds the request, and drawing that gives the same picture."""
    done = dreamdrop("imagine", "a cat", "-n", "2", "--size", "64x32", "--seed", "5", "--store", str(served))
    assert done.returncode == 0, done.stderr
    first, second = (tmp_path / path for path in done.stdout.split())
    assert look(first)[0] == (64, 32)

    manifest = json.loads(dreamdrop("replay", str(second)).stdout)
    assert (manifest["prompt"], manifest["seed"]) == ("a cat", 6)
    again = dreamdrop("replay", str(second), "--submit", "--store", str(served), "--out", "again")
    assert again.returncode == 0, again.stderr
    (redrawn,) = (tmp_path / path for path in again.stdout.split())
    assert look(redrawn) == look(second)
    assert look(redrawn) != look(first)


def test_a_table_and_prompts_are_drawn(dreamdrop: Cli, served: Path, tmp_path: Path):
    """submit --out follows rows, saves their pictures and the gallery page."""
    (tmp_path / "t.csv").write_text("prompt,width,height,custom_id\na cat,64,64,cat\na dog,64,64,dog\n")
    (tmp_path / "one.json").write_text('{"prompt": "a cow", "width": 64, "height": 64}')
    done = dreamdrop(
        "submit", "t.csv", "one.json", "--out", "out", "--store", str(served), "--timeout", "240"
    )
    assert done.returncode == 0, done.stderr
    names = {Path(line).name for line in done.stdout.split()}
    assert {"0.png", "gallery.html", "results.jsonl"} <= names
    assert len([line for line in done.stdout.split() if line.endswith("0.png")]) == 3


def test_a_copied_file_is_answered(served: Path):
    """A file that is dropped into `requests/` becomes pictures; a broken one gets an error message."""
    requests = served / "requests"
    requests.mkdir(exist_ok=True)
    for name, body in (("cat", '{"prompt": "a cat", "width": 64, "height": 64}'), ("bad", '{"prompt": }')):
        (requests / f".{name}").write_text(body)
        os.replace(requests / f".{name}", requests / f"{name}.json")
    with Client(served) as dream:
        for result in dream.results(["cat", "bad"], timeout=240):
            if result.id == "cat":
                assert (served / "results/cat/0.png").is_file()
            else:
                assert result.failure is not None
                assert (result.failure.code, result.failure.column) == ("invalid_json", 12)
        assert any(model.workers for model in dream.models())


def test_a_request_is_watched_and_cancelled_while_it_is_drawn(tmp_path: Path):
    """Steps are reported while a request is drawn; canceling ends it, and the worker goes on with the next."""
    store = tmp_path / "store"
    store.mkdir()
    with running(store, "--null", '{"seconds_per_step": 0.2}'), Client(store) as dream:
        ticket = dream.submit({"prompt": "a cat", "steps": 20, "width": 64, "height": 64})
        state = dream.status(ticket)
        while state.progress is None or not state.progress.steps_done:
            assert not state.over
            state = dream.status(ticket)
        assert state.status == "processing"
        assert state.progress.steps_total == 20
        assert dream.cancel(ticket).status == "canceled"
        following = dream.submit({"prompt": "a dog", "steps": 1, "width": 64, "height": 64})
        assert dream.wait(following, timeout=240).status == "succeeded"
        assert dream.result(ticket).status == "canceled"


def test_the_demo_runs_and_runs_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """`make demo` succeeds, twice: all but the broken one are drawn, and there is a gallery page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for _ in range(2):
        assert demo.main(Path("dreamdrop-demo"), ["--renderer", "null"]) == 0
        out = capsys.readouterr().out
        assert "dreamdrop-demo/results/wall/gallery.html" in out
    assert len(list((tmp_path / "dreamdrop-demo/results").rglob("*.png"))) > 14
