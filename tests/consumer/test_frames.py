"""Messages on the pipe between parent and child: every one survives, and noise is an error."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import Any

import msgspec
import pytest

from consumer.renderer import frames
from consumer.renderer.protocol import (
    Cancel,
    Complaint,
    Control,
    Drawn,
    IpAdapterChoice,
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
from tests.renderer_children import a_task

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
    a_task(
        controls=(Control("canny", 1, 0, 0.5), Control("depth", 0.3, 0.1, 1)),
        ip_adapter=IpAdapterChoice("face", 0.6),
        pictures={
            "controlnet.0.image": _PICTURE,
            "controlnet.1.image": _PICTURE,
            "ip_adapter.image": _PICTURE,
        },
    ),
    Ready("cpu", "float32", {"torch": "2"}),
    Stepped({("a", 0): (1, 2), ("b", 3): (4, 5)}),
    Drawn("a", 0, _PICTURE, (("prompt_cut", "too long"),), {"name": "m"}, 1.5),
    Undrawable("a", 0, "render_error", "no", True, "prompt"),
    Stepped({}, {("a", 0): _PICTURE, ("b", 4): RawPicture(1, 1, 3, b"xyz")}),
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


_DRAWN: dict[str, Any] = msgspec.to_builtins(_MESSAGES[6], builtin_types=(bytes,))


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
