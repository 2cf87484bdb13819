"""Other programs' ways to put a folder of files into a bucket or a directory."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.interop.servers import KEY, REGION, SECRET, Server

LIMIT = 300.0  # seconds for a client's whole upload

#: A Python client puts each file under its path below the folder.
SMART_OPEN = """
import pathlib, shutil, sys
import smart_open
folder, place = pathlib.Path(sys.argv[1]), sys.argv[2]
for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    with open(path, "rb") as source, smart_open.open(
        f"s3://{place}/requests/{path.relative_to(folder)}", "wb", transport_params={"min_part_size": 5 << 20}
    ) as target:
        shutil.copyfileobj(source, target)
"""
S3FS = """
import pathlib, shutil, sys
import s3fs
folder, place = pathlib.Path(sys.argv[1]), sys.argv[2]
files = s3fs.S3FileSystem(endpoint_url=sys.argv[3], default_block_size=5 << 20)
for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    with open(path, "rb") as source, files.open(f"{place}/requests/{path.relative_to(folder)}", "wb") as target:
        shutil.copyfileobj(source, target)
"""
BOTO3 = """
import pathlib, sys
import boto3
from boto3.s3.transfer import TransferConfig
folder, (bucket, prefix) = pathlib.Path(sys.argv[1]), sys.argv[2].split("/")
s3 = boto3.client("s3")
parts = TransferConfig(multipart_threshold=5 << 20, multipart_chunksize=5 << 20)
for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    s3.upload_file(str(path), bucket, f"{prefix}/requests/{path.relative_to(folder)}", Config=parts)
"""


@dataclass(frozen=True)
class Clients:
    """The programs of the clients' environment, and those of the system."""

    home: Path  # a virtual environment

    def __getitem__(self, name: str) -> str:
        """A program's path. Raises `KeyError` where it is not installed."""
        found = shutil.which(name, path=f"{self.home / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
        if found is None:
            raise KeyError(name)
        return found

    def version(self, name: str) -> str:
        """What a package or a program says of its version."""
        if name in ("boto3", "smart_open", "s3fs", "piexif"):
            code = f"import importlib.metadata; print(importlib.metadata.version({name!r}))"
            return self._said([str(self.home / "bin" / "python"), "-c", code])
        program = {"s3fs-fuse": "s3fs", "aws sync": "aws"}.get(name, name)
        flag = {"rclone": "version", "s5cmd": "version", "exiftool": "-ver"}.get(name, "--version")
        found = re.search(r"\d+\.\d[\w.]*", self._said([self[program], flag]))
        return found[0] if found else "?"

    def _said(self, command: list[str]) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return (done.stdout or done.stderr).strip()


def run(command: list[str], environment: dict[str, str]) -> None:
    """A client's call, which must succeed."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, (
        f"{command[:4]} ended with {done.returncode}:\n{done.stdout[-1500:]}{done.stderr[-3000:]}"
    )


#: A folder's files to `requests/` of a place, which is `bucket/prefix`.
Upload = Callable[[Clients, Server, Path, str], None]


def aws(clients: Clients, server: Server, folder: Path, place: str) -> None:
    run(
        [clients["aws"], "s3", "cp", "--recursive", str(folder), f"s3://{place}/requests/"],
        server.environment(),
    )


def aws_sync(clients: Clients, server: Server, folder: Path, place: str) -> None:
    run([clients["aws"], "s3", "sync", str(folder), f"s3://{place}/requests/"], server.environment())


#: Without the second, rclone leaves out one of two names that differ in how an accent is written.
RCLONE = ("--config", os.devnull, "--no-unicode-normalization")


def rclone(clients: Clients, server: Server, folder: Path, place: str) -> None:
    remote = f":s3,provider=Other,env_auth=true,region={REGION},endpoint='{server.url}':{place}/requests"
    parts = ["--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M", "--s3-force-path-style"]
    run([clients["rclone"], "copy", *RCLONE, *parts, str(folder), remote], server.environment())


def s3cmd(clients: Clients, server: Server, folder: Path, place: str) -> None:
    host = server.url.removeprefix("http://")
    keys = ["--access_key", KEY, "--secret_key", SECRET, "--region", REGION]
    where = ["--host", host, "--host-bucket", host, "--no-ssl", "-c", os.devnull]
    command = [clients["s3cmd"], *where, *keys, "--multipart-chunk-size-mb", "5", "put", "--recursive"]
    run([*command, f"{folder}/", f"s3://{place}/requests/"], server.environment())


def s5cmd(clients: Clients, server: Server, folder: Path, place: str) -> None:
    command = [clients["s5cmd"], "--endpoint-url", server.url, "cp", "--part-size", "5"]
    run([*command, f"{folder}/", f"s3://{place}/requests/"], server.environment())


def _python(code: str) -> Upload:
    def upload(clients: Clients, server: Server, folder: Path, place: str) -> None:
        command = [str(clients.home / "bin" / "python"), "-c", code, str(folder), place, server.url]
        run(command, server.environment())

    return upload


def s3fs_fuse(clients: Clients, server: Server, folder: Path, place: str) -> None:
    """A bucket that is mounted as a folder, and `cp`."""
    bucket, _, prefix = place.partition("/")
    with mounted(clients, server, folder.parent / "mount", bucket) as mount:
        inbox = mount / prefix / "requests"
        inbox.mkdir(parents=True, exist_ok=True)
        run(["cp", "-r", f"{folder}/.", f"{inbox}/"], server.environment())


@contextlib.contextmanager
def mounted(clients: Clients, server: Server, mount: Path, bucket: str) -> Iterator[Path]:
    mount.mkdir(exist_ok=True)
    options = f"url={server.url},use_path_request_style,endpoint={REGION},multipart_size=5"
    process = subprocess.Popen(
        [clients["s3fs"], bucket, str(mount), "-f", "-o", options],
        env=server.environment() | {"AWSACCESSKEYID": KEY, "AWSSECRETACCESSKEY": SECRET},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends = time.monotonic() + 20
        while not mount.is_mount():
            assert time.monotonic() < ends, "s3fs did not mount the bucket"
            time.sleep(0.1)
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=False)
        process.wait(20)


UPLOADS: dict[str, Upload] = {
    "aws": aws,
    "aws sync": aws_sync,
    "rclone": rclone,
    "s3cmd": s3cmd,
    "s5cmd": s5cmd,
    "boto3": _python(BOTO3),
    "smart_open": _python(SMART_OPEN),
    "s3fs": _python(S3FS),
    "s3fs-fuse": s3fs_fuse,
}

Copy = Callable[[Clients, Path, Path], None]  # a folder's files to another folder


def _copied(*command: str) -> Copy:
    def copy(clients: Clients, folder: Path, target: Path) -> None:
        words = [word.format(source=folder, target=target) for word in command]
        run([clients[words[0]], *words[1:]], dict(os.environ))

    return copy


def moved(clients: Clients, folder: Path, target: Path) -> None:
    """What a careful user does: write elsewhere, then rename."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, half := target.parent / "half")
        half.rename(place)


COPIES: dict[str, Copy] = {
    "cp": _copied("cp", "-r", "{source}/.", "{target}/"),
    "mv": moved,
    "rclone": _copied("rclone", "copy", *RCLONE, "{source}", "{target}"),
    "rsync": _copied("rsync", "-r", "{source}/", "{target}/"),
    "tar": _copied("sh", "-c", "tar -C '{source}' -cf - . | tar -C '{target}' -xf -"),
}
