"""A child that crashes, hangs, loses its device or writes noise: its tasks come back, and a new child goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from consumer.renderer.process import NotStarted
from tests.renderer_children import DRAW, Listener, a_task, running, with_child


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
        async with running({"hang_on": "stuck"}, patience=1.0) as (renderer, listener):
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


def test_a_lost_device_is_told_apart_from_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Status 75 says that the device is lost; the loss holds the child's last words."""
    code = """
        say(Ready("d", "t", {}))
        frames.read(sys.stdin.buffer)
        print("device-side assert", file=sys.stderr)
        sys.exit(75)
    """
    with_child(tmp_path, code, monkeypatch)

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
    with_child(tmp_path, code, monkeypatch)

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
        {DRAW}
        frames.read(sys.stdin.buffer)
    """
    with_child(tmp_path, code, monkeypatch)

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
        time.sleep(1.5)
        {DRAW}
        frames.read(sys.stdin.buffer)
    """
    with_child(tmp_path, code, monkeypatch)

    async def story() -> Listener:
        async with running(patience=0.5) as (renderer, listener):
            renderer.submit(a_task("a"))
            await listener.until(lambda: renderer.pending == 0)
        return listener

    listener = asyncio.run(story())
    assert (list(listener.drawn()), listener.losses) == (["a"], [])


def test_a_child_that_cannot_start_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The first start fails with the child's own words, instead of being tried for ever."""
    with_child(tmp_path, 'sys.exit("no model of that name")', monkeypatch)

    async def story() -> None:
        async with running():
            raise AssertionError("unreachable")

    with pytest.raises(NotStarted, match="no model of that name"):
        asyncio.run(story())
