"""`python -P -m infra.health`: whether the processes of this container answer, for its health check.

A container runs a worker, a web server or both (`dreamdrop up`). A worker answers on DREAMDROP_METRICS_PORT, a web
server on DREAMDROP_PORT. A port that nobody listens on belongs to a process that does not run here. Every other one
must answer, and there must be one. The standard library is enough, so a check costs little while the machine draws.
"""

from __future__ import annotations

import http.client
import os
import sys
from collections.abc import Mapping

TIMEOUT = 4.0  # seconds for each port
WORKER_PORT = "9100"
FACADE_PORT = "8000"

ALIVE = {"DREAMDROP_METRICS_PORT": "/healthz", "DREAMDROP_PORT": "/livez"}
READY = {"DREAMDROP_METRICS_PORT": "/readyz", "DREAMDROP_PORT": "/readyz"}
DEFAULTS = {"DREAMDROP_METRICS_PORT": WORKER_PORT, "DREAMDROP_PORT": FACADE_PORT}


def problems(environment: Mapping[str, str], paths: Mapping[str, str] = ALIVE) -> list[str]:
    """What is wrong with the processes of this container, a sentence each; empty if all is well.

    Args:
        environment: the ports, as the processes were told.
        paths: what to ask for on the port that a variable names.
    """
    found, listening = [], 0
    for name, path in paths.items():
        text = environment.get(name, "") or DEFAULTS[name]
        if not (text.isascii() and text.isdecimal() and int(text) < 65536):
            found.append(f"{name} is {text!r}; give a port, such as {DEFAULTS[name]}")
            continue
        try:
            status = _status(int(text), path)
        except ConnectionRefusedError:
            continue
        except (OSError, http.client.HTTPException) as error:
            found.append(f"port {text} ({name}) does not answer {path}: {error or type(error).__name__}")
        else:
            if status != 200:
                found.append(f"port {text} ({name}) answers {path} with {status}")
        listening += 1
    if not listening and not found:
        ports = " and ".join(environment.get(name, "") or DEFAULTS[name] for name in paths)
        found.append(
            f"nobody listens on the ports {ports}: set DREAMDROP_METRICS_PORT for a worker, and DREAMDROP_PORT, "
            "not --port, for a web server"
        )
    return found


def _status(port: int, path: str) -> int:
    """The status of an answer on loopback. Proxies of the environment are not asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def main(arguments: list[str]) -> int:
    """Print what is wrong. Returns the exit status: 0 if all is well, 1 if not, 2 for unknown arguments."""
    if arguments not in ([], ["--ready"]):
        print("usage: python -P -m infra.health [--ready]", file=sys.stderr)
        return 2
    found = problems(os.environ, READY if arguments else ALIVE)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
