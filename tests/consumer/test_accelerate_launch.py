"""`accelerate launch -m consumer`: how many workers come up, on what, and that they serve one store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from consumer.renderer.devices import devices_of
from consumer.renderer.protocol import RendererSettings
from tests.worker_process import drop, result

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "infra/deploy/accelerate/config.yaml"
SMALL = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 5}


@contextmanager
def launched(store: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`accelerate launch` with the deployment's file; workers draw with the null renderer."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), *options]
    command += ["-m", "consumer", "--store", str(store), "--renderer", "null", "--grace", "2"]
    command += ["--max-rows", "2"]  # so that one worker cannot take all of them
    command += ["--null", json.dumps({"seconds_per_step": 0.1})]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=store, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.stderr is not None
        process.stderr.close()
        process.wait()


def sessions(process: subprocess.Popen[str], count: int) -> dict[str, str]:
    """The session and the device of so many workers, as they say that they are ready."""
    found: dict[str, str] = {}
    lines = []
    assert process.stderr is not None
    for line in process.stderr:
        lines.append(line)
        if " ready " in line and (match := re.search(r"device=(\S+).* session=(\S+)", line)):
            found[match[2]] = match[1]
            if len(found) == count:
                return found
    raise AssertionError("".join(lines))


def test_accelerate_reads_the_file():
    """By its own reader, which refuses unknown keys; several processes need MULTI_GPU."""
    config = load_config_from_file(str(CONFIG))
    assert config.distributed_type.value == "MULTI_GPU"
    assert config.num_processes == 2
    assert config.mixed_precision == "bf16"
    assert config.use_cpu is False


@pytest.mark.slow
def test_two_processes_serve_one_store_and_drain_together(tmp_path: Path):
    """On a machine without a GPU, too. Both draw, each request is drawn once, and SIGTERM ends both in order."""
    with launched(tmp_path) as process:
        names = sessions(process, 2)
        for number in range(24):
            drop(tmp_path, f"r{number:02}.json", SMALL | {"seed": number})
        results = [result(tmp_path, f"r{number:02}") for number in range(24)]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=240)
    assert {one["status"] for one in results} == {"succeeded"}
    assert {one["attempts"] for one in results} == {1}
    assert {one["worker"] for one in results} == set(names)
    assert not list((tmp_path / "workers").glob("*"))  # both have taken their leave


def test_a_rank_is_a_gpu_and_cpu_is_heard(monkeypatch: pytest.MonkeyPatch):
    """accelerate writes "True". `--devices` chooses where accelerate leaves it open."""
    asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        return subprocess.CompletedProcess(command, 0, json.dumps({"devices": [command[-1]]}), "")

    monkeypatch.setattr("consumer.renderer.devices.Path.exists", lambda _self: True)  # a driver
    monkeypatch.setattr("consumer.renderer.devices.subprocess.run", run)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert devices_of(RendererSettings(device="auto")) == ["cpu"]
    assert devices_of(RendererSettings(device="cuda:1")) == ["cuda:1"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "False")
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices_of(RendererSettings(device="auto")) == ["cuda:3"]
    assert asked == ["cuda:1", "cuda:3"]
