"""S3 servers that others wrote, each as a process on loopback. Each has one bucket."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

START = 60.0  # seconds for a server to answer
KEY, SECRET, REGION = "test-key", "test-secret", "us-east-1"
BUCKET = "interop"  # SeaweedFS sets volumes aside for each bucket, which takes space and seconds


@dataclass(frozen=True)
class Server:
    """Where one listens, and what it is."""

    name: str
    version: str
    url: str

    def s3(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 1}),
        )

    def environment(self) -> dict[str, str]:
        """What AWS's libraries and command line need to find it, without the user's own settings."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DREAMDROP_"))}
        return kept | {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[Server]:
    """Moto's server, as the ordinary tests use it."""
    import moto as package

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder, "moto", package.__version__, port) as server:
        yield server


@contextlib.contextmanager
def seaweed(folder: Path, clients: Path) -> Iterator[Server]:
    """SeaweedFS: a master, a volume server, a filer and the S3 gateway in one process."""
    weed = clients / "bin" / "weed"
    identity = {
        "name": "test",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    port, *others = (free_port() for _ in range(4))
    command = [str(weed), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder / 'data'}"]
    command += ["-s3", f"-s3.port={port}", f"-s3.config={folder / 's3.json'}", "-volume.max=50"]
    command += ["-master.volumeSizeLimitMB=64"]
    for name, other in zip(("master", "volume", "filer"), others, strict=True):
        command += [f"-{name}.port={other}", f"-{name}.port.grpc={free_port()}"]
    command += [f"-s3.port.grpc={free_port()}"]
    version = subprocess.run([weed, "version"], capture_output=True, text=True, check=True).stdout.split()[2]
    with _running(command, folder, "SeaweedFS", version, port) as server:
        yield server


@contextlib.contextmanager
def _running(command: list[str], folder: Path, name: str, version: str, port: int) -> Iterator[Server]:
    server = Server(name, version, f"http://127.0.0.1:{port}")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        ends = time.monotonic() + START
        while True:
            with contextlib.suppress(BotoCoreError, ClientError):
                server.s3().create_bucket(Bucket=BUCKET)
                server.s3().put_object(Bucket=BUCKET, Key="first", Body=b"x")  # there is room to write
                break
            alive = process.poll() is None and time.monotonic() < ends
            assert alive, f"{name} did not start:\n{(folder / 'log').read_text(errors='replace')[-2000:]}"
            time.sleep(0.3)
        yield server
    finally:
        process.kill()  # SeaweedFS takes half a minute to stop in order
        process.wait(30)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
