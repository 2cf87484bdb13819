"""What the operating system refuses is one sentence with a remedy, in every command; never a traceback."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from infra.logs import Line
from producer.commands.session import sentence_of

Cli = Callable[..., subprocess.CompletedProcess[str]]
ROOT = Path(__file__).parents[2]
REQUEST = str(ROOT / "tests/wire/documented/text2img.json")


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield str(other.getsockname()[1])


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with a file where a store or an output folder should be."""
    (tmp_path / "file").write_text("hello")
    (tmp_path / "store").mkdir()
    return tmp_path


STORES = ("file", "file/below", "/proc/nonesuch")
OF_A_STORE = [
    *(["status"], ["watch"], ["models"], ["fetch", "cat"], ["cancel", "cat"], ["retry", "cat"], ["doctor"]),
    *(["imagine", "x", "--timeout", "0"], ["submit", REQUEST], ["setup", "queue"]),
    *(["replay", "file", "--submit"], ["dead-letters", "list"]),
]


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("command", OF_A_STORE, ids=lambda command: command[0])
def test_a_store_that_cannot_be_one(places: Path, dreamdrop: Cli, command: list[str], store: str):
    """A file, a path through a file, and a folder that cannot be made."""
    done = dreamdrop(*command, "--store", store)
    assert done.returncode in (1, 2, 3)
    assert "Traceback" not in done.stdout + done.stderr
    assert (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("command", [["imagine", "x"], ["submit", REQUEST], ["submit", REQUEST, "--json"]])
@pytest.mark.parametrize("out", ["file", "file/below", "/proc/nonesuch"])
def test_an_unwritable_output_folder_is_told_before_anything_is_sent(
    places: Path, dreamdrop: Cli, command: list[str], out: str
):
    """Exit code 2, and the store stays empty."""
    done = dreamdrop(*command, "--store", "store", "-o", out, "--timeout", "0")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "cannot use '" in done.stderr or "cannot use '" in json.loads(done.stdout)["error"]["message"]
    assert not [path for path in (places / "store").rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", ["up", "serve"])
def test_a_taken_port_is_one_sentence(places: Path, dreamdrop_process: Cli, taken: str, command: str):
    """With the way out, exit code 2, and no worker started."""
    done = dreamdrop_process(command, "--port", taken, DREAMDROP_RENDERER="null")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert done.stderr.splitlines()[-1].startswith(f"dreamdrop: port {taken} is taken; ")
    assert "stopping" not in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--host", "203.0.113.5", "--without-keys"), 2, "not an address of this machine"),
        (("--host", "nonesuch.invalid", "--without-keys"), 2, "cannot listen on nonesuch.invalid"),
        (("--store", "file", "--port", "0"), 3, "dreamdrop: "),
        (("--store", "/proc/nonesuch", "--port", "0"), 3, "dreamdrop: "),
    ],
)
@pytest.mark.parametrize("command", ["up", "serve"])
def test_up_and_serve_say_why_they_cannot(
    places: Path, dreamdrop_process: Cli, command: str, options: tuple[str, ...], code: int, words: str
):
    """Addresses and stores that cannot be used."""
    done = dreamdrop_process(command, *options, DREAMDROP_RENDERER="null")
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--log-level", "loud"), 2, "is none of debug, info and warning"),
        pytest.param(
            ("--attention", "xformers"),
            2,
            "xformers is not installed: ",
            marks=pytest.mark.skipif(find_spec("xformers") is not None, reason="it is installed"),
        ),
        (("--null", "{"), 2, "a JSON object"),
        (("--store", "file"), 3, "the worker cannot run"),
        (("--store", "/proc/nonesuch"), 3, "the worker cannot run"),
        (("--models", "x=/nonesuch"), 3, "the worker cannot run"),
        (("--loras", "x=file"), 3, "the worker cannot run"),
    ],
)
def test_a_worker_says_why_it_cannot(
    places: Path, dreamdrop_process: Cli, options: tuple[str, ...], code: int, words: str
):
    """Its options and its store; the exit codes are the documented ones."""
    done = dreamdrop_process("worker", "--renderer", "null", "--once", *options)
    assert (done.returncode, "Traceback" in done.stderr, words in done.stderr) == (code, False, True)


