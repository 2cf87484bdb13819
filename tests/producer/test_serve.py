"""`dreamdrop serve` and `up` as commands: who is let in, what is said, and how they end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.producer.facade import ROOT, address_of, command, ready, worker

PROMPT = {"prompt": "a red circle", "steps": 2, "width": 64, "height": 64, "seed": 5}
#: `dreamdrop up` by somebody who speaks of a worker that has shown no sign of life for a moment.
IMPATIENT = "import producer.commands.serve as s; s.START = 0.0; from producer.cli import app; app()"
#: `dreamdrop serve` by somebody who gives open calls a second when the server stops.
BRISK = "import producer.commands.serve as s; s.GRACE = 1.0; from producer.cli import app; app()"


def test_other_machines_are_let_in_with_keys_only(tmp_path: Path):
    """`serve` on an open address refuses to start, says how to make a key, and the key then works."""
    refused = command("serve", "--store", str(tmp_path), "--host", "0.0.0.0", "--port", "0")
    assert "dreamdrop keys new" in refused.communicate(timeout=240)[1]
    assert refused.returncode == 2
    made = command("keys", "new", "alice", "--json").communicate(timeout=240)[0]
    made = json.loads(made)
    served = command(
        "serve",
        "--store",
        str(tmp_path),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
        DREAMDROP_API_KEYS=made["setting"],
    )
    try:
        address = address_of(served)
        assert httpx.get(f"{address}/jobs").status_code == 401
        assert httpx.get(f"{address}/jobs", headers={"X-API-Key": made["key"]}).status_code == 200
    finally:
        served.send_signal(signal.SIGTERM)
        _, errors = served.communicate(timeout=240)
    assert made["key"] not in errors
    assert served.returncode == 0


def test_up_starts_everything_and_ends_everything(tmp_path: Path):
    """One command: a worker and a facade, ready when it says so; a signal ends both."""
    up = command("up", "--store", str(tmp_path / "s"), "--port", "0", DREAMDROP_RENDERER="null")
    try:
        address = address_of(up)
        assert httpx.post(f"{address}/generate/", json=PROMPT, timeout=240).status_code == 200
    finally:
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=240)
    assert up.returncode in (0, 130), errors
    assert not list((tmp_path / "s" / "workers").glob("*"))  # the worker has taken its leave


def test_a_worker_that_starts_slowly_is_waited_for(tmp_path: Path):
    """`up` says that it is ready when the worker is, however long that takes, and ends in order."""
    up = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, "up", "--store", str(tmp_path / "s"), "--port", "0"],
        cwd=ROOT,
        env=os.environ | {"DREAMDROP_RENDERER": "null"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = address_of(up)
        assert httpx.get(f"{address}/readyz").status_code == 200
    finally:
        up.send_signal(signal.SIGINT)
        _, errors = up.communicate(timeout=240)
    assert up.returncode in (0, 130), errors
    assert "Traceback" not in errors


def test_a_name_that_is_given_is_the_only_one_that_is_answered_to(tmp_path: Path):
    """On an open address, too: without keys a page could else reach it by a name of its own."""
    served = command(
        *("serve", "--store", str(tmp_path), "--host", "0.0.0.0", "--port", "0"),
        *("--without-keys", "--allow-host", "dream.example"),
    )
    try:
        address = address_of(served)
        assert httpx.get(f"{address}/jobs").status_code == 200
        assert httpx.get(f"{address}/jobs", headers={"Host": "dream.example:8000"}).status_code == 200
        assert httpx.get(f"{address}/jobs", headers={"Host": "evil.example"}).status_code == 421
    finally:
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=240)


def test_a_stream_ends_when_the_server_is_stopped(tmp_path: Path):
    """Whoever watches a job is let go at once, without a traceback; the job stays."""
    slow = json.dumps({"seconds_per_step": 0.5})
    with worker(tmp_path, "--null", slow):
        served = command("serve", "--store", str(tmp_path), "--port", "0")
        try:
            address = address_of(served)
            ready(address)
            httpx.put(f"{address}/jobs/long", json=PROMPT | {"steps": 100}).raise_for_status()
            with httpx.stream("GET", f"{address}/jobs/long/events", timeout=240) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: job"
                served.send_signal(signal.SIGTERM)
                for _ in lines:
                    pass  # to an end in order: one that is cut off raises
        finally:
            if served.poll() is None:
                served.send_signal(signal.SIGTERM)
            _, errors = served.communicate(timeout=240)
    assert served.returncode == 0
    assert "Traceback" not in errors
    assert list((tmp_path / "claims" / "long").iterdir())


def test_a_caller_that_waits_when_the_server_stops_is_told_where_its_picture_will_be(tmp_path: Path):
    """504 with the id, as for any wait that ends too early; the work goes on."""
    slow = json.dumps({"seconds_per_step": 0.5})
    with worker(tmp_path, "--null", slow), ThreadPoolExecutor(1) as caller:
        served = subprocess.Popen(
            [sys.executable, "-c", BRISK, "serve", "--store", str(tmp_path), "--port", "0"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            address = address_of(served)
            ready(address)
            body = PROMPT | {"steps": 100}
            waiting = caller.submit(lambda: httpx.post(f"{address}/generate/", json=body, timeout=240))
            while not httpx.get(f"{address}/jobs").json()["processing"]:
                assert not waiting.done()
        finally:
            served.send_signal(signal.SIGTERM)
            _, errors = served.communicate(timeout=240)
        answer = waiting.result()
        assert answer.status_code == 504
        id = answer.json()["id"]
        assert answer.headers["location"] == f"/jobs/{id}"
        assert list((tmp_path / "claims" / id).iterdir())
    assert "Traceback" not in errors


def test_metrics_have_a_port_of_their_own(tmp_path: Path):
    """`serve` with keys: who scrapes needs none, and learns what waits also while no worker is alive."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "requests" / "waits.json.tmp").write_text("{}")
    made = json.loads(command("keys", "new", "a", "--json").communicate(timeout=240)[0])
    settings = {"DREAMDROP_API_KEYS": made["setting"], "DREAMDROP_RENDERER": "null"}
    served = command("serve", "--store", str(tmp_path), "--port", "0", "--metrics-port", "0", **settings)
    try:
        assert served.stderr is not None
        while not (line := served.stderr.readline()).startswith("metrics: "):
            assert line, "it ended"
        url = line.split()[1].removesuffix("/metrics")
        address = address_of(served)
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert httpx.get(f"{url}/readyz").status_code == 503
        (tmp_path / "requests" / "waits.json.tmp").rename(tmp_path / "requests" / "waits.json")
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
            for sample in family.samples
        }
        assert samples["dreamdrop_inbox_requests", "normal"] == 1
        assert samples["dreamdrop_inbox_requests", "express"] == 0
        assert samples["dreamdrop_inbox_oldest_seconds", "normal"] >= 0
        assert samples["dreamdrop_workers_alive",] == 0
        assert samples["dreamdrop_http_answers_total", "GET", "/metrics", "401"] == 1
        with worker(tmp_path):
            ready(address)
            assert httpx.get(f"{url}/readyz").text == "ok\n"
    finally:
        served.send_signal(signal.SIGTERM)
        served.communicate(timeout=240)
    assert served.returncode == 0


def test_the_worker_of_up_serves_metrics_at_the_next_port(tmp_path: Path):
    """One number for both."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port = one.getsockname()[1]
    up = command(
        "up", "--store", str(tmp_path), "--port", "0", "--metrics-port", str(port), DREAMDROP_RENDERER="null"
    )
    try:
        address_of(up)
        assert "dreamdrop_workers_alive 1.0" in httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "dreamdrop_renderer_ready" in httpx.get(f"http://127.0.0.1:{port + 1}/metrics").text
    finally:
        up.send_signal(signal.SIGINT)
        up.communicate(timeout=240)
