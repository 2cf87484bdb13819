"""The parent's handle on the process that trains.

The process imports torch and decodes strangers' pictures, so its environment holds no credentials and it
sees local folders only. It reports in lines of JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from infra.child_process import child_environment, python_command, without_secrets

log = logging.getLogger(__name__)

_LONGEST_LINE = 1 << 22  # bytes
_EXIT_WAIT = 10.0  # seconds after SIGKILL


class TrainingChild:
    """One run of `python -m training` on a work folder, on one device or, through accelerate, on several."""

    def __init__(self, folder: Path, *, processes: int = 1) -> None:
        self._folder = folder
        self._processes = processes
        self._process: asyncio.subprocess.Process | None = None
        self._has_spoken = False  # from then on it saves a checkpoint when it is told to stop

    async def start(self, *, finish: bool = False) -> None:
        """Start the process.

        Args:
            finish: make the product of the newest checkpoint, without another step.
        """
        arguments = ["--work", str(self._folder), "--tied", *(["--finish"] if finish else [])]
        command = python_command("training", *arguments)
        if self._processes > 1 and not finish:
            launch = [
                "--multi_gpu",
                "--num_processes",
                str(self._processes),
                "--module",
                "training",
                *arguments,
            ]
            command = python_command("accelerate.commands.launch", *launch)
        with self.log_file.open("ab") as stderr:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self._folder,
                env=child_environment(without_secrets()),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                limit=_LONGEST_LINE,
                start_new_session=True,  # Ctrl-C reaches the parent, which tells the child to save
            )

    @property
    def log_file(self) -> Path:
        """What the process wrote to its standard error."""
        return self._folder / "training.log"

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """What the process reports, until it ends."""
        process = self._process
        assert process is not None, "start it first"
        assert process.stdout is not None
        while line := await process.stdout.readline():
            try:
                event = json.loads(line)
            except ValueError:
                log.debug("a library's output", extra={"line": line[:200].decode(errors="replace")})
                continue
            if isinstance(event, dict):
                self._has_spoken = True
                yield event
        await process.wait()

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._process.returncode if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def save_and_stop(self) -> None:
        """Tell the process to write a checkpoint and exit; one that is only starting has nothing to save."""
        self._signal(signal.SIGTERM if self._has_spoken else signal.SIGKILL)

    async def kill(self) -> None:
        """End the process and its children at once."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _EXIT_WAIT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def last_words(self) -> str:
        """The last line of its standard error that names an error, for the result of a training that failed."""
        try:
            lines = self.log_file.read_text(errors="replace").splitlines()[-200:]
        except OSError:
            lines = []
        errors = [line.strip() for line in lines if re.match(r"^(\w+\.)*\w*(Error|Exception|Killed)\b", line)]
        status = self.status or 0
        how = f"it ended by signal {-status}" if status < 0 else f"exit status {status}"
        return errors[-1][:500] if errors else how
