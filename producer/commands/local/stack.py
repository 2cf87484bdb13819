"""`make stack`: a bucket, a queue, a worker and the web server on this machine, until Ctrl-C.

It is what compose.yaml starts, as processes of this machine. The store and the queue are moto's server, which is made
for tests: it keeps everything in memory. `--endpoint URL` takes another server that speaks S3 and SQS and runs
already. What is not known here is passed on to `dreamdrop up`, and so to the worker.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import IO

from infra.child_process import child_environment, python_command
from producer.commands.session import FAILED, WRONG, say

STORE = "s3://dreamdrop"
PATIENCE = 120.0  # seconds until the store answers
STOP = 60.0  # seconds that worker and web server have to stop
#: The emulator takes any. They hide the user's own, which must not be sent to it.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "dreamdrop",
    "AWS_SECRET_ACCESS_KEY": "dreamdrop",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class NotStarted(Exception):
    """A part of the stack did not come up; the message says which and why."""


def main() -> int:
    """Run the stack. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="make stack", description=__doc__.partition("\n")[0])
    parser.add_argument("--endpoint", help="a server that speaks S3 and SQS, instead of moto's")
    parser.add_argument("--port", default="8000", help="the web server's port; 0 for any free one")
    chosen, passed_on = parser.parse_known_args()
    port = free_port() if chosen.port == "0" else chosen.port
    if not chosen.endpoint and find_spec("moto") is None:
        say(
            "make stack: moto is not installed: pip install -c constraints.txt -e '.[dev]', or give --endpoint"
        )
        return WRONG
    with stopping_on_signals(), contextlib.ExitStack() as stack:
        try:
            endpoint = chosen.endpoint or stack.enter_context(moto())
            environment = environment_for(endpoint)
            queue = set_up(environment)
            up = ["up", "--store", STORE, "--queue", queue, "--port", port, *passed_on]
            running = stack.enter_context(process(python_command("producer.cli", *up), environment))
            say(what_to_try(environment, queue, port))
            return running.wait()
        except NotStarted as error:
            say(f"make stack: {error}")
            return FAILED
        except KeyboardInterrupt:
            say("stopping ...")
            return 0


def environment_for(endpoint: str) -> dict[str, str]:
    """The caller's environment, with the emulator's address and credentials in place of theirs."""
    theirs = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return child_environment(theirs | CREDENTIALS | {"AWS_ENDPOINT_URL": endpoint})


@contextlib.contextmanager
def stopping_on_signals() -> Iterator[None]:
    """SIGTERM stops the stack as Ctrl-C does, and Ctrl-C does so in the background, too, where shells turn it off."""

    def stop(_number: int, _frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def process(
    command: list[str], environment: Mapping[str, str], log: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is told to end, and waited for, when the block is left; a second Ctrl-C kills it.

    Args:
        log: where its lines go, instead of ours.
    """
    running = subprocess.Popen(command, env=dict(environment), stdout=log, stderr=log, start_new_session=True)
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(STOP)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()


@contextlib.contextmanager
def moto() -> Iterator[str]:
    """moto's server on a free port of loopback; gives its address."""
    port = free_port()
    command = python_command("moto.server", "--host", "127.0.0.1", "--port", port)
    say("starting a store and a queue (moto's server, in memory) ...")
    with (
        tempfile.TemporaryFile() as log,  # it writes a line for each call
        process(command, environment_for(""), log) as running,  # it uses boto3, too
    ):
        endpoint = f"http://127.0.0.1:{port}"
        late = time.monotonic() + PATIENCE
        while not _answers(endpoint):
            if running.poll() is not None or time.monotonic() > late:
                log.seek(0)
                words = log.read().decode(errors="replace").split("\n")[-5:]
                raise NotStarted(f"the store does not answer on {endpoint}: {' '.join(words).strip()}")
            time.sleep(0.1)
        yield endpoint


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=5).close()
    except OSError:  # urllib's own errors are of this kind
        return False
    return True


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def set_up(environment: Mapping[str, str]) -> str:
    """Make the bucket, the queue and the notifications. Returns the queue's URL."""
    command = python_command(
        "producer.cli", "setup", "queue", "--store", STORE, "--apply", "--make-bucket", "--json"
    )
    done = subprocess.run(
        command, env=dict(environment), stdout=subprocess.PIPE, text=True, timeout=300, check=False
    )
    try:
        made = json.loads(done.stdout)
        if done.returncode == 0:
            return str(made["queue"])
    except (ValueError, KeyError):
        made = done.stdout
    raise NotStarted(f"the bucket and the queue could not be set up: {made}")


def what_to_try(environment: Mapping[str, str], queue: str, port: str) -> str:
    """What a developer can do with it, in another terminal."""
    names = ("AWS_ENDPOINT_URL", *CREDENTIALS)
    settings = " ".join(f"{name}={environment[name]}" for name in names)
    return f"""
In another terminal, in this folder:
  . .venv/bin/activate
  export DREAMDROP_STORE={STORE} DREAMDROP_QUEUE={queue}
  export {settings}
  dreamdrop submit examples/*.json --wait                     through the queue
  aws s3 cp examples/cat.json {STORE}/requests/cat.json     the bucket tells the queue, and the queue the worker
  dreamdrop fetch cat -o out/
  curl localhost:{port}/generate/ -H 'Accept: image/png' -d '{{"prompt": "a red circle"}}' > circle.png
Ctrl-C stops everything.
"""


if __name__ == "__main__":
    sys.exit(main())
