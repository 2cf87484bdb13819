"""A renderer's parent and its child, as real processes: what is drawn, what a child knows, when it ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consumer.renderer.process import NotStarted, Renderer
from consumer.renderer.protocol import (
    Drawn,
    Event,
    ImageTask,
    RawPicture,
    Ready,
    RendererSettings,
    Stepped,
    Undrawable,
)
from tests.renderer_children import WAIT, Listener, a_task, alive, running

if TYPE_CHECKING:
    from consumer.engine.loading.registry import ModelRegistry


async def _draw_two() -> tuple[Listener, Renderer]:
    async with running({"fail_on": "bad"}) as (renderer, listener):
        renderer.submit(a_task("a", width=24, height=8))
        renderer.submit(a_task("b", "a bad dot"))
        renderer.submit(a_task("c", seed=2))
        assert renderer.pending == 3
        assert renderer.healthy
        await listener.until(lambda: renderer.pending == 0)
    return listener, renderer


def test_each_task_is_answered_once():
    """Two pictures of the sizes asked for and of two colours, and one refusal; nothing is lost."""
    listener, _ = asyncio.run(_draw_two())
    drawn = listener.drawn()
    assert list(drawn) == ["a", "c"]
    assert [(p.width, p.height, len(p.data)) for p in (drawn["a"].picture, drawn["c"].picture)] == [
        (24, 8, 576),
        (16, 8, 384),
    ]
    assert drawn["a"].picture.data[:3] != drawn["c"].picture.data[:3]
    refusals = [event for event in listener.events if isinstance(event, Undrawable)]
    assert [(event.request, event.code) for event in refusals] == [("b", "render_error")]
    assert listener.losses == []


def test_a_child_is_gone_once_its_renderer_is_closed():
    """Closing leaves no process behind, busy or not."""

    async def story() -> int:
        async with running({"hang_on": "dot"}) as (renderer, _):
            renderer.submit(a_task())
            pid = renderer.pid
            assert pid is not None
        return pid

    assert not alive(asyncio.run(story()))


def test_nothing_is_heard_of_a_cancelled_request():
    """Neither of its image in work, however long, nor of the one that waited; others are drawn."""

    async def story() -> Listener:
        async with running({"seconds_per_step": 0.02}) as (renderer, listener):
            renderer.submit(a_task("gone", steps=100_000))
            renderer.submit(a_task("gone", index=1))
            renderer.submit(a_task("kept"))
            await listener.until(lambda: any(isinstance(e, Stepped) for e in listener.events))
            renderer.cancel("gone")
            assert renderer.pending == 1
            await listener.until(lambda: renderer.pending == 0)
        return listener

    assert list(asyncio.run(story()).drawn()) == ["kept"]


def test_a_listener_that_fails_does_not_stop_the_others():
    """An error in the handling of one event is logged, and the next image is drawn all the same."""

    async def story() -> list[str]:
        heard: list[str] = []
        done = asyncio.Event()

        def on_event(event: Event) -> None:
            if isinstance(event, Drawn):
                heard.append(event.request)
                if len(heard) == 2:
                    done.set()
                raise ValueError("not handled")

        renderer = Renderer(RendererSettings(kind="null"), on_event, lambda loss: None)
        await renderer.start()
        try:
            renderer.submit(a_task("a"))
            renderer.submit(a_task("b"))
            async with asyncio.timeout(WAIT):
                await done.wait()
        finally:
            await renderer.close()
        return heard

    assert asyncio.run(story()) == ["a", "b"]


def test_a_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch):
    """Its environment holds no credentials; what libraries need to work is left."""
    secrets = (
        "AWS_SESSION_THING",
        "AWS_PROFILE",
        "MY_SECRET",
        "HF_TOKEN",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "db_password",
        "API_KEY_OLD",
    )
    kept = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nowhere", "TOKENIZERS_PARALLELISM": "false"}
    for name in secrets:
        monkeypatch.setenv(name, "hush-hush")
    for name, value in kept.items():
        monkeypatch.setenv(name, value)

    async def story() -> bytes:
        async with running() as (renderer, _):
            return Path(f"/proc/{renderer.pid}/environ").read_bytes()

    environment = dict(entry.split("=", 1) for entry in asyncio.run(story()).decode().split("\0") if entry)
    assert "hush-hush" not in environment.values()
    assert not environment.keys() & set(secrets)
    assert kept.items() <= environment.items()
    assert "PATH" in environment


@pytest.mark.parametrize("prompt", ["idle", "stuck"])
def test_a_child_ends_with_its_parent(prompt: str):
    """A parent that is killed leaves no child behind, not even one that hangs over its work."""
    code = f"""
        import asyncio
        from consumer.renderer.process import Renderer
        from consumer.renderer.protocol import RendererSettings
        from tests.renderer_children import a_task

        async def main():
            settings = RendererSettings(kind="null", null={{"hang_on": "stuck"}})
            renderer = Renderer(settings, lambda event: None, lambda loss: None)
            await renderer.start()
            renderer.submit(a_task(prompt={prompt!r}))
            await asyncio.sleep(0.1)
            print(renderer.pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    root = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)

    async def gone() -> None:
        async with asyncio.timeout(WAIT):
            while alive(child):
                await asyncio.sleep(0.02)

    asyncio.run(gone())


def test_the_real_child_draws_what_the_pipeline_draws(
    tiny_folder: Path,
    registry: ModelRegistry,
    task: Callable[..., ImageTask],
    alone: Callable[[ModelRegistry, ImageTask], RawPicture],
    apart: Callable[[RawPicture, RawPicture], int],
):
    """Through a process and two pipes, all three tasks are within a grey level of plain diffusers."""
    kinds = ("text2img", "img2img", "inpainting")
    tasks = [task(kind, task=kind, seed=i) for i, kind in enumerate(kinds)]
    settings = {"kind": "diffusers", "models": (("tiny", str(tiny_folder)),), "preload": "tiny"}

    async def story() -> tuple[Listener, Ready | None]:
        async with running(**settings) as (renderer, listener):
            for one in (*tasks, task("unknown", model="no-such-model")):
                renderer.submit(one)
            await listener.until(lambda: renderer.pending == 0)
            return listener, renderer.ready

    listener, ready = asyncio.run(story())
    assert ready is not None
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert {"torch", "diffusers", "transformers"} <= ready.versions.keys()
    drawn = listener.drawn()
    assert [apart(drawn[one.request].picture, alone(registry, one)) <= 1 for one in tasks] == [True] * 3
    assert [e.request for e in listener.events if isinstance(e, Undrawable)] == ["unknown"]
    assert listener.losses == []


def test_a_real_child_that_cannot_load_its_model_says_why(tiny_folder: Path):
    """The last line of its stderr is the error, not what Python writes about threads when it exits."""

    async def story() -> None:
        async with running(
            kind="diffusers", models=(("tiny", str(tiny_folder)),), preload="tiny", dtype="float8"
        ):
            raise AssertionError("unreachable")

    with pytest.raises(NotStarted, match=r"BadDevice: .*float8.*known are float32"):
        asyncio.run(story())
