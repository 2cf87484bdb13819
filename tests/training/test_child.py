"""The process that trains knows no credentials."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from training.lease import child
from training.lease.child import TrainingChild

pytestmark = pytest.mark.anyio

REPORT = "import json, os; print(json.dumps({'event': 'environment', 'names': sorted(os.environ)}))"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "DREAMDROP_API_KEYS", "HF_TOKEN", "DB_PASSWORD", "OPENAI_API_KEY")
NEEDED = ("CUDA_VISIBLE_DEVICES", "TOKENIZERS_PARALLELISM", "HTTPS_PROXY")


async def test_the_process_that_trains_gets_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another program stands in for the training and reports its environment; devices and downloads have theirs."""
    for name in (*SECRETS, *NEEDED):
        monkeypatch.setenv(name, "x")
    monkeypatch.setattr(child, "python_command", lambda *_words: [sys.executable, "-c", REPORT])
    trains = TrainingChild(tmp_path)
    await trains.start()
    [event] = [event async for event in trains.events()]
    assert set(event["names"]).isdisjoint(SECRETS), json.dumps(event)
    assert set(NEEDED) <= set(event["names"])
    assert trains.status == 0
