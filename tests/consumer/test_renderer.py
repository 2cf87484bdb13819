"""A renderer's parent and its child, as real processes: what is drawn, what is lost, what comes next."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from consumer.renderer import frames
from consumer.renderer.process import Loss, NotStarted, Renderer
from consumer.renderer.protocol import (
    Cancel,
    Complaint,
    Drawn,
    ImageTask,
    Loaded,
    Loading,
    Lora,
    Message,
    RawPicture,
    Ready,
    RendererSettings,
    Stepped,
    Undrawable,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from consumer.engine.registry import ModelRegistry
    from consumer.renderer.protocol import Event

_WAIT = 60  # seconds; far beyond what is needed, for a busy machine


def a_task(request: str = "r", prompt: str = "a red dot", **fields: Any) -> ImageTask:
    """A small image."""
    defaults = {"task": "text2img", "model": "m", "negative_prompt": None, "width": 16, "height": 8}
    numbers = {"index": 0, "steps": 3, "cfg_scale": 7.0, "seed": 1, "scheduler": "Euler"}
    return ImageTask(request=request, prompt=prompt, **{**defaults, **numbers, **fields})


class Listener:
    """Collects what a renderer says, and lets a test wait for it."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.losses: list[Loss] = []
        self._news = asyncio.Event()

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def on_loss(self, loss: Loss) -> None:
        self.losses.append(loss)
        self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(_WAIT):
            while not true():
                self._news.clear()
                await self._news.wait()

    def drawn(self) -> dict[str, Drawn]:
        return {event.request: event for event in self.events if isinstance(event, Drawn)}

    def readies(self) -> int:
        return sum(isinstance(event, Ready) for event in self.events)


@contextlib.asynccontextmanager
async def running(
    null: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[tuple[Renderer, Listener]]:
    """A renderer that is ready, and closed in the end."""
    listener = Listener()
    kind = settings.pop("kind", "null")
    renderer = Renderer(
        RendererSettings(kind=kind, null=null or {}, **settings), listener.on_event, listener.on_loss
    )
    try:
        await renderer.start()
        yield renderer, listener
    finally:
        await renderer.close()


def alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


# Frames -----------------------------------------------------------------------------------------

_PICTURE = RawPicture(2, 1, 3, b"\x00\x01\x02\xfd\xfe\xff")
_MESSAGES: list[Message] = [
    RendererSettings(
        models=(("m", "/models/\udcff"),), memory_budget=1 << 40, null={"fail_seeds": [1], "grain": True}
    ),
    a_task(prompt='quote " \n \N{SNOWMAN} \ud800'),
    a_task(
        task="inpainting",
        image=_PICTURE,
        mask=RawPicture(2, 1, 1, b"\x00\xff"),
        loras=(Lora("x", 0.5), Lora("y", -1.0)),
        strength=0.5,
        clip_skip=2,
        solo=True,
        seed=2**63 - 1,
    ),
    Ready("cpu", "float32", {"torch": "2"}),
    Stepped(7, {("a", 0): (1, 2), ("b", 3): (4, 5)}),
    Drawn("a", 0, _PICTURE, (("prompt_cut", "too long"),), {"name": "m"}, 1.5, 9),
    Undrawable("a", 0, "render_error", "no", True, "prompt"),
    Stepped(7, {}, {("a", 0): _PICTURE, ("b", 4): RawPicture(1, 1, 3, b"xyz")}),
    Cancel("a"),
    Loading("m", "a folder or the hub"),
    Loaded("m", "bundled", "float32", 5 << 30),
    Complaint("no more previews"),
]


@pytest.mark.parametrize("message", _MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_pipe_both_ways(message: Message):
    """What is packed is read again, equal, by the blocking and by the asyncio reader."""
    frame = frames.pack(message)

    async def read_it() -> Any:
        stream = asyncio.StreamReader()
        stream.feed_data(frame)
        return await frames.read_async(stream)

    pipe = BytesIO(frame + frame)
    assert [frames.read(pipe), frames.read(pipe), frames.read(pipe)] == [message, message, None]
    assert asyncio.run(read_it()) == message


def test_a_frame_cut_anywhere_is_the_end_of_the_pipe():
    """A writer that died in the middle of a frame has ended the conversation, not said nonsense."""
    frame = frames.pack(_MESSAGES[2])
    assert [frames.read(BytesIO(frame[:cut])) for cut in range(len(frame))] == [None] * len(frame)


_DRAWN: dict[str, Any] = msgspec.to_builtins(_MESSAGES[5], builtin_types=(bytes,))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"not a message",
        b"{not json",
        b'{"type": "Cancel", "request": 1}',
        b"{" + b'"a":{' * 100_000,
        [],
        {"type": "Popen"},
        {"type": "Ready", "versions": []},
        {"type": "Ready", "device": "cpu"},
        {"type": "Cancel", "request": b"a"},
        {**_DRAWN, "picture": {**_DRAWN["picture"], "data": b"short"}},
        msgspec.msgpack.encode(_DRAWN)[:-1],
        msgspec.msgpack.encode(_DRAWN) + b"?",
    ],
    ids=repr,
)
def test_noise_is_refused(message: Any):
    """Whatever a child that misbehaves may write, it is either a message or a `BadFrame`, which quotes none of it."""
    body = message if isinstance(message, bytes) else msgspec.msgpack.encode(message)
    with pytest.raises(frames.BadFrame, match=r"^[\d,]+ bytes that are not a message$"):
        frames.unpack(body)


