"""Where workers come from when thousands are needed: imported once, then forked.

A worker takes most of a second to import; a fork takes milliseconds. The nursery is a process of
its own, without threads. It reads one JSON line for each worker to start and answers with its
process id; when its input ends, it ends what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(eq=False)
class Child:
    """A worker process, started by a nursery."""

    pid: int
    log: Path
    _fd: int  # which the kernel tells of its end

    @property
    def alive(self) -> bool:
        return not self._ended(0)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._fd >= 0:
                signal.pidfd_send_signal(self._fd, number)

    def wait(self, seconds: float) -> bool:
        """Whether it has ended by then."""
        return self._ended(seconds)

    def _ended(self, seconds: float) -> bool:
        return self._fd < 0 or bool(select.select([self._fd], [], [], seconds)[0])

    def close(self) -> None:
        os.close(self._fd)
        self._fd = -1


@dataclass
class Nursery:
    """The parent's end."""

    process: subprocess.Popen[str]
    logs: Path
    started: int = 0
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def start(
        self, *options: str, environment: Mapping[str, str] | None = None, spoil: str = "", **facts: Any
    ) -> Child:
        """Start `dreamdrop worker` with these options.

        Args:
            spoil: a module whose `spoil(**facts)` is called in the new process first.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with self._turn:
            self.started += 1
            log = self.logs / f"worker-{self.started:05d}.log"
            order = {"options": options, "environment": dict(environment or {}), "log": str(log)}
            self.process.stdin.write(json.dumps({**order, "spoil": spoil, "facts": facts}) + "\n")
            self.process.stdin.flush()
            pid = int(self.process.stdout.readline())
            return Child(pid, log, os.pidfd_open(pid))


@contextlib.contextmanager
def nursery(logs: Path) -> Iterator[Nursery]:
    """A nursery that writes each worker's log into a folder."""
    logs.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.chaos.nursery"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield Nursery(process, logs)


async def _warm() -> None:
    """Read the AWS library's large tables, which every fork then has."""
    from infra.aws import config_for, new_session

    for service in ("s3", "sqs"):
        session = new_session()
        config = config_for(session, tries=1, read_timeout=1)
        keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
        async with session.create_client(service, region_name="us-east-1", config=config, **keys):
            pass


def main() -> None:
    import consumer.cli
    import consumer.intake.queue
    import consumer.serve

    asyncio.run(_warm())
    # What is tested here is not the store, which is known: a few creates instead of a hundred and thirty.
    consumer.serve.probe = functools.partial(consumer.serve.probe, racers=2, rounds=1)
    children: set[int] = set()
    signal.signal(signal.SIGCHLD, lambda *_: _reap(children))
    print("ready", flush=True)
    for line in sys.stdin:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        pid = os.fork()
        if pid == 0:
            _become_worker(**json.loads(line))
        children.add(pid)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        print(pid, flush=True)
    _end(children)


def _become_worker(
    options: list[str], environment: dict[str, str], log: str, spoil: str, facts: dict[str, Any]
) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.environ.update(environment)
    status = 99
    try:
        if spoil:
            importlib.import_module(spoil).spoil(**facts)
        import consumer.cli

        consumer.cli.app(options, prog_name="dreamdrop worker")
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def _reap(children: set[int]) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)[0]) != 0:
            children.discard(ended)


def _end(children: set[int]) -> None:
    for number in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
        for pid in list(children):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        ends = time.monotonic() + (3 if number == signal.SIGTERM else 0)
        while children and time.monotonic() < ends:
            time.sleep(0.02)


if __name__ == "__main__":
    main()
