"""Sets up or checks the way from a bucket to a queue, with boto3, in synchronous calls."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import boto3
from botocore.exceptions import ClientError

from infra.aws import (
    FOREIGN,
    code_of,
    config_for,
    new_session,
    queue_endpoint,
    region_of,
    region_source,
    status_of,
)
from infra.backoff import backoff
from infra.queues.setup_check import Finding, judge_notifications, judge_queue
from infra.queues.setup_documents import Wiring, changed_attributes, overlapping, with_notifications
from infra.queues.sqs_errors import is_denied, is_missing
from infra.queues.sqs_errors import translated as queue_error
from infra.stores.s3_errors import translated as store_error
from schemas.errors import DreamError, StoreUnavailable, Unsupported

T = TypeVar("T")

PATIENCE = 90.0  # seconds to wait until S3 sees a new queue's policy
READ_BACK = 20.0  # seconds to wait until what was changed is read back
_TO_SET_UP = (
    "sqs:CreateQueue, sqs:GetQueueUrl, sqs:GetQueueAttributes, sqs:SetQueueAttributes, "
    "s3:GetBucketNotification and s3:PutBucketNotification"
)


@dataclass(frozen=True, slots=True)
class SetUp:
    """What was set up, and what had to change for it."""

    queue: str  # URL
    dead: str  # URL of our dead-letter queue; "" where the queue had another one already
    wiring: Wiring
    changed: tuple[str, ...]  # sentences; empty when everything was in place


class Account:
    """The AWS account of the environment's variables and profiles."""

    def __init__(self, *, patience: float = PATIENCE) -> None:
        self._session = _call(new_session, "connect")
        self._patience = patience  # seconds
        self._boto = _call(boto3.session.Session, "connect")
        self._config = _call(lambda: config_for(self._session, tries=4, read_timeout=20.0), "connect")
        self.region, self.region_source = region_of(self._session), region_source(self._session)
        self._s3: Any = self._client("s3", self.region, None)
        self._sqs: Any = self._client("sqs", self.region, None)

    def _client(self, service: str, region: str, endpoint: str | None) -> Any:
        return _call(
            lambda: self._boto.client(
                service, region_name=region, endpoint_url=endpoint, config=self._config
            ),
            "connect",
        )

    def make_bucket(self, bucket: str) -> bool:
        """Make a bucket where there is none, private as S3's new buckets are. Returns whether it was made.

        Raises as `apply` does.
        """
        try:
            self._s3.head_bucket(Bucket=bucket)
            return False
        except FOREIGN as error:
            if status_of(error) != 404:
                return False  # it is there, or somebody else's; the calls that matter will say so
        elsewhere = {"CreateBucketConfiguration": {"LocationConstraint": self.region}}
        _call(
            lambda: self._s3.create_bucket(
                Bucket=bucket, **(elsewhere if self.region != "us-east-1" else {})
            ),
            f"create the bucket {bucket}",
            bucket=bucket,
        )
        return True

    def apply(self, wish: Wiring) -> SetUp:
        """Create what is missing and change what is too small. Other settings and notifications stay.

        Raises:
            Unsupported: access is denied, or another notification of the bucket conflicts.
            StoreUnavailable, QueueUnavailable: as their names say.
        """
        region = self._region_of(wish.bucket)
        if region and region != self.region:
            raise Unsupported(
                f"the bucket {wish.bucket} is in {region}, and the queue would be in {self.region}: S3 notifies only "
                f"queues of its region; set AWS_REGION={region}"
            )
        changed: list[str] = []
        existing = self.url_of(wish.queue)
        has = self._attributes(self._sqs, existing) if existing else {}
        dead = ""
        # The dead-letter queue first: the queue's redrive policy can only name one that exists.
        if not has.get("RedrivePolicy"):
            dead, has = self._queue(wish.dead, wish.dead_attributes(), changed)
        partition, _, region, account, _ = has["QueueArn"].split(":")[1:]
        wiring = replace(wish, account=account, region=region, partition=partition)
        url, _ = self._queue(wiring.queue, wiring.attributes(), changed)
        self._notify(
            wiring, changed
        )  # last: S3 sends a test message, and refuses a queue that does not allow it
        return SetUp(url, dead, wiring, tuple(changed))

    def url_of(self, queue: str) -> str | None:
        """The URL of a queue of this account and region by its name; None when there is none."""
        try:
            return str(self._sqs.get_queue_url(QueueName=queue)["QueueUrl"])
        except FOREIGN as error:
            if is_missing(error):
                return None
            raise _translated(error, f"look for the queue {queue}") from error

    def read_back(self, made: SetUp) -> list[Finding]:
        """Check what was set up. What was changed and is not seen yet is looked for again for a while."""
        wiring, give_up = made.wiring, time.monotonic() + (READ_BACK if made.changed else 0.0)
        for pause in backoff(1.0, 5.0):
            findings = self.check(made.queue, wiring.bucket, wiring.prefix)
            failed = any(finding.status == "fail" for finding in findings)
            if not failed or time.monotonic() + pause > give_up:
                return findings
            time.sleep(pause)
        raise AssertionError("unreachable")

    def check(self, url: str, bucket: str, prefix: str, *, attempts: int = 0) -> list[Finding]:
        """Check a queue and, if `bucket` is not empty, the bucket whose new files it should hear of.

        Raises as `apply` does.
        """
        region, endpoint = queue_endpoint(url, self._session)
        sqs = self._client("sqs", region, endpoint)
        attributes = self._attributes(sqs, url)
        arn = json.loads(attributes.get("RedrivePolicy") or "{}").get("deadLetterTargetArn")
        dead = self._dead(sqs, arn) if arn else None
        if arn and dead is None:
            name = arn.rpartition(":")[2]
            gone = Finding(
                "dead letters", "fail", f"there is no queue {name}", "create it again, with this name"
            )
            rest = [f for f in judge_queue(attributes, bucket) if f.check != "dead letters"]
            findings = [*rest, gone]
        else:
            findings = judge_queue(attributes, bucket, attempts=attempts, dead=dead)
        if bucket and not any(finding.check == "queue" for finding in findings):
            findings.insert(1, self._notifications(attributes["QueueArn"], bucket, prefix))
            bucket_region, queue_region = self._region_of(bucket), attributes["QueueArn"].split(":")[3]
            if bucket_region and bucket_region != queue_region:
                why = f"the bucket is in {bucket_region}, the queue in {queue_region}: S3 notifies only its own region"
                findings.insert(0, Finding("region", "fail", why, f"create a queue in {bucket_region}"))
        return findings

    def _region_of(self, bucket: str) -> str:
        """A bucket's region; "" when that is not known. Raises `StoreUnavailable` when there is no bucket."""
        try:
            return str(self._s3.head_bucket(Bucket=bucket).get("BucketRegion") or "")
        except FOREIGN as error:
            if status_of(error) == 404:
                raise StoreUnavailable(
                    f"there is no bucket {bucket!r}: create it, or correct the name"
                ) from error
            if status_of(error) in (301, 400, 403):
                return ""  # access is denied, or it is elsewhere; the calls that matter will say so
            raise _translated(error, "read the bucket's region", bucket=bucket) from error

    def _dead(self, sqs: Any, arn: str) -> dict[str, str] | None:
        """The dead-letter queue's attributes; None when it is gone, {} when access is denied."""
        *_, owner, name = arn.split(":")
        try:
            url = sqs.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=owner)["QueueUrl"]
            return dict(sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"])
        except FOREIGN as error:
            return None if is_missing(error) else {}

    def _notifications(self, arn: str, bucket: str, prefix: str) -> Finding:
        try:
            configuration = self._s3.get_bucket_notification_configuration(Bucket=bucket)
        except FOREIGN as error:
            if not is_denied(error):
                raise _translated(error, "read the bucket's notifications", bucket=bucket) from error
            return Finding(
                "notifications",
                "warn",
                "this identity may not read the bucket's notifications",
                "give it s3:GetBucketNotification, or run this as the bucket's owner",
            )
        return judge_notifications(configuration, arn, prefix)

    def _queue(self, name: str, wanted: Mapping[str, str], changed: list[str]) -> tuple[str, dict[str, str]]:
        """Create a queue, or change what is too small in it. Returns (URL, attributes)."""
        url = self.url_of(name)
        if url is None:
            answer = _call(
                lambda: self._sqs.create_queue(QueueName=name, Attributes=dict(wanted)), f"create {name}"
            )
            changed.append(f"created the queue {name}")
            return str(answer["QueueUrl"]), self._attributes(self._sqs, answer["QueueUrl"])
        has = self._attributes(self._sqs, url)
        new = changed_attributes(has, wanted)
        if new:
            _call(lambda: self._sqs.set_queue_attributes(QueueUrl=url, Attributes=new), f"change {name}")
            changed.append(f"changed {', '.join(sorted(new))} of the queue {name}")
        return url, has

    def _attributes(self, sqs: Any, url: str) -> dict[str, str]:
        answer = _call(
            lambda: sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"]), "read the queue", url
        )
        return dict(answer["Attributes"])

    def _notify(self, wiring: Wiring, changed: list[str]) -> None:
        """Add our notifications to the bucket's own; S3 replaces all of them at once."""
        bucket = wiring.bucket
        what = f"set the notifications of {bucket}"
        configuration = _call(
            lambda: self._s3.get_bucket_notification_configuration(Bucket=bucket), what, bucket=bucket
        )
        configuration.pop("ResponseMetadata", None)
        arn = wiring.arn(wiring.queue)
        if judge_notifications(configuration, arn, wiring.prefix).status != "fail":
            return
        theirs, ours = list(configuration.get("QueueConfigurations", ())), wiring.notifications()
        configuration["QueueConfigurations"] = with_notifications(theirs, ours)
        give_up = time.monotonic() + self._patience
        for pause in backoff(1.0, 10.0):
            try:
                self._s3.put_bucket_notification_configuration(
                    Bucket=bucket, NotificationConfiguration=configuration
                )
                break
            except ClientError as error:
                late = time.monotonic() + pause > give_up
                if code_of(error) != "InvalidArgument" or "validate" not in str(error) or late:
                    raise _refused(error, what, bucket, overlapping(theirs, ours)) from error
            time.sleep(pause)  # S3 does not see the queue's new policy yet
        changed.append(f"{bucket} notifies {wiring.queue} of new files under {wiring.prefix}requests/")


def _call(call: Callable[[], T], what: str, url: str = "", *, bucket: str = "") -> T:
    """Call; raise the AWS library's errors as ours."""
    try:
        return call()
    except FOREIGN as error:
        raise _translated(error, what, url, bucket=bucket) from error


def _refused(error: Exception, what: str, bucket: str, overlaps: list[dict[str, Any]]) -> DreamError:
    """Why a bucket refuses notifications; those that overlap ours are named."""
    if code_of(error) != "InvalidArgument" or not overlaps:
        return _translated(error, what, bucket=bucket)
    names = ", ".join(
        f"{e.get('Id', '(no id)')} to {str(e.get('QueueArn', '')).rpartition(':')[2]}" for e in overlaps
    )
    return Unsupported(
        f"cannot {what}: the bucket announces these files already ({names}), and S3 allows no two notifications "
        "that overlap. Use that queue with --name, or remove that notification"
    )


def _translated(error: Exception, what: str, url: str = "", *, bucket: str = "") -> DreamError:
    if is_denied(error):
        return Unsupported(
            f"cannot {what}: access denied: setup needs {_TO_SET_UP}; or give the printed commands to an administrator"
        )
    if bucket and code_of(error) == "InvalidArgument":
        return Unsupported(
            f"cannot {what}: S3 refuses them. Another notification of the bucket may cover requests/ already (two "
            "must not overlap), or the queue is in another region, or its policy does not let S3 send"
        )
    return (
        store_error(error, f"cannot {what}", bucket, "")
        if bucket
        else queue_error(error, f"cannot {what}", url, url)
    )
