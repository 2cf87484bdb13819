"""Bad input ends in one `failed` result that a person understands, and the worker goes on."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.worker_process import drop, result, worker


def _png(size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return buffer.getvalue()


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _bomb() -> bytes:
    """A PNG whose header says 30000 x 30000."""
    data = bytearray(_png())
    data[16:24] = (30000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def _nested(levels: int) -> list[Any]:
    """A list in a list in a list."""
    nested: list[Any] = []
    for _ in range(levels):
        nested = [nested]
    return nested


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One worker for all of these tests; it must still run after them."""
    root = tmp_path_factory.mktemp("store")
    with worker(root) as process:
        yield root
        drop(root, "after-all.json", {"prompt": "still alive", "steps": 1})
        assert result(root, "after-all")["status"] == "succeeded"
        assert process.poll() is None


PICTURE = {"prompt": "x", "steps": 1}
CASES: list[tuple[str, Any, str, str | None, str]] = [
    # name, document, code, field, a word of the message
    ("broken", b'{"prompt": "x",\n "steps": }', "invalid_json", None, "line 2, column 11"),
    ("scalar", b"42", "invalid_json", None, "JSON object"),
    ("zero-bytes", b"", "invalid_json", None, "empty"),
    ("wrong-type", {"prompt": "x", "steps": "many"}, "invalid_manifest", "steps", "integer"),
    ("typo", {"prompt": "x", "stesp": 3}, "invalid_manifest", "stesp", "did you mean 'steps'"),
    ("empty-prompt", {"prompt": "  "}, "invalid_manifest", "prompt", "empty"),
    ("half", b'{"prompt": "x", "\\ud83d": 1}', "invalid_json", None, "unpaired surrogate"),
    ("half-metadata", b'{"steps": 1, "metadata": {"a": "\\ud83d"}}', "invalid_json", None, "\\ud83d"),
    ("half-twice", b'{"\\ud83d": 1, "\\ud83d": 2}', "invalid_json", None, "twice"),
    ("deep", {"prompt": "x", "metadata": {"a": _nested(300)}}, "invalid_json", None, "deeply"),
    ("deep-and-wrong", {"prompt": "x", "steps": _nested(800)}, "invalid_json", None, "deeply"),
    ("nan", b'{"prompt": "x", "cfg_scale": NaN}', "invalid_json", None, "NaN"),
    ("infinite", b'{"prompt": "x", "cfg_scale": 1e999}', "invalid_manifest", "cfg_scale", "finite"),
    ("huge", {"prompt": "x", "width": 1_000_000, "height": 8}, "invalid_manifest", "width", "at most"),
    ("steps", {"prompt": "x", "steps": 100_000}, "invalid_manifest", "steps", "at most"),
    ("odd-size", {"prompt": "x", "width": 100}, "invalid_manifest", "width", "multiples of 8"),
    ("base64", PICTURE | {"image": "!!!not base64!!!"}, "invalid_image", "image", "base64"),
    ("no-picture", PICTURE | {"image": _b64(b"hello, I am text" * 9)}, "invalid_image", "image", "PNG"),
    ("bomb", PICTURE | {"image": _b64(_bomb())}, "invalid_image", "image", "pixels"),
    ("cut-png", PICTURE | {"image": _b64(_png()[:-40])}, "invalid_image", "image", "truncated"),
    ("foreign-key", PICTURE | {"image": "s3://other/secret.png"}, "invalid_manifest", "image", "own store"),
    (
        "parent-key",
        PICTURE | {"image": "uploads/../requests/a.png"},
        "invalid_manifest",
        "image",
        "may not read",
    ),
    ("model", {"prompt": "x", "model": "doodel"}, "unknown_model", "model", "doodle"),
    ("scheduler", {"prompt": "x", "scheduler": "Eulr"}, "unknown_scheduler", "scheduler", "Euler"),
    ("dots", {"prompt": "x", "id": "../../etc"}, "invalid_manifest", "id", "letters"),
    ("slash", {"prompt": "x", "id": "a/b"}, "invalid_manifest", "id", "letters"),
    ("control", {"prompt": "x", "id": "a\u0007b"}, "invalid_manifest", "id", "letters"),
    ("long-id", {"prompt": "x", "id": "x" * 300}, "invalid_manifest", "id", "100"),
    ("expired", {"prompt": "x", "expires_at": "2001-01-01T00:00:00Z"}, "expired", "expires_at", "passed"),
]


@pytest.mark.parametrize(("name", "document", "code", "field", "word"), CASES, ids=[c[0] for c in CASES])
def test_bad_input_is_answered_in_words(
    store: Path, name: str, document: Any, code: str, field: str | None, word: str
):
    """One result, with code, field and a message that says what is wrong; the request object is deleted."""
    path = drop(store, f"{name}.json", document)
    answer = result(store, name)
    assert answer["status"] == ("expired" if code == "expired" else "failed")
    assert answer["failure"]["code"] == code
    assert answer["failure"]["field"] == field
    assert word in answer["failure"]["message"]
    assert answer["images"] == []
    _gone(path)


