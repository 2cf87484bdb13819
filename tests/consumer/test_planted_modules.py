"""Python files that somebody leaves in a worker's folder, or in its store, are never run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

NAMES = (
    "hashlib",
    "json",
    "random",
    "sitecustomize",
    "usercustomize",
    "torch",
    "PIL",
    "consumer",
    "tempfile",
)
ROOT = Path(__file__).parents[2]
CAT = {"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}
WORKER = ("--store", ".", "--renderer", "null", "--once")


def plant(folder: Path, evidence: Path) -> None:
    """Modules that leave a line when they are run."""
    for name in NAMES:
        text = f"open({str(evidence)!r}, 'a').write({name!r} + '\\n')\nraise ImportError('planted')\n"
        (folder / f"{name}.py").write_text(text)


def environment() -> dict[str, str]:
    """This checkout is what runs, wherever it is installed."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.parametrize(
    "command",
    [
        [str(Path(sys.executable).with_name("dreamdrop")), "worker", *WORKER],
        [sys.executable, "-m", "consumer", *WORKER],
        [sys.executable, "-P", "-m", "producer.cli", "worker", *WORKER],
    ],
    ids=["dreamdrop worker", "python -m consumer", "python -P"],
)
@pytest.mark.parametrize("renderer", ["null", "diffusers"])
def test_a_worker_runs_nothing_of_its_folder(command: list[str], renderer: str, tmp_path: Path):
    """The store is the working directory; parent and renderer child use their own modules."""
    evidence = tmp_path / "evidence"
    store = tmp_path / "store"
    (store / "requests").mkdir(parents=True)
    (store / "requests" / "cat.json").write_text(json.dumps(CAT))
    for folder in (store, store / "requests"):
        plant(folder, evidence)
    if command[1:3] == ["-m", "consumer"]:
        (store / "consumer.py").unlink()  # Python itself would take it for the program
    command = [renderer if word == "null" else word for word in command]

    done = subprocess.run(
        command, cwd=store, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )

    assert not evidence.exists(), evidence.read_text()
    assert done.returncode == 0, done.stderr
    assert json.loads((store / "results/cat/result.json").read_text())["status"] == "succeeded"


def test_up_runs_nothing_of_its_folder(tmp_path: Path):
    """Nor does the worker that `dreamdrop up` starts, which has its credentials."""
    evidence = tmp_path / "evidence"
    store = tmp_path / "store"
    (store / "requests").mkdir(parents=True)
    (store / "requests" / "cat.json").write_text(json.dumps(CAT))
    plant(store, evidence)
    command = [str(Path(sys.executable).with_name("dreamdrop")), "up", "--store", ".", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=store, env=environment() | {"DREAMDROP_RENDERER": "null"}, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 240
        while not (store / "results/cat/result.json").exists() and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)

    assert not evidence.exists(), evidence.read_text()
    assert (store / "results/cat/result.json").exists()


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')",
            "torch is not installed; a worker needs: pip install 'dreamdrop[consumer]'",
        ),
        (
            "raise OSError('libcudart.so.13: cannot open shared object file')",
            "OSError: libcudart.so.13: cannot open shared object file; install the package or the GPU driver that has "
            "it, or use --devices cpu",
        ),
    ],
)
def test_a_renderer_that_cannot_start_says_why_in_one_line(module: str, said: str, tmp_path: Path):
    """A client's installation without torch, or a driver that is missing: the last log line names it."""
    (tmp_path / "libraries" / "torch").mkdir(parents=True)
    (tmp_path / "libraries" / "torch" / "__init__.py").write_text(module)
    command = [str(Path(sys.executable).with_name("dreamdrop")), "worker", "--store", str(tmp_path / "s")]
    path = f"{tmp_path / 'libraries'}:{ROOT}"

    done = subprocess.run(
        [*command, "--devices", "cpu"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith(said)
    assert "Traceback" not in done.stderr
