"""A live worker's heartbeat in a directory, and `dreamdrop estimate` beside it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from consumer.renderer.protocol import DeviceCall
from consumer.speeds import Speeds
from infra.models.cards import Cards
from infra.stores.open import open_store
from producer.cli import app

ROW, IMAGE = 0.005, 0.1  # seconds


def alive(store: Path, *, measured: bool = True) -> None:
    """Write the heartbeat of a worker with two devices."""
    cards, speeds = Cards.of(), Speeds()
    for _ in range(3 * measured):
        speeds.called(DeviceCall("unet", "doodle", 128 * 128, 16, 16, ROW * 16, ROW * 16))
        speeds.called(DeviceCall("decode", "doodle", 128 * 128, 1, 16, IMAGE, IMAGE))
    facts: dict[str, Any] = {
        "v": 1,
        "session": "w",
        "seq": 1,
        "models": cards.known(),
        "defaults": cards.defaults(),
        "default_model": "doodle",
        "devices": ["cpu", "cpu"],
        "speeds": speeds.facts(),
    }

    async def write() -> None:
        async with open_store(str(store)) as opened:
            await opened.put("workers/w", json.dumps(facts).encode())

    asyncio.run(write())


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["estimate", *arguments])
