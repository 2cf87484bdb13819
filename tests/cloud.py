"""A bucket and queues on moto's server, as an account's owner sees them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any

import boto3

KEYS = {"aws_access_key_id": "test-key", "aws_secret_access_key": "test-secret", "region_name": "us-east-1"}


class Cloud:
    """One account's corner: a bucket of its own, and queues."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.s3 = boto3.client("s3", endpoint_url=endpoint, **KEYS)
        self.sqs = boto3.client("sqs", endpoint_url=endpoint, **KEYS)
        self.bucket = f"bucket-{secrets.token_hex(6)}"
        self.s3.create_bucket(Bucket=self.bucket)

    @property
    def store(self) -> str:
        return f"s3://{self.bucket}"

    def environment(self) -> dict[str, str]:
        """What the AWS libraries need to find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEYS["aws_access_key_id"],
            "AWS_SECRET_ACCESS_KEY": KEYS["aws_secret_access_key"],
            "AWS_DEFAULT_REGION": KEYS["region_name"],
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def queue(self, **attributes: str) -> str:
        """A new queue's URL."""
        made = self.sqs.create_queue(QueueName=f"q-{secrets.token_hex(6)}", Attributes=attributes)
        return str(made["QueueUrl"])

    def pair(self, receives: int = 10) -> tuple[str, str]:
        """A new queue and its dead-letter queue."""
        dead = self.queue()
        redrive = {"deadLetterTargetArn": self.arn(dead), "maxReceiveCount": str(receives)}
        return self.queue(RedrivePolicy=json.dumps(redrive)), dead

    def arn(self, url: str) -> str:
        return self.facts(url)["QueueArn"]

    def facts(self, url: str) -> dict[str, str]:
        found = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
        return dict(found["Attributes"])

    def depth(self, url: str) -> int:
        """Messages in a queue, seen or unseen."""
        facts = self.facts(url)
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        return sum(int(facts[name]) for name in names)

    def take(self, url: str) -> list[str]:
        """The bodies of the messages that wait, at most ten; they stay in the queue."""
        found = self.sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0)
        return [message["Body"] for message in found.get("Messages", [])]

    def keys(self, prefix: str = "") -> list[str]:
        found = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for entry in found.get("Contents", [])]

    def read(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read())


def wait_for(answer: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Ask until the answer is true, and return it."""
    ends = time.monotonic() + seconds
    while not (found := answer()):
        assert time.monotonic() < ends, what
        time.sleep(0.05)
    return found
