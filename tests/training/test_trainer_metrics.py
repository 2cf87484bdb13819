"""A trainer's port for metrics and probes, of a real process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]


def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Values by name and the labels' values, in the order of the labels' names."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=60).text)
    return {
        (s.name, *(v for _, v in sorted(s.labels.items()))): s.value
        for family in families
        for s in family.samples
    }


def test_a_trainer_tells_what_it_ended(tmp_path: Path):
    """A training that can never succeed ends as failed; while it waits for none, nothing is held."""
    command = [sys.executable, "-c", "from training.cli import trainer; trainer()"]
    command += ["--store", str(tmp_path), "--metrics-port", "0"]
    trainer = subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    try:
        assert trainer.stderr is not None
        while not (found := re.search(r"url=(\S+)/metrics", line := trainer.stderr.readline())):
            assert line, "it ended"
        url = found[1]
        assert httpx.get(f"{url}/readyz", timeout=60).text == "ok\n"
        (tmp_path / "trainings").mkdir(exist_ok=True)
        (tmp_path / "trainings" / "half.json.tmp").write_text(json.dumps({"name": 5}))
        (tmp_path / "trainings" / "half.json.tmp").rename(tmp_path / "trainings" / "bad.json")
        ended = ("dreamdrop_requests_ended_total", "invalid_manifest", "training", "failed")
        ends = time.monotonic() + 120
        while ended not in (samples := scrape(url)):
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert samples[ended] == 1
        assert samples["dreamdrop_trainings_held",] == 0
        assert samples["dreamdrop_store_call_seconds_count", "create"] >= 2
    finally:
        trainer.terminate()
        trainer.communicate(timeout=120)
    assert trainer.returncode == 0