def test_a_missing_folder_for_temporary_files_is_told(places: Path, dreamdrop_process: Cli):
    """The worker works, elsewhere."""
    done = dreamdrop_process(
        "worker", "--renderer", "null", "--once", "--store", "store", TMPDIR=str(places / "gone")
    )
    assert done.returncode == 0
    assert f"TMPDIR is {places / 'gone'}, which cannot be written to" in done.stderr


OUTPUTS = [
    *(
        ["status"],
        ["status", "cat", "--json"],
        ["models", "--json"],
        ["watch", "cat", "--json"],
        ["keys", "new", "a"],
    ),
    *(["fetch", "cat", "-o", "out"], ["submit", REQUEST], ["cancel", "cat", "--json"], ["replay", "--help"]),
    *(["--help"], ["--version"], ["setup", "queue", "--store", "s3://bucket"], ["doctor", "--no-canary"]),
]


@pytest.mark.parametrize("command", OUTPUTS, ids=lambda command: "-".join(command[:2]))
def test_an_output_that_takes_nothing_is_no_traceback(places: Path, command: list[str]):
    """A full disk is one sentence, and a pipe whose reader has gone ends the command without a word."""
    body = b'{"prompt": "a cat"}'
    (folder := places / "store" / "results" / "cat").mkdir(parents=True)
    written = {"id": "cat", "status": "canceled", "fingerprint": "", "request": {"text": body.decode()}}
    (folder / "result.json").write_text(json.dumps(written))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DREAMDROP_"))}
    environment |= {"PYTHONPATH": str(ROOT), "DREAMDROP_STORE": "store"}
    run = [sys.executable, "-m", "producer.cli", *command]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            run, cwd=places, env=environment, stdout=full, stderr=subprocess.PIPE, timeout=120
        )
    silent = command == ["fetch", "cat", "-o", "out"]  # it has no images to name
    assert silent or (done.returncode, done.stderr.count(b"No space left")) == (2, 1)
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(
        run, cwd=places, env=environment, stdout=writer, stderr=subprocess.PIPE, timeout=120
    )
    os.close(writer)
    assert silent or gone.returncode == 1
    for text in (done.stderr, gone.stderr):
        assert b"Traceback" not in text
        assert b"Exception ignored" not in text


def test_files_that_cannot_be_read_are_named(places: Path, dreamdrop: Cli):
    """Requests and pictures that are a link to itself, or a folder."""
    (places / "loop").symlink_to("loop")
    for command in (
        ["submit", "loop"],
        ["replay", "loop"],
        ["replay", "store"],
        ["imagine", "x", "--image", "loop"],
    ):
        done = dreamdrop(*command)
        assert (done.returncode, command[-1] in done.stderr) == (2, True)


@pytest.mark.parametrize("number", range(1, 134))
def test_every_error_of_the_system_has_a_sentence(number: int):
    """With the place, the reason and something to do."""
    text = sentence_of(OSError(number, os.strerror(number), "/there"))
    assert text.startswith("cannot use '/there': ")
    assert "; " in text


def test_a_librarys_traceback_is_one_line():
    """asyncio and botocore log errors that others handle; our own keep their frames."""
    try:
        raise ValueError("a prompt")
    except ValueError as error:
        facts = {
            "exc_info": (ValueError, error, error.__traceback__),
            "msg": "Task exception was never retrieved",
        }
    line = Line(own=("consumer",))
    foreign = line.format(logging.makeLogRecord({"name": "asyncio", **facts}))
    assert foreign.endswith(
        "retrieved error=ValueError at test_cli_os_errors.py:" + foreign.rsplit(":", 1)[1]
    )
    assert ("\n" in foreign, "a prompt" in foreign) == (False, False)
    assert "Traceback" in line.format(logging.makeLogRecord({"name": "consumer.worker", **facts}))
