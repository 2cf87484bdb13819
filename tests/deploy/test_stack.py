"""`make stack`: bucket, queue, worker and web server come up with one command, draw, and go."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import httpx
import pytest

from tests.deploy.dockerfile import ROOT

SMALL = {"prompt": "a red circle on a blue background", "steps": 2, "width": 64, "height": 64, "seed": 5}


def start(*options: str, **environment: str) -> subprocess.Popen[str]:
    """The command of `make stack`, by a user who has AWS credentials of their own."""
    theirs = {"AWS_PROFILE": "production", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    return subprocess.Popen(
        [sys.executable, "-m", "producer.commands.local.stack", "--port", "0", *options],
        cwd=ROOT,
        env=os.environ | theirs | {"PYTHONPATH": str(ROOT)} | environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(process: subprocess.Popen[str], pattern: str) -> str:
    """What was printed up to a line with this pattern."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if re.search(pattern, line):
            return "".join(lines)
    raise AssertionError("".join(lines))


def children_of(process: subprocess.Popen[str]) -> set[int]:
    """The processes that descend from one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, _, rest = stat.read_text().partition(" (")
        except OSError:
            continue  # it has ended
        parents[int(pid)] = int(rest.rpartition(") ")[2].split()[1])
    found, new = set(), {process.pid}
    while new := {pid for pid, parent in parents.items() if parent in new} - found:
        found |= new
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="it looks at processes in /proc")
def test_one_command_draws_through_the_queue_and_over_http(tmp_path: Path):
    """A file in the bucket is drawn because the queue announced it; Ctrl-C ends all four processes."""
    process = start(
        DREAMDROP_RENDERER="null", DREAMDROP_RECONCILE="3600"
    )  # a listing would take it in an hour
    try:
        said = read_until(process, "ready: http")
        address = re.findall(r"ready: (http://\S+)", said)[0]
        assert httpx.post(f"{address}/generate/", json=SMALL, timeout=240).status_code == 200

        settings = dict(re.findall(r"\b(AWS_\w+)=(\S+)", said))
        s3 = boto3.client(
            "s3",
            endpoint_url=settings["AWS_ENDPOINT_URL"],
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
            region_name=settings["AWS_REGION"],
        )
        s3.put_object(Bucket="dreamdrop", Key="requests/cat.json", Body=json.dumps(SMALL).encode())
        late = time.monotonic() + 240
        while (status := httpx.get(f"{address}/jobs/cat", timeout=60).json().get("status")) != "succeeded":
            assert time.monotonic() < late, status
            time.sleep(0.2)
        assert "production" not in said
        started = children_of(process)
        assert len(started) >= 4  # moto, the web server, the worker, its renderer
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    assert not {pid for pid in started if Path(f"/proc/{pid}").exists()}


def test_a_server_that_does_not_answer_is_said():
    """`--endpoint` with nobody there: the setup's own sentence, and the exit status."""
    process = start("--endpoint", "http://127.0.0.1:9")
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 1
    assert "could not be set up" in errors
    assert "Traceback" not in errors
