"""Metrics of a worker on a bucket with a queue."""

from __future__ import annotations

import json
import time

import pytest

from tests.cloud import Cloud, wait_for
from tests.scraping import watched
from tests.servers.s3_front import S3Front


def test_calls_to_the_queue_are_timed_and_its_messages_counted(
    s3_front: S3Front, moto_url: str, monkeypatch: pytest.MonkeyPatch
):
    """Three messages are received and deleted; the calls to the bucket are timed, too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto_url)
    cloud = Cloud(moto_url)
    url = cloud.queue()
    for number in range(3):
        body = {"prompt": "x", "steps": 1, "id": f"q{number}"}
        cloud.sqs.send_message(QueueUrl=url, MessageBody=json.dumps(body))
    with watched("s3://bucket", "--queue", url) as one:
        first = one.scrape()
        assert 0 <= first.sum("dreamdrop_queue_messages", lane="normal") <= 3
        figures = one.after(ends=3)
        wait_for(lambda: cloud.depth(url) == 0, "the messages stay")
        ends = time.monotonic() + 120
        while not (figures := one.scrape()).total("dreamdrop_queue_call_seconds_count") or (
            "delete" not in figures.values("verb")
        ):
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert figures.sum("dreamdrop_queue_call_seconds_count", verb="receive") >= 1
        assert figures.sum("dreamdrop_queue_call_seconds_count", verb="delete") >= 1
        assert figures.sum("dreamdrop_store_call_seconds_count", verb="create") >= 9
        assert figures.sum("dreamdrop_requests_ended_total", kind="request", status="succeeded") == 3
