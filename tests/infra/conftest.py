"""The stores' own tests add a second S3 server, so that no server's quirk becomes our protocol.

A third is yours: with DREAMDROP_TEST_STORE=s3://bucket (and the AWS variables) the suite runs there, too.
"""

from __future__ import annotations

import os
import secrets
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.conftest import pretend_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
