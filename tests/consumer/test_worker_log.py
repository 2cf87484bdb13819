"""What a worker logs at the usual level: enough to find a fault, and nobody's prompt."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import textwrap
from pathlib import Path
from typing import Any

import pytest

from consumer import metrics
from consumer.renderer.load_progress import LoadProgress
from consumer.renderer.protocol import Loaded, Ready
from consumer.renderer.stderr import StderrTail
from infra.logs import redacted
from infra.stores.memory import MemoryStore
from tests.worker_inside import make_worker, running, until

pytestmark = pytest.mark.anyio

SECRET = "the unannounced product"


def with_child(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have null renderers start this program as their child."""
    (tmp_path / "odd_child.py").write_text(
        "import os, sys, time\nfrom consumer.renderer import frames\nfrom consumer.renderer.protocol import *\n"
        "def say(m):\n    sys.stdout.buffer.write(frames.pack(m)); sys.stdout.buffer.flush()\n"
        "frames.read(sys.stdin.buffer)\n" + textwrap.dedent(code)
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    monkeypatch.setattr("consumer.renderer.process._MODULES", {"null": "odd_child"})


async def end(store: MemoryStore, prompt: str) -> dict[str, Any]:
    """The result of one request, drawn by a worker of its own."""
    await store.create("requests/r.json", json.dumps({"prompt": prompt, "steps": 1}).encode())
    async with running(make_worker(store)):
        async with asyncio.timeout(120):
            while await store.head("results/r/result.json") is None:
                await asyncio.sleep(0.02)
    result: dict[str, Any] = json.loads((await store.get("results/r/result.json")).body)
    return result


def log_text(caplog: pytest.LogCaptureFixture) -> str:
    """Everything that was logged, with facts and tracebacks."""
    usual = logging.makeLogRecord({}).__dict__.keys()
    lines = []
    for record in caplog.records:
        facts = {k: v for k, v in record.__dict__.items() if k not in usual}
        lines.append(f"{record.levelname} {record.getMessage()} {facts} {record.exc_info}")
    return "\n".join(lines)


async def test_a_child_that_dies_with_a_prompt_on_its_lips_is_quoted_only_at_debug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The usual log names the type of the error and its place; its message, which holds the prompt, stays out."""
    code = """
        say(Ready("d", "t", {}))
        t = frames.read(sys.stdin.buffer)
        print("drawing", t.prompt, file=sys.stderr)
        raise ValueError(f"cannot draw {t.prompt}")
    """
    with_child(tmp_path, code, monkeypatch)
    with caplog.at_level(logging.INFO):
        answer = await end(MemoryStore(), SECRET)
    assert answer["failure"]["code"] == "worker_crashed"
    assert "renderer lost" in log_text(caplog)
    assert "ValueError at odd_child.py" in log_text(caplog)
    assert SECRET not in log_text(caplog)


async def test_an_image_that_cannot_be_drawn_is_logged_by_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A pipeline's error message goes into the result, for the author of the request, and not into the log."""
    code = """
        say(Ready("d", "t", {}))
        while True:
            t = frames.read(sys.stdin.buffer)
            if hasattr(t, "prompt"):
                say(Undrawable(t.request, t.index, "render_error", f"no {t.prompt}", True))
    """
    with_child(tmp_path, code, monkeypatch)
    with caplog.at_level(logging.INFO):
        answer = await end(MemoryStore(), SECRET)
    assert SECRET in answer["failure"]["message"]
    assert "given back for another attempt" in log_text(caplog)
    assert SECRET not in log_text(caplog)


async def test_an_error_that_nobody_foresaw_is_logged_by_its_kind_and_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Its message stays out, whatever it repeats; the traceback is logged at debug."""

    def broken(*_: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr("consumer.jobs.delivery.encode", broken)
    with caplog.at_level(logging.INFO):
        answer = await end(MemoryStore(), SECRET)
    assert answer["status"] == "failed"
    assert "KeyError at test_worker_log.py" in log_text(caplog)
    assert SECRET not in log_text(caplog)


async def test_last_words_name_the_last_error_of_a_chain():
    """Frames and kinds are taken from a traceback only: a line that looks like an error is somebody's prompt."""
    tail, stderr = StderrTail(), asyncio.StreamReader()
    stderr.feed_data(
        b"SecretError: a prompt\r 10 %\r\nTraceback (most recent call last):\n"
        b'  File "/a/one.py", line 3, in first\n    x()\nKeyError: 1\n'
        b"The above exception was the direct cause:\n"
        b'  File "/a/two.py", line 7, in <module>\n    y()\n    ^^^\n'
        b"schemas.errors.StoreUnavailable: a prompt"
    )
    stderr.feed_eof()
    await tail.listen(stderr)
    tail.note("exit status 1")
    assert tail.redacted == "StoreUnavailable at two.py:7 in <module>; exit status 1"
    assert "a prompt" in tail.whole
    assert tail.last_words(1) == "StoreUnavailable: a prompt"


def test_an_error_without_a_traceback_has_a_kind():
    """It was made, and never raised."""
    assert redacted(ValueError("a prompt")) == "ValueError at an unknown place"


# Loading ----------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


async def test_a_load_is_told_when_it_begins_and_when_it_has_ended(caplog: pytest.LogCaptureFixture):
    """Name and source first; then seconds and size. Two announcements of one load are one."""
    loads = LoadProgress("cpu", io.StringIO())
    with caplog.at_level(logging.INFO):
        loads.begin("sd21", "a folder or the hub")
        loads.begin("sd21", "the hub")
        loads.done(Loaded("sd21", "the hub", "float16", 5 << 20))
    first, second = caplog.records
    assert (first.getMessage(), first.__dict__["source"]) == ("loading model", "a folder or the hub")
    assert second.getMessage() == "model loaded"
    assert second.__dict__["mib"] == 5
    assert second.__dict__["seconds"] < 60


async def test_a_terminal_counts_the_seconds_of_a_load(monkeypatch: pytest.MonkeyPatch):
    """The line is renewed in place, and gone when the load has ended, well or not."""
    monkeypatch.setattr("consumer.renderer.load_progress._COUNT", 0.01)
    terminal = Terminal()
    loads = LoadProgress("cpu", terminal)
    loads.begin("sd21", "the hub")
    await until(lambda: terminal.getvalue().count("loading sd21 from the hub: 0 s") >= 2)
    loads.end()
    assert terminal.getvalue().endswith("\r\x1b[K")


async def test_the_real_child_tells_of_its_loads(caplog: pytest.LogCaptureFixture, tiny_folder: Path):
    """A worker that preloads a model says so, with where it came from and how large it is."""
    from consumer.renderer.process import Renderer
    from consumer.renderer.protocol import RendererSettings

    def loads() -> float:
        return metrics.REGISTRY.get_sample_value("dreamdrop_model_load_seconds_count", {"model": "tiny"}) or 0

    earlier = loads()  # of other tests in this process
    models = (("tiny", str(tiny_folder)),)
    renderer = Renderer(
        RendererSettings(models=models, preload="tiny"), lambda _event: None, lambda _loss: None
    )
    with caplog.at_level(logging.INFO):
        assert isinstance(await renderer.start(), Ready)
        assert renderer.loads.loaded["tiny"] > 1000
        await renderer.close()
    lines = {record.getMessage(): record.__dict__ for record in caplog.records}
    assert lines["loading model"]["model"] == "tiny"
    assert lines["model loaded"]["source"] == str(tiny_folder)
    assert lines["model loaded"]["dtype"] == "float32"
    loaded = {"device": "cpu", "model": "tiny"}
    assert metrics.REGISTRY.get_sample_value("dreamdrop_model_loaded_bytes", loaded) > 1000
    assert loads() - earlier == 1
    metrics.renderer_lost("cpu", "crashed")
    assert metrics.REGISTRY.get_sample_value("dreamdrop_model_loaded_bytes", loaded) is None


async def test_a_file_that_is_no_request_is_named_once(caplog: pytest.LogCaptureFixture):
    """Its author may wait for a picture. Hidden files of editors are not named."""
    store = MemoryStore()
    for name in ("prompts.csv", ".cat.json.swp", "express/photo.png"):
        await store.create(f"requests/{name}", b"?")
    with caplog.at_level(logging.WARNING):
        assert (await end(store, "x"))["status"] == "succeeded"
    named = [record.key for record in caplog.records if "not a request" in record.message]  # type: ignore[attr-defined]
    assert sorted(named) == ["requests/express/photo.png", "requests/prompts.csv"]
