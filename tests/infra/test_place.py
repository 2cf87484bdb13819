"""A setting names a store; what names none is answered with what would."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from infra.stores.directory.store import DirectoryStore
from infra.stores.keys import check_metadata
from infra.stores.memory import MemoryStore
from infra.stores.open import open_store
from infra.stores.s3 import S3Store
from schemas.errors import Unsupported

if TYPE_CHECKING:
    from pathlib import Path


def test_each_scheme_opens_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Paths and file URLs are directories, s3 is a bucket, memory is memory."""
    monkeypatch.chdir(tmp_path)
    for url, folder in (
        ("data", tmp_path / "data"),
        ("./data", tmp_path / "data"),
        (str(tmp_path / "a b"), tmp_path / "a b"),
        (f"file://{tmp_path}/a%20b", tmp_path / "a b"),
        (f"file://localhost{tmp_path}", tmp_path),
        ("FILE:///srv/dream", None),
    ):
        store = open_store(url)
        assert isinstance(store, DirectoryStore)
        assert folder in (None, store.root)
        assert open_store(store.url).url == store.url
    assert isinstance(open_store("memory://"), MemoryStore)
    bucket = open_store("s3://bucket/a/b/")
    assert isinstance(bucket, S3Store)
    assert bucket.url == "s3://bucket/a/b"


def test_a_named_memory_is_shared_and_an_unnamed_one_is_not():
    """Two users of one name in a process meet."""
    assert open_store("memory://demo") is open_store("memory://demo")
    assert open_store("memory://") is not open_store("memory://")


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("gs://bucket", "give a directory"),
        ("https://minio:9000/bucket", "AWS_ENDPOINT_URL_S3"),
        ("", "give a directory"),
        ("file://server/share", "with three slashes"),
        ("file://", "with three slashes"),
    ],
)
def test_other_schemes_are_answered_with_what_to_write(url: str, hint: str):
    """The message shows the forms that work."""
    with pytest.raises(Unsupported, match=hint):
        open_store(url)


def test_a_directory_needs_no_aws_library(tmp_path: Path):
    """Opening a directory imports neither aiobotocore nor aiohttp nor watchfiles."""
    script = (
        "import asyncio, sys\n"
        "from infra.stores.open import open_store\n"
        "async def main():\n"
        f"    async with open_store({str(tmp_path / 'store')!r}) as store:\n"
        "        await store.create('requests/a.json', b'{}')\n"
        "asyncio.run(main())\n"
        "heavy = {'aiobotocore', 'botocore', 'aiohttp', 'boto3', 'watchfiles', 'torch'}\n"
        "sys.exit(' '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "metadata",
    [
        {"Plan": "x"},
        {"plan_hash": "x"},
        {"": "x"},
        {"plan": "é"},
        {"plan": " x"},
        {"plan": "a\nb"},
        {"plan": "x" * 1900},
    ],
)
def test_metadata_that_no_header_can_carry_is_refused(metadata: dict[str, str]):
    """Every store refuses it, so that no one finds out only in a bucket."""
    with pytest.raises(ValueError, match="metadata"):
        check_metadata(metadata)
