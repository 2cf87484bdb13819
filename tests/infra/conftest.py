"""The stores' own tests add a second S3 server, so that no server's quirk becomes our protocol.

A third is yours: with DREAMDROP_TEST_STORE=s3://bucket (and the AWS variables) the suite runs there, too.
"""

from __future__ import annotations

import os
import random
import secrets
import urllib.request
from typing import TYPE_CHECKING

import boto3
import pytest

from infra.queues.sqs import Queue
from infra.stores.directory.store import DirectoryStore
from infra.stores.s3 import S3Store
from tests.conftest import pretend_credentials

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.servers.s3_front import S3Front

    Make = Callable[..., str]


KINDS = ["memory", "directory", "s3", "moto"]


@pytest.fixture(params=[*KINDS, "given"] if "DREAMDROP_TEST_STORE" in os.environ else KINDS)
def store_url(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A fresh store's URL, of each kind in turn."""
    if request.param == "moto":
        endpoint = request.getfixturevalue("moto_url")
        pretend_credentials(monkeypatch, endpoint)
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-bucket", method="PUT")).close()
        yield "s3://moto-bucket"
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST")).close()
    elif request.param == "given":
        yield f"{os.environ['DREAMDROP_TEST_STORE']}/{secrets.token_hex(8)}"
    elif request.param == "s3":
        request.getfixturevalue("s3_front")
        yield "s3://bucket/some/prefix"
    else:
        yield "memory://" if request.param == "memory" else str(tmp_path / "store")


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[DirectoryStore]:
    """An open store in a directory of its own, beside which there is room for strangers."""
    async with DirectoryStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
async def bucket(s3_front: S3Front) -> AsyncIterator[S3Store]:
    """An open store on the server that can misbehave; its waits are drawn from a fixed seed."""
    async with S3Store("s3://bucket", patience=20, rng=random.Random(7), read_timeout=0.5) as opened:
        s3_front.requests.clear()
        yield opened


@pytest.fixture
def make(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(Attribute="value")`: a new queue's URL. Nothing but the URL says where the server is."""
    pretend_credentials(monkeypatch, moto_url)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    sqs = boto3.client("sqs", endpoint_url=moto_url, region_name="us-east-1")

    def queue(**attributes: str) -> str:
        return str(sqs.create_queue(QueueName=secrets.token_hex(8), Attributes=attributes)["QueueUrl"])

    return queue


@pytest.fixture
async def queue(make: Make) -> AsyncIterator[Queue]:
    """An open, empty queue."""
    async with Queue(make()) as opened:
        yield opened