def test_a_photograph_of_a_megabyte_holds_nobody_up(store: Path):
    """Base64 with many slashes is not mistaken for a key; searching it for one took minutes."""
    noise = Image.frombytes("RGB", (640, 640), os.urandom(640 * 640 * 3))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    drop(store, "noise.json", {"prompt": "x", "steps": 1, "image": _b64(buffer.getvalue())})
    assert result(store, "noise")["status"] == "succeeded"


def test_broken_json_tells_line_and_column(store: Path):
    """Line and column are fields of their own, for programs."""
    drop(store, "where.json", b'{\n  "prompt": "x"\n  "steps": 3}')
    failure = result(store, "where")["failure"]
    assert (failure["line"], failure["column"]) == (3, 3)


def test_a_file_over_the_limit_is_refused_unread(store: Path):
    """100 MB are not read; the message names the size and the limit."""
    path = store / "requests" / "big.json.tmp"
    path.parent.mkdir(exist_ok=True)
    with path.open("wb") as file:
        file.truncate(100_000_000)
    path.rename(store / "requests" / "big.json")
    failure = result(store, "big")["failure"]
    assert failure["code"] == "too_large"
    assert "100,000,000" in failure["message"]


def test_a_mask_of_another_size_is_resized_with_a_warning(store: Path):
    """Not an error: the picture is drawn, and the warning says what was done."""
    document = PICTURE | {"image": _b64(_png()), "mask_image": _b64(_png((32, 32)))}
    drop(store, "mask.json", document)
    answer = result(store, "mask")
    assert answer["status"] == "succeeded"
    assert any(w["field"] == "mask_image" for w in answer["warnings"])


def test_strict_turns_the_warning_into_a_failure(store: Path):
    """With `strict`, nothing is changed silently or otherwise."""
    document = PICTURE | {"image": _b64(_png()), "mask_image": _b64(_png((32, 32))), "strict": True}
    drop(store, "strict.json", document)
    answer = result(store, "strict")
    assert answer["status"] == "failed"
    assert "strict" in answer["failure"]["message"]


@pytest.mark.parametrize("key", ["with space", "a+b", "50%", "a=b", "grüße", "日本"])
def test_keys_of_any_letters_are_served(store: Path, key: str):
    """An unsafe name gets a safe id; its result says which request it was."""
    drop(store, f"{key}.json", {"prompt": "x", "steps": 1, "metadata": {"key": key}})
    from schemas.layout import request_id

    answer = result(store, request_id(f"requests/{key}.json"))
    assert answer["status"] == "succeeded"
    assert answer["metadata"] == {"key": key}


def test_links_and_pipes_in_the_inbox_do_no_harm(store: Path, tmp_path: Path):
    """A FIFO does not hang the worker, a symbolic link is not followed."""
    secret = tmp_path / "secret.json"
    secret.write_text('{"prompt": "x", "steps": 1}')
    os.mkfifo(store / "requests" / "pipe.json")
    (store / "requests" / "link.json").symlink_to(secret)
    drop(store, "past-the-pipe.json", {"prompt": "x", "steps": 1})
    assert result(store, "past-the-pipe")["status"] == "succeeded"
    assert secret.exists()
    assert not (store / "results" / "link").exists()


def test_links_and_pipes_in_the_inbox_are_told_of(tmp_path: Path):
    """The worker's log names each once, however often it looks; `status` and `doctor` name them, too."""
    (tmp_path / "requests").mkdir()
    os.mkfifo(tmp_path / "requests" / "pipe.json")
    (tmp_path / "requests" / "folder").symlink_to(tmp_path)
    (tmp_path / "requests" / ".hidden.json").symlink_to(tmp_path)
    with worker(tmp_path) as process:
        for number in range(3):
            drop(tmp_path, f"{number}.json", {"prompt": "x", "steps": 1})
            result(tmp_path, str(number))
        process.terminate()
        _, logged = process.communicate(timeout=120)
    told = [line for line in logged.splitlines() if "is ignored: it is a link, a pipe or a device" in line]
    assert [name for name in ("pipe.json", "folder", "hidden") for line in told if name in line] == [
        "pipe.json",
        "folder",
    ]
    for command in ("status", "doctor"):
        run = [sys.executable, "-m", "producer.cli", command, "--store", str(tmp_path)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=120)
        assert "'requests/pipe.json'" in done.stdout + done.stderr, command


def test_a_half_copied_file_is_waited_for(store: Path):
    """A file that grows into valid JSON is drawn, not refused."""
    path = store / "requests" / "slow-copy.json"
    text = json.dumps({"prompt": "x", "steps": 1, "metadata": {"half": False}})
    path.write_text(text[:-1])
    drop(store, "meanwhile.json", {"prompt": "x", "steps": 1})
    while not (store / "results" / "meanwhile" / "result.json").exists():
        with path.open("a") as file:
            file.write(" ")  # it grows all the while, however slow the worker is
        time.sleep(0.02)
    with path.open("a") as file:
        file.write(text[-1])
    assert result(store, "slow-copy")["status"] == "succeeded"


def _gone(path: Path) -> None:
    ends = time.monotonic() + 120
    while path.exists() and time.monotonic() < ends:
        time.sleep(0.02)
    assert not path.exists()