def test_a_frame_that_claims_too_much_is_refused():
    """Text on the pipe reads as an enormous length; nobody waits for so many bytes."""
    with pytest.raises(frames.BadFrame, match="a frame of 1,"):
        frames.read(BytesIO(b"Loading weights: 100%"))


# Drawing ----------------------------------------------------------------------------------------


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
            async with asyncio.timeout(_WAIT):
                await done.wait()
        finally:
            await renderer.close()
        return heard

    assert asyncio.run(story()) == ["a", "b"]


# Losing -----------------------------------------------------------------------------------------


def test_a_crash_hands_back_what_was_held_and_a_new_child_goes_on():
    """The loss names the tasks not answered; one submitted before the next child waits for it."""

    async def story() -> tuple[Listener, int | None, int | None]:
        async with running({"crash_on": "boom"}) as (renderer, listener):
            first = renderer.pid
            renderer.submit(a_task("fine"))
            await listener.until(lambda: renderer.pending == 0)
            renderer.submit(a_task("poison", "boom"))
            renderer.submit(a_task("mate"))
            await listener.until(lambda: bool(listener.losses))
            assert renderer.pending == 0
            renderer.submit(a_task("later"))
            assert renderer.healthy
            await listener.until(lambda: "later" in listener.drawn())
            return listener, first, renderer.pid

    listener, first, second = asyncio.run(story())
    (loss,) = listener.losses
    assert (loss.why, [task.request for task in loss.tasks]) == ("crashed", ["poison", "mate"])
    assert loss.detail == "exit status -9"
    assert first != second
    assert listener.readies() == 2


def test_a_child_that_hangs_is_replaced():
    """It is killed when it has work and shows no progress for as long as patience lasts."""

    async def story() -> Listener:
        async with running({"hang_on": "stuck"}, patience=0.3) as (renderer, listener):
            renderer.submit(a_task("a", "stuck"))
            await listener.until(lambda: bool(listener.losses))
            await listener.until(lambda: listener.readies() == 2)
            renderer.submit(a_task("b"))
            await listener.until(lambda: "b" in listener.drawn())
        return listener

    (loss,) = asyncio.run(story()).losses
    assert (loss.why, [task.request for task in loss.tasks]) == ("hung", ["a"])
    assert "no progress" in loss.detail


def test_an_idle_child_is_not_taken_for_hung():
    """Having nothing to do is no lack of progress, however long it lasts."""

    async def story() -> tuple[int | None, int | None, Listener]:
        async with running(patience=0.1) as (renderer, listener):
            before = renderer.pid
            await asyncio.sleep(0.4)
            assert renderer.healthy
            return before, renderer.pid, listener

    before, after, listener = asyncio.run(story())
    assert before == after
    assert listener.losses == []


