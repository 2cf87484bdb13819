"""The worker that `dreamdrop up` starts and ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

from infra.child_process import child_environment, python_command
from producer.commands.session import say

DRAIN = 40.0  # seconds that a worker has to drain


def start(
    options: Sequence[str],
    store: str,
    queues: Sequence[str],
    metrics: tuple[str, int | None],
    log_format: str,
) -> subprocess.Popen[bytes]:
    """Start `dreamdrop worker`.

    Args:
        options: of its command line.
        metrics: the address and the port where the facade serves its metrics; the worker's port is the next one.
    """
    environment = os.environ | {"DREAMDROP_STORE": store, "DREAMDROP_QUEUE": " ".join(queues)}
    environment.setdefault("DREAMDROP_LOG_LEVEL", "warning")
    if not queues:
        environment.pop("DREAMDROP_QUEUE")
    environment["DREAMDROP_LOG_FORMAT"] = log_format
    host, port = metrics
    if port is not None:
        environment |= {
            "DREAMDROP_METRICS_HOST": host,
            "DREAMDROP_METRICS_PORT": str(port + 1 if port else 0),
        }
    # The worker first: it loads its model while the facade starts. In a session of its own, so that Ctrl-C
    # reaches only us, and we choose when it stops.
    return subprocess.Popen(
        python_command("producer.cli", "worker", *options),
        env=child_environment(environment),
        start_new_session=True,
    )


def drain(worker: subprocess.Popen[bytes]) -> None:
    """Let the worker drain; kill it if it does not end in time."""
    if worker.poll() is None:
        say("stopping: the worker finishes what it has begun, or gives it back ...")
        worker.send_signal(signal.SIGTERM)
    try:
        worker.wait(DRAIN)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
