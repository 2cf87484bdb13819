"""Forty odd names, large bodies and broken uploads, through the clients that people have."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.interop.clients import COPIES, UPLOADS, Clients
from tests.interop.conftest import Figures, needs
from tests.interop.servers import BUCKET, Server

PATIENCE = 90.0  # seconds for all results
ROOT = Path(__file__).parents[2]
#: Names that file systems hold and that break programs which join, quote or encode them carelessly.
NAMES = [
    "plain.json", "two words.json", " leading.json", "trailing .json", "a+b.json", "100%.json", "a%20b.json",
    "a%2Fb.json", "a#b.json", "a?b.json", "a&b=c.json", "a;b.json", "a,b.json", "a@b.json", "a:b.json", "a=b.json",
    "it's.json", '"quoted".json', "`ticks`.json", "$(id).json", "$HOME.json", "!bang.json", "(a).json", "[a].json",
    "{a}.json", "<a>.json", "a|b.json", "a^b.json", "a*b.json", "back\\slash.json", "~.json", "-n.json", "--help.json",
    "UPPER.JSON", "a..b.json", "result.json", "caf\u00e9.json", "cafe\u0301.json", "\u732b.json", "\U0001f431.json",
    "\u05d7\u05ea\u05d5\u05dc.json", "a" * 200 + ".json", "deep/er/and/deeper/a.json", "express.json", "0.json",
    "a.json.json", "null.json",
]  # fmt: skip


def manifest(name: str, **more: Any) -> bytes:
    fields = {"prompt": "a red circle", "steps": 1, "width": 64, "height": 64, "metadata": {"name": name}}
    return json.dumps(fields | more).encode()


@pytest.fixture
def group() -> str:
    """The folder of one test's requests, below `requests/`."""
    return secrets.token_hex(6)


@pytest.fixture
def names(tmp_path: Path, group: str) -> Path:
    """A folder with a request under each of the names, in the test's group."""
    folder = tmp_path / "names"
    for name in NAMES:
        path = folder / group / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(manifest(name))
    return folder


@contextlib.contextmanager
def worker(store: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """A worker that draws flat pictures."""
    command = [sys.executable, "-m", "consumer", "--store", store, "--renderer", "null", "--grace", "2"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=out)
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


class Bucket:
    """What a store in a bucket holds, read by other means than ours."""

    def __init__(self, server: Server, log: Path) -> None:
        self.place = f"{BUCKET}/store"
        self.log = log
        self.s3 = server.s3()

    def at(self, key: str) -> dict[str, str]:
        return {"Bucket": BUCKET, "Key": f"store/{key}"}

    def keys(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"store/{prefix}")
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [key.removeprefix("store/") for key in found]

    def read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(**self.at(key))["Body"].read())


class Folder:
    """The same for a directory."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root = root
        self.log = log

    def keys(self, prefix: str) -> list[str]:
        found = (Path(at, name) for at, _, names in os.walk(self.root / prefix) for name in names)
        return [str(path.relative_to(self.root)) for path in found]

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()


@pytest.fixture(scope="session")
def bucket(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bucket]:
    """A bucket with a worker. There is one worker for all tests, as SeaweedFS takes 40 s to be probed."""
    log = tmp_path_factory.mktemp("worker") / "log"
    store = Bucket(server, log)
    with worker(f"s3://{store.place}", server.environment(), log):
        yield store


def results(store: Bucket | Folder, group: str, count: int) -> list[dict[str, Any]]:
    """All results, once there are enough, or once time is over."""
    ends = time.monotonic() + PATIENCE
    while True:
        found = [key for key in store.keys(f"results/{group}/") if key.endswith("/result.json")]
        if len(found) >= count and not requests(store, group):
            return [json.loads(store.read(key)) for key in found]
        if time.monotonic() > ends:
            names = {(json.loads(store.read(key)).get("metadata") or {}).get("name") for key in found}
            raise AssertionError(
                f"{len(found)} of {count} results; in the inbox: {requests(store, group)}; without a result: "
                f"{sorted(set(NAMES) - names)}\n{store.log.read_text(errors='replace')[-2000:]}"
            )
        time.sleep(0.5)


def requests(store: Bucket | Folder, group: str) -> list[str]:
    """What still lies in the inbox; a client's marker of a folder is no request."""
    return [key for key in store.keys(f"requests/{group}/") if not key.endswith("/")]


def one_result_each(found: list[dict[str, Any]]) -> None:
    """Every name was drawn once, and nothing else was."""
    assert Counter(result["metadata"]["name"] for result in found) == Counter(NAMES)
    assert Counter(result["status"] for result in found) == {"succeeded": len(NAMES)}
    assert len({result["id"] for result in found}) == len(NAMES)


@pytest.mark.parametrize("client", UPLOADS)
def test_odd_names_in_a_bucket_have_one_result_each(
    server: Server, bucket: Bucket, clients: Clients, client: str, names: Path, group: str, figures: Figures
):
    """Whatever key a client makes of a name: a result for it, and only one."""
    needs(clients, client)
    UPLOADS[client](clients, server, names, bucket.place)
    found = results(bucket, group, len(NAMES))
    one_result_each(found)
    figures(
        "odd names", f"{client} {clients.version(client)}", f"{server.name} {server.version}",
        f"{len(found)} of {len(NAMES)}",
    )  # fmt: skip