def _with_child(tmp_path: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have renderers start this program as their child."""
    (tmp_path / "odd_child.py").write_text(
        "import os, sys, time\nfrom consumer.renderer import frames\nfrom consumer.renderer.protocol import *\n"
        "def say(m):\n    sys.stdout.buffer.write(frames.pack(m)); sys.stdout.buffer.flush()\n"
        "frames.read(sys.stdin.buffer)\n" + textwrap.dedent(code)
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path.cwd()}")
    monkeypatch.setattr("consumer.renderer.process._MODULES", {"null": "odd_child"})


_DRAW = 'say(Drawn(t.request, t.index, RawPicture(1, 1, 3, b"abc"), (), {}, 0.0, 1))\n'


def test_a_lost_device_is_told_apart_from_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Status 75 says that the device is lost; the loss holds the child's last words."""
    code = """
        say(Ready("d", "t", {}))
        frames.read(sys.stdin.buffer)
        print("device-side assert", file=sys.stderr)
        sys.exit(75)
    """
    _with_child(tmp_path, code, monkeypatch)

    async def story() -> Listener:
        async with running() as (renderer, listener):
            renderer.submit(a_task())
            await listener.until(lambda: bool(listener.losses))
        return listener

    (loss,) = asyncio.run(story()).losses
    assert (loss.why, loss.detail) == ("lost its device", "device-side assert\nexit status 75")


def test_a_child_that_talks_nonsense_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bytes on the pipe that are no frame end the child, and its task comes back."""
    code = """
        say(Ready("d", "t", {}))
        frames.read(sys.stdin.buffer)
        sys.stdout.buffer.write(b"Loading weights: 100%"); sys.stdout.buffer.flush()
        time.sleep(60)
    """
    _with_child(tmp_path, code, monkeypatch)

    async def story() -> Listener:
        async with running() as (renderer, listener):
            renderer.submit(a_task("a"))
            await listener.until(lambda: bool(listener.losses))
        return listener

    (loss,) = asyncio.run(story()).losses
    assert (loss.why, [task.request for task in loss.tasks]) == ("crashed", ["a"])
    assert "noise on the pipe" in loss.detail


def test_a_child_may_chatter_without_end_of_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Progress bars end no line; a megabyte of them neither blocks the child nor is kept."""
    code = f"""
        say(Ready("d", "t", {{}}))
        t = frames.read(sys.stdin.buffer)
        sys.stderr.write("\\r 50 % of a file" * 30000 + "x" * 500000); sys.stderr.flush()
        {_DRAW}
        frames.read(sys.stdin.buffer)
    """
    _with_child(tmp_path, code, monkeypatch)

    async def story() -> Listener:
        async with running() as (renderer, listener):
            renderer.submit(a_task())
            await listener.until(lambda: renderer.pending == 0)
        return listener

    assert asyncio.run(story()).losses == []


def test_loading_a_model_is_not_taken_for_hanging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A child that said it loads one is given minutes; its silence costs nobody anything."""
    code = f"""
        say(Ready("d", "t", {{}}))
        t = frames.read(sys.stdin.buffer)
        say(Loading("m", "a folder"))
        time.sleep(0.6)
        {_DRAW}
        frames.read(sys.stdin.buffer)
    """
    _with_child(tmp_path, code, monkeypatch)

    async def story() -> Listener:
        async with running(patience=0.1) as (renderer, listener):
            renderer.submit(a_task("a"))
            await listener.until(lambda: renderer.pending == 0)
        return listener

    listener = asyncio.run(story())
    assert (list(listener.drawn()), listener.losses) == (["a"], [])


def test_a_child_that_cannot_start_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first start fails with the child's own words, instead of being tried for ever."""
    _with_child(tmp_path, 'sys.exit("no model of that name")', monkeypatch)

    async def story() -> None:
        async with running():
            raise AssertionError("unreachable")

    with pytest.raises(NotStarted, match="no model of that name"):
        asyncio.run(story())


# What a child knows, and when it ends -------------------------------------------------------------


def test_a_child_gets_no_secrets(monkeypatch: pytest.MonkeyPatch):
    """Its environment holds no credentials; what libraries need to work is left."""
    secrets = ("AWS_SESSION_THING", "AWS_PROFILE", "MY_SECRET", "HF_TOKEN", "db_password", "API_KEY_OLD")
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
        from consumer.renderer.process import Renderer, RendererSettings
        from tests_renderer import a_task

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
    load = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('tests_renderer', {__file__!r})\n"
        "sys.modules['tests_renderer'] = module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
    )
    command = [sys.executable, "-c", load + textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.send_signal(signal.SIGKILL)

    async def gone() -> None:
        async with asyncio.timeout(_WAIT):
            while alive(child):
                await asyncio.sleep(0.02)

    asyncio.run(gone())


# The real child -----------------------------------------------------------------------------------


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
