"""A worker that dies at a given file-system call of one request's life.

`spoil` is called in a new worker process before it begins. From the moment that the request is
opened, every call that changes the file system is counted and noted; at the given one the process
is gone, before the call happens.
"""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from consumer.jobs import progress

CALLS = ("open", "write", "utime", "fsync", "link", "rename", "unlink", "mkdir", "rmdir")


def spoil(request: str, at: int, trace: str) -> None:
    """Arm this process.

    Args:
        request: the file name at whose first opening the count begins.
        at: the call, counted from 1, that does not happen any more; 0 for none.
        trace: a file for what was called.
    """
    progress._AFTER = (
        math.inf
    )  # on a slow machine there would be a status, and so more calls than in another run
    lock = threading.Lock()
    notes = open(trace, "w")  # noqa: SIM115 - it lives as long as the process
    count = 0
    armed = False

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **named: Any) -> Any:
            nonlocal count, armed
            opens = name == "open" and not args[1] & os.O_CREAT
            if opens and args[0] == request:
                armed = True
            if not armed or opens:
                return real(*args, **named)
            with lock:  # one at a time, so that what was noted is what was done
                count += 1
                notes.write(f"{name} {args[0]}\n")
                notes.flush()
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **named)

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
