"""The parent's side: a few decoder children, each with one request at a time.

A child is started when it is first needed, and again after its end. It gets neither credentials nor any other
variable that it does not need, and gives up its right to open files and connections before its first picture.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import tempfile
import threading
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Literal

from infra.child_process import child_environment, python_command
from infra.decoding import frames
from infra.decoding.frames import BadFrame
from infra.pictures import INVALID
from schemas.defaults import SIZE_MULTIPLE
from schemas.errors import Rejected, Unavailable
from schemas.limits import Limits
from schemas.result import Note

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

TOO_MUCH_MEMORY = 71  # exit status of a child whose picture needed more than it may have
_TRIES = 2  # children that a request may cost: the first one may have ended for a reason of its own
_EXIT_WAIT = 10.0  # seconds for a killed child to end
_LAST_WAIT = 1.0  # seconds for a child to end whose pipe has ended
_KILLED = "its decoder was killed each time; most often the machine has too little memory"
#: All that Python needs. `child_environment` adds the path of our packages.
_VARIABLES = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TMPDIR")

#: For glibc: what a large picture took is given back to the system, instead of being kept for the next one.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


class DecoderDown(Unavailable):
    """A decoder child cannot be started, or was killed from outside. It says nothing about the picture."""

    def __init__(self, text: str = "no picture can be decoded at the moment; try again later") -> None:
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class Pixels:
    """A decoded picture: rows from the top, `mode` being L, RGB or RGBA."""

    mode: str
    width: int
    height: int
    data: bytes


#: What a picture of a request is for: to start from, to say what is repainted, to guide at each place of the drawn
#: picture, or to be looked at as a whole.
Use = Literal["image", "mask", "control", "reference"]
CHANNELS: dict[Use, int] = {"image": 3, "mask": 1, "control": 3, "reference": 3}


@dataclass(frozen=True, slots=True)
class Source:
    """A picture file of a request."""

    field: str  # as the request names it, such as controlnet.0.image
    use: Use
    data: bytes


@dataclass(frozen=True, slots=True)
class Drawable:
    """The pictures of a request in the sizes that drawing needs, by field, and what was changed."""

    pictures: dict[str, Pixels]  # RGB; a mask L
    notes: list[Note]


class Decoders:
    """Decoder children of this process. May be called from several threads, and blocks its caller."""

    def __init__(
        self, children: int = 2, memory: int = 1280 << 20, seconds: float = 30.0, patience: float = 300.0
    ) -> None:
        """
        Args:
            children: so many requests are decoded at once; others wait.
            memory: bytes of address space for a child. The largest picture within the default limits, an RGBA
                WebP with a mask of the same size, needs half of it.
            seconds: of processor time for one request. The largest picture with the largest mask needs a sixth.
            patience: seconds by the clock for one request, for a child that hangs.
        """
        self.children = children
        self._patience = patience
        self._closed = False
        self._idle: queue.LifoQueue[_Child] = queue.LifoQueue()  # the last one used is running already
        self._all = [_Child(memory, seconds) for _ in range(children)]
        for child in self._all:
            self._idle.put(child)

    def drawable(
        self,
        sources: Sequence[Source],
        limits: Limits,
        multiple: int = SIZE_MULTIPLE,
        size: tuple[int, int] | None = None,
    ) -> Drawable:
        """The pictures of one request, from their files.

        Args:
            sources: at most one image, first, and at most one mask, behind it.
            multiple: pixels that the model's widths and heights are multiples of.
            size: (width, height) of the picture to draw, in pixels, for a request without an `image`.

        Raises:
            Rejected: `invalid_image`, naming the field.
            DecoderDown: no child can be started, or each was killed.
        """
        head = {
            "do": "draw",
            "field": sources[0].field,
            "fields": [source.field for source in sources],
            "uses": [source.use for source in sources],
            "multiple": multiple,
            "size": size,
        }
        most = sum(CHANNELS[source.use] for source in sources) * limits.max_pixels
        answer = self._ask(head, [source.data for source in sources], limits, most)
        if [len(picture.mode) for picture in answer.pictures] != [CHANNELS[one.use] for one in sources]:
            raise DecoderDown
        fields = (source.field for source in sources)
        return Drawable(dict(zip(fields, answer.pictures, strict=True)), answer.notes)

    def open(self, data: bytes, field: str, limits: Limits) -> Pixels:
        """A picture in its own size: L, RGB or RGBA. Raises as `drawable`."""
        answer = self._ask({"do": "open", "field": field}, [data], limits, 4 * limits.max_input_pixels)
        if len(answer.pictures) != 1:
            raise DecoderDown
        return answer.pictures[0]

    def texts(self, data: bytes, field: str, limits: Limits) -> dict[str, str]:
        """The recipe texts in a picture that can be decoded, see `infra.recipes`. Raises as `drawable`."""
        return self._ask({"do": "texts", "field": field}, [data], limits, 0).texts

    def close(self) -> None:
        """End all children; a request in progress ends with `DecoderDown`."""
        self._closed = True
        for child in self._all:
            child.end()

    def _ask(self, head: dict[str, Any], files: Sequence[bytes], limits: Limits, max_bytes: int) -> _Answer:
        child = self._idle.get()
        try:
            for _ in range(_TRIES):
                if self._closed:
                    break
                try:
                    return child.ask({**head, "limits": asdict(limits)}, files, max_bytes, self._patience)
                except _Ended as error:
                    ended = error
                    if not self._closed:
                        log.warning("a picture cost its decoder", extra={"why": ended.why})
            if self._closed:
                raise DecoderDown
            if ended.killed:
                raise DecoderDown(f"{ended.field}: {_KILLED}")
            text = f"{ended.why} (tried twice); save it anew as a plain PNG or JPEG, or smaller"
            raise Rejected.of_field(ended.field, text, INVALID)
        finally:
            if self._closed:  # it may have been started after `close`
                child.end()
            self._idle.put(child)


@dataclass(frozen=True, slots=True)
class _Answer:
    pictures: list[Pixels]
    notes: list[Note]
    texts: dict[str, str]


class _Ended(Exception):
    """A child ended before it had answered."""

    def __init__(self, field: str, why: str, *, killed: bool = False) -> None:
        super().__init__(why)
        self.field = field  # what it was decoding
        self.why = why
        self.killed = killed  # from outside: no fault in a codec does that


class _Child:
    """One child process after another, used by one thread at a time; only `end` may be called by others."""

    def __init__(self, memory: int, seconds: float) -> None:
        self._settings = (str(memory), str(seconds))
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, head: dict[str, Any], files: Sequence[bytes], max_bytes: int, patience: float) -> _Answer:
        """Send a request and wait for its answer.

        Raises:
            Rejected: the picture was refused.
            _Ended: the child did not survive it, or took too long.
            DecoderDown: it could not be started.
        """
        process = self._process if self._process and self._process.poll() is None else self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        field, late = str(head["field"]), threading.Event()
        fields = head.get("fields", ())

        def kill() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(patience, kill)
        timer.start()
        try:
            frames.write(process.stdin, head, files)
            while True:
                answer, blobs = frames.read(process.stdout, max_bytes)
                if "at" not in answer:
                    return _understand(answer, blobs)
                field = answer["at"] if answer["at"] in fields else field
        except (OSError, ValueError, BadFrame):  # ValueError: `close` has closed the pipes meanwhile
            status = self._status(process)
            if late.is_set() or status == -signal.SIGPROF:
                why = "takes too long to decode"
            elif status == TOO_MUCH_MEMORY:
                why = "needs too much memory to decode"
            else:
                why = "crashes the decoder"
            raise _Ended(field, why, killed=status == -signal.SIGKILL and not late.is_set()) from None
        finally:
            timer.cancel()

    def _start(self) -> subprocess.Popen[bytes]:
        """A child that is ready for its first picture. Raises `DecoderDown`."""
        self.end()
        environment = child_environment({k: v for k, v in os.environ.items() if k in _VARIABLES})
        environment |= _MALLOC
        with tempfile.TemporaryFile() as said:
            try:
                process = self._process = subprocess.Popen(
                    python_command("infra.decoding", *self._settings),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    env=environment,
                    start_new_session=True,  # a terminal's Ctrl-C is for the parent only
                )
                assert process.stdout is not None
                frames.read(process.stdout, 0)
            except (OSError, BadFrame) as error:
                self.end()
                said.seek(0)
                words = said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
                log.error("no decoder can be started", extra={"why": (words or [str(error)])[0][:300]})
                raise DecoderDown from error
        log.debug("a decoder has started", extra={"pid": process.pid})
        return process

    def _status(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit status of a child that has ended, or has lost its way and is ended here: then None."""
        try:
            return process.wait(_LAST_WAIT)  # the pipe's end may be seen a moment before the process's
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.end()

    def end(self) -> None:
        """End the child at once."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_EXIT_WAIT)
        for pipe in (process.stdin, process.stdout):
            _close(pipe)


def _close(pipe: IO[bytes] | None) -> None:
    with contextlib.suppress(OSError):  # a request that was half written
        if pipe is not None:
            pipe.close()


def _understand(answer: dict[str, Any], blobs: list[bytes]) -> _Answer:
    """A child's answer, of which nothing is taken on trust. Raises `Rejected`, or `BadFrame` for nonsense."""
    try:
        if (refused := answer.get("refused")) is not None:
            raise Rejected(INVALID, str(refused["message"]), field=refused["field"] and str(refused["field"]))
        pictures = [
            Pixels(str(mode), int(width), int(height), data)
            for (mode, width, height), data in zip(answer["pictures"], blobs, strict=True)
        ]
        for picture in pictures:
            size = picture.width * picture.height * len(picture.mode)
            if picture.mode not in ("L", "RGB", "RGBA") or len(picture.data) != size:
                raise BadFrame("pixels that do not fill their picture")
        notes = [Note.model_validate(note) for note in answer["notes"]]
        return _Answer(pictures, notes, {str(k): str(v) for k, v in answer["texts"].items()})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadFrame("an answer of another shape") from error
