"""A renderer that cannot start says why in one line, whatever it was that ended it."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consumer.renderer import frames
from consumer.renderer.process import NotStarted
from consumer.renderer.protocol import RendererSettings
from consumer.renderer.stderr import last_words
from tests.renderer_children import running, with_child

DUMP = """Fatal Python error: _enter_buffered_busy: could not acquire lock for <_io.BufferedReader name='<stdin>'>
Python runtime state: finalizing (tstate=0x0000)

Current thread 0x00007f (most recent call first):
  <no Python frame>"""


def trace(error: str) -> str:
    return f'Traceback (most recent call last):\n  File "a.py", line 3, in main\n    import x\n{error}'


NO_TORCH = trace("ModuleNotFoundError: No module named 'torch'")
NO_FOLDER = trace("FileNotFoundError: [Errno 2] No usable temporary directory found in ['/tmp', '/var/tmp']")
NO_DRIVER = trace("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory")


@pytest.mark.parametrize(
    ("stderr", "status", "words"),
    [
        (NO_TORCH, 1, r"^torch is not installed; a worker needs: pip install 'dreamdrop\[consumer\]'$"),
        (f"{NO_TORCH}\n{DUMP}", -6, "^torch is not installed"),
        (NO_FOLDER, 1, "No usable temporary directory.*set TMPDIR"),
        (NO_DRIVER, 1, "libcudart.so.12.*--devices cpu"),
        (trace("RuntimeError: too old\nand more words"), 1, "^RuntimeError: too old$"),
        (trace("consumer.engine.devices.BadDevice: no device 'x'"), 1, "^BadDevice: no device 'x'$"),
        (trace("KeyboardInterrupt"), 1, "^KeyboardInterrupt$"),
        (DUMP, -6, "^Fatal Python error: _enter_buffered_busy"),
        ("no model of that name\n", 1, "^no model of that name$"),
        ("", -9, "killed before it said anything.*memory"),
        ("", -11, "ended by SIGSEGV"),
        ("", 3, "exit status 3"),
    ],
)
def test_the_cause_is_found_in_what_was_written(stderr: str, status: int, words: str):
    """The last error of a traceback, with a remedy; never the dump that Python writes when it aborts."""
    said = last_words(stderr.splitlines(), status)
    assert re.search(words, said), said
    assert "<no Python frame>" not in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_library", "no_such_library is not installed"),
        (r"raise RuntimeError('too old\nand more words')", "did not start: RuntimeError: too old$"),
        ("os.kill(os.getpid(), 11)", "ended by SIGSEGV"),
        ("import faulthandler; faulthandler.enable(); os.abort()", "Fatal Python error: Aborted"),
        ("os._exit(3)", "exit status 3"),
    ],
)
def test_a_child_that_ends_at_its_start_says_why(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """However it ends: by an exception, by a signal, or without a word."""
    with_child(tmp_path, code, monkeypatch)

    async def story() -> None:
        async with running():
            raise AssertionError("unreachable")

    with pytest.raises(NotStarted, match=words) as error:
        asyncio.run(story())
    assert "<no Python frame>" not in str(error.value)


def test_a_null_child_that_fails_does_not_abort():
    """An error of the main thread is not hidden by the thread that still reads the pipe."""
    code = (
        "import consumer.renderer.null as null\n"
        "def run(self): raise RuntimeError('the cause')\n"
        "null.NullRenderer.run = run\n"
        "null.main()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe) as child:
        assert child.stdin is not None
        assert child.stderr is not None
        child.stdin.write(frames.pack(RendererSettings(kind="null")))
        child.stdin.flush()
        status = child.wait(timeout=60)  # its stdin is still open, so the thread still reads
        errors = child.stderr.read().decode()
    assert status != -signal.SIGABRT, errors
    assert errors.strip().endswith("RuntimeError: the cause")
