"""What the tests of directory stores share: a listing's keys, and a script in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from infra.stores.directory.store import DirectoryStore


async def keys(store: DirectoryStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
