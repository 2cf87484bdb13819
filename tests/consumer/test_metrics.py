"""Metrics and probes of a real worker process, read by Prometheus' own parser."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from consumer.metrics import Costs
from tests.scraping import watched
from tests.worker_process import drop, result, worker


def test_a_worker_that_drew_tells_what_it_did(tmp_path: Path):
    """Ends by status and code, images, steps, slots, calls to the store, times, and what waits."""
    with watched(tmp_path, seconds_per_step=0.01, fail_on="broken", crash_on="deadly") as one:
        one.until("/readyz", 200)
        drop(tmp_path, "two.json", {"prompt": "a cat", "steps": 3, "number_of_images": 2, "model": "doodle"})
        drop(tmp_path, "express/fast.json", {"prompt": "a dog", "steps": 2})
        drop(tmp_path, "broken.json", {"prompt": "broken", "steps": 1})
        drop(tmp_path, "bad.json", {"prompt": "x", "steps": "many"})
        drop(tmp_path, "rows.jsonl", b'{"prompt": "x", "steps": 1}\n{"prompt": "y", "steps": 1}\n')
        for id in ("two", "fast", "broken", "bad", "rows"):
            result(tmp_path, id)
        drop(tmp_path, "deadly.json", {"prompt": "deadly", "steps": 1})
        result(tmp_path, "deadly")
        figures = one.after(ends=8)
    ended = "dreamdrop_requests_ended_total"
    assert figures.sum(ended, kind="request", status="succeeded", code="") == 4
    assert figures.sum(ended, kind="request", status="failed", code="render_error") == 1
    assert figures.sum(ended, kind="request", status="failed", code="invalid_manifest") == 1
    assert figures.sum(ended, kind="request", status="failed", code="worker_crashed") == 1
    assert figures.sum(ended, kind="batch", status="succeeded") == 1
    assert figures.sum("dreamdrop_images_drawn_total", model="doodle", task="text2img") == 5
    assert figures.sum("dreamdrop_images_failed_total", code="render_error") == 1
    assert figures.sum("dreamdrop_renderer_losses_total", device="cpu", why="crashed") == 3
    assert figures.sum("dreamdrop_request_seconds_count", lane="express") == 1
    steps = figures.sum("dreamdrop_step_seconds_count", model="doodle")
    assert steps >= 3 * 2 + 2 + 1 + 2
    assert figures.sum("dreamdrop_unet_rows_total") == figures.sum("dreamdrop_unet_slots_total") == steps
    assert figures.sum("dreamdrop_store_call_seconds_count", verb="create") >= 6
    assert figures.sum("dreamdrop_store_call_seconds_count", verb="list") >= 1
    assert figures.sum("dreamdrop_inbox_requests") == 0
    assert figures.sum("dreamdrop_backlog_images") == 0
    assert figures.sum("dreamdrop_picture_bytes") == 0
    assert figures.sum("dreamdrop_renderer_images_limit", device="cpu") == 32
    assert figures.sum("process_resident_memory_bytes") > 0
    labels = {value for label in ("code", "model", "lane", "kind") for value in figures.values(label)}
    assert not {"two", "fast", "a cat"} & labels


def test_what_waits_is_told_in_seconds_of_a_device(tmp_path: Path):
    """A request that is being drawn and others in the inbox, from the time that one took before."""
    with watched(tmp_path, "--max-rows", "2", seconds_per_step=0.05) as one:
        drop(tmp_path, "first.json", {"prompt": "x", "steps": 4, "width": 64, "height": 64})
        result(tmp_path, "first")
        for number in range(20):
            drop(tmp_path, f"{number}.json", {"prompt": "x", "steps": 100, "width": 64, "height": 64})
        ends = time.monotonic() + 120
        while (figures := one.scrape()).sum("dreamdrop_backlog_images", lane="normal") < 4:
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert figures.sum("dreamdrop_renderer_images", device="cpu") >= 1
        pending = figures.sum("dreamdrop_backlog_images")
        each = figures.sum("dreamdrop_backlog_gpu_seconds", place="claimed") / pending
        assert each >= 4 * 0.05


def test_a_sweep_that_gives_up_is_counted_as_an_end(tmp_path: Path):
    """It is no job's result: a dead worker used up the attempts."""
    with worker(tmp_path, "--max-attempts", "1", null={"hang_on": "slow"}) as dead:
        drop(tmp_path, "slow.json", {"prompt": "slow", "steps": 1})
        ends = time.monotonic() + 120
        while not (tmp_path / "claims/slow").exists() or (tmp_path / "requests/slow.json").exists():
            assert time.monotonic() < ends
            time.sleep(0.02)
        dead.kill()
        dead.wait()
    with watched(tmp_path, "--max-attempts", "1") as one:
        result(tmp_path, "slow")
        figures = one.after(ends=1)
    assert figures.sum("dreamdrop_requests_ended_total", code="worker_crashed") == 1


def test_a_worker_is_ready_until_it_drains(tmp_path: Path):
    """While it draws its last image it is healthy and not ready."""
    with watched(tmp_path, "--grace", "100", seconds_per_step=0.1) as one:
        assert one.until("/readyz", 200) == "ok\n"
        assert one.until("/healthz", 200) == "ok\n"
        drop(tmp_path, "long.json", {"prompt": "x", "steps": 30})
        ends = time.monotonic() + 120
        while not one.scrape().values("model"):  # it has made a step: what has not begun is given back
            assert time.monotonic() < ends
            time.sleep(0.05)
        one.process.terminate()
        assert one.until("/readyz", 503) == "draining\n"
        assert one.until("/healthz", 200) == "ok\n"
        assert one.scrape().sum("dreamdrop_draining") == 1
        assert result(tmp_path, "long")["status"] == "succeeded"
        assert one.process.wait(60) == 0


def test_a_taken_port_is_one_sentence(tmp_path: Path):
    with watched(tmp_path) as one:
        port = one.url.rpartition(":")[2]
        with worker(tmp_path, "--metrics-port", port) as second:
            _, log = second.communicate(timeout=120)
    assert second.returncode == 3
    assert f"metrics cannot be served at 127.0.0.1:{port}" in log
    assert "--metrics-port" in log


def test_images_that_share_a_device_are_charged_its_time_once():
    """Two images of four seconds, drawn together, cost two seconds each."""
    now = 0.0
    costs = Costs(lambda: now)
    kind = ("m", 64, 64)
    assert costs.image(kind) is None
    now = 4.0
    costs.drawn("cpu", kind, 4.0)
    costs.drawn("cpu", kind, 4.0)
    costs.ended()
    assert costs.image(kind) == pytest.approx(2.0, rel=0.02)
    assert costs.image(("another", 8, 8)) == costs.image(kind)
    assert costs.request == pytest.approx(4.0)
    now = 104.0
    costs.drawn("cpu", kind, 1.0)  # the device was idle before: only its own second counts
    assert costs.image(kind) == pytest.approx(5 / 3, rel=0.02)