@pytest.mark.parametrize("client", COPIES)
def test_odd_names_in_a_directory_have_one_result_each(
    clients: Clients, client: str, names: Path, group: str, tmp_path: Path, figures: Figures
):
    """The same for what copies files."""
    needs(clients, client)
    store, log = tmp_path / "store", tmp_path / "worker.log"
    (store / "requests").mkdir(parents=True)
    with worker(str(store), dict(os.environ), log):
        COPIES[client](clients, names, store / "requests")
        found = results(Folder(store, log), group, len(NAMES))
    one_result_each(found)
    version = "" if client == "mv" else f" {clients.version(client)}"
    figures("odd names", f"{client}{version}", "directory", f"{len(found)} of {len(NAMES)}")


LARGE = 1504  # pixels a side; noise of that size is 9 MB in a manifest


@pytest.mark.parametrize("client", UPLOADS)
def test_a_body_in_several_parts_is_one_request(
    server: Server,
    bucket: Bucket,
    clients: Clients,
    client: str,
    group: str,
    tmp_path: Path,
    figures: Figures,
):
    """A manifest with a large picture, which the client sends as a multipart upload, is drawn once and right."""
    needs(clients, client)
    body = json.dumps({"prompt": "a red circle", "steps": 1, "image": noise(LARGE)}).encode()
    assert len(body) > 8 << 20  # from there on awscli sends parts
    path = tmp_path / "large" / group / "large.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(body)

    UPLOADS[client](clients, server, tmp_path / "large", elsewhere := f"{BUCKET}/{client.replace(' ', '-')}")
    copy = f"{elsewhere.partition('/')[2]}/requests/{group}/large.json"
    assert "-" in bucket.s3.head_object(Bucket=BUCKET, Key=copy)["ETag"], "the client sent it in one piece"

    UPLOADS[client](clients, server, tmp_path / "large", bucket.place)
    [result] = results(bucket, group, 1)
    assert (result["status"], result["id"]) == ("succeeded", f"{group}/large")
    assert (result["images"][0]["width"], result["images"][0]["height"]) == (LARGE, LARGE)
    figures(
        f"a body of {len(body) / 1e6:.0f} MB in parts", f"{client} {clients.version(client)}",
        f"{server.name} {server.version}", "1 of 1",
    )  # fmt: skip


def noise(side: int) -> str:
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(out, "PNG", compress_level=0)
    return base64.b64encode(out.getvalue()).decode()


def test_an_upload_that_is_not_complete_is_no_request(
    server: Server, bucket: Bucket, group: str, figures: Figures
):
    """Parts without their end, and a body that breaks off, are not drawn; once complete they are, once."""
    s3, where = bucket.s3, bucket.at(f"requests/{group}/parts.json")
    body = manifest("parts") + b" " * (6 << 20)  # blanks after JSON are JSON
    upload = s3.create_multipart_upload(**where)["UploadId"]
    pieces = [body[: 5 << 20], body[5 << 20 :]]
    tags = [
        s3.upload_part(**where, UploadId=upload, PartNumber=k, Body=piece)["ETag"]
        for k, piece in enumerate(pieces, start=1)
    ]
    break_off(server, bucket.at(f"requests/{group}/broken.json"), manifest("broken"))
    s3.put_object(**bucket.at(f"requests/{group}/after.json"), Body=manifest("after"))
    [result] = results(bucket, group, 1)
    assert result["metadata"]["name"] == "after"

    parts = [{"PartNumber": k, "ETag": tag} for k, tag in enumerate(tags, start=1)]
    s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload={"Parts": parts})
    found = results(bucket, group, 2)
    assert Counter(result["metadata"]["name"] for result in found) == {"after": 1, "parts": 1}
    figures("uploads that break off", "boto3, sockets", f"{server.name} {server.version}", "none drawn")


def break_off(server: Server, where: dict[str, str], body: bytes) -> None:
    """Announce a body, send half of it, and hang up."""
    url = server.s3().generate_presigned_url("put_object", Params=where)
    host, port = server.url.removeprefix("http://").split(":")
    path = url.removeprefix(server.url)
    head = f"PUT {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + body[: len(body) // 2])
        time.sleep(0.2)


@pytest.mark.parametrize("pause", [0.3, 2.0])
def test_files_that_are_written_slowly_are_read_whole(
    tmp_path: Path, group: str, pause: float, figures: Figures
):
    """A manifest and a batch whose writer pauses in the middle of a line: one result each, with every row."""
    store, log = tmp_path / "store", tmp_path / "worker.log"
    inbox = store / "requests" / group
    inbox.mkdir(parents=True)
    rows = [manifest(f"row{k}")[:-1] + b', "custom_id": "row%d"}' % k for k in range(6)]
    whole = b"\n".join(rows) + b"\n"
    with worker(str(store), dict(os.environ), log):
        writers = [
            threading.Thread(target=write_slowly, args=(inbox / name, body, pause))
            for name, body in (("one.json", manifest("one")), ("many.jsonl", whole))
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        found = results(Folder(store, log), group, len(rows) + 2)
    names = Counter((result.get("metadata") or {}).get("name") for result in found)
    assert names == Counter(["one", None, *(f"row{k}" for k in range(len(rows)))])
    assert {result["status"] for result in found} == {"succeeded"}
    figures("files written in pieces", f"pauses of {pause:g} s", "directory", "every row, once")


def write_slowly(path: Path, body: bytes, pause: float) -> None:
    """As `cp` from a slow disk does: pieces that end anywhere."""
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(body), max(1, len(body) // 4 + 1)):
            file.write(body[start : start + len(body) // 4 + 1])
            time.sleep(pause)
