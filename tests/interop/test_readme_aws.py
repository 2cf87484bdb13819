"""The commands of README and docs/queues.md that need a bucket, on a server on loopback."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import boto3
import pytest

from tests.console import PATIENCE, Terminals, blocks
from tests.interop.clients import Clients
from tests.interop.conftest import Figures
from tests.interop.servers import KEY, SECRET, moto
from tests.test_readme import NOT_CLONED, ROOT

REGION = "eu-west-1"  # of the queue's URL in the pages; its account is moto's


@pytest.mark.timeout(20 * PATIENCE)
def test_the_commands_that_need_a_bucket_work_as_they_stand(
    clients: Clients, tmp_path: Path, figures: Figures
):
    """From `dreamdrop worker --store s3://my-bucket` to `dead-letters list`, in the order of README."""
    (tmp_path / "server").mkdir()
    clone = tmp_path / "dreamdrop"
    shutil.copytree(ROOT, clone, ignore=NOT_CLONED)
    (clone / ".venv").symlink_to(sys.prefix)
    with moto(tmp_path / "server") as server:
        environment = server.environment() | {"AWS_DEFAULT_REGION": REGION, "AWS_REGION": REGION}
        keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}
        where = {"LocationConstraint": REGION}
        s3 = boto3.client("s3", endpoint_url=server.url, **keys)
        s3.create_bucket(Bucket="my-bucket", CreateBucketConfiguration=where)
        environment["PATH"] = f"{Path(sys.prefix) / 'bin'}:{environment['PATH']}:{clients.home / 'bin'}"
        terminals = Terminals(clone, environment | {"PYTHONPATH": str(clone), "COLUMNS": "100"})
        count = 0
        try:
            for block in blocks(ROOT / "README.md"):
                for command in block.commands if "bucket" in block.needs else ():
                    if " ID " not in command.text:  # a request that failed: there is none here
                        terminals.run(command)
                        count += 1
        finally:
            ends = terminals.close()
    assert set(ends.values()) <= {0, 130}, ends
    figures("README's commands for a bucket", f"aws {clients.version('aws')}", "moto", f"{count} work")
