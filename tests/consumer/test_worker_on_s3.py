"""A worker on a bucket does the same as on a directory; it is configured by boto3's variables."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote_plus

import boto3
import pytest

from tests.servers.s3_front import Fault
from tests.worker_process import worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.servers.s3_front import S3Front

NEW_KEY = {"aws_access_key_id": "new", "aws_secret_access_key": "secret"}


@pytest.fixture
def bucket(s3_front: S3Front) -> Any:
    """What a user has: boto3 and the same variables."""
    return boto3.resource("s3", endpoint_url=s3_front.url, region_name="us-east-1").Bucket("bucket")


def test_an_uploaded_manifest_becomes_images_and_a_result(bucket: Any):
    """Keys with spaces and plus signs too; images carry their digest as metadata."""
    with worker("s3://bucket"):
        bucket.put_object(Key="requests/cat.json", Body=b'{"prompt": "a cat", "steps": 1, "seed": 3}')
        bucket.put_object(Key="requests/a b+c.json", Body=b'{"prompt": "x", "steps": 1}')
        answer = _result(bucket, "results/cat/result.json")
        from schemas.layout import request_id

        other = _result(bucket, f"results/{request_id('requests/a b+c.json')}/result.json")
    assert answer["status"] == other["status"] == "succeeded"
    image = bucket.Object(answer["images"][0]["key"]).get()
    assert image["Metadata"]["sha256"] == answer["images"][0]["sha256"]


def test_a_batch_runs_on_a_bucket(bucket: Any):
    """The rows' results, the summary files and the page are in one folder."""
    rows = b"".join(json.dumps({"prompt": "x", "steps": 1, "seed": i}).encode() + b"\n" for i in range(3))
    with worker("s3://bucket"):
        bucket.put_object(Key="requests/many.jsonl", Body=rows)
        answer = _result(bucket, "results/many/result.json")
    assert answer["batch"]["counts"]["succeeded"] == 3
    names = {o.key.removeprefix("results/many/") for o in bucket.objects.filter(Prefix="results/many/")}
    assert {"results.jsonl", "errors.jsonl", "batch.json", "gallery.html", "contact-sheet.png"} <= names


def test_lost_answers_double_and_lose_nothing(bucket: Any, s3_front: S3Front):
    """Writes whose answers are lost on the way are read back, not repeated into a second result."""
    s3_front.faults.append(Fault("cut_after", prefix="results/", times=3))
    s3_front.faults.append(Fault("cut_after", prefix="claims/", times=2))
    with worker("s3://bucket"):
        for i in range(3):
            bucket.put_object(Key=f"requests/r{i}.json", Body=b'{"prompt": "x", "steps": 1}')
        answers = [_result(bucket, f"results/r{i}/result.json") for i in range(3)]
    assert {a["status"] for a in answers} == {"succeeded"}
    assert len([o for o in bucket.objects.filter(Prefix="results/") if o.key.endswith(".png")]) == 3


@pytest.mark.parametrize("kind", ["slow_down", "refused"])
def test_a_store_that_is_away_for_seconds_costs_nobody_anything(bucket: Any, s3_front: S3Front, kind: str):
    """The worker waits, goes on drawing as far as it may, and ends every request once, at its first attempt."""
    names = [f"r{i}" for i in range(8)]
    with worker("s3://bucket", null={"seconds_per_step": 0.05}) as process:
        for name in names:
            bucket.put_object(Key=f"requests/{name}.json", Body=b'{"prompt": "x", "steps": 4}')
        _until(lambda: any(key.endswith("/result.json") for _, key in s3_front.requests))
        with _outage(s3_front, kind):
            back = time.monotonic() + 3
            _until(lambda: time.monotonic() > back)
            assert process.poll() is None
        answers = [_result(bucket, f"results/{name}/result.json") for name in names]
        assert process.poll() is None
    assert {(answer["status"], answer["attempts"]) for answer in answers} == {("succeeded", 1)}
    assert len([o for o in bucket.objects.filter(Prefix="results/") if o.key.endswith(".png")]) == 8
    _until(lambda: not list(bucket.objects.filter(Prefix="claims/")))


def test_a_store_that_cannot_create_conditionally_is_refused_at_start(s3_front: S3Front):
    """The worker ends at once and says why; nothing is claimed."""
    s3_front.faults.append(Fault("ignore_condition"))
    command = [sys.executable, "-m", "consumer", "--store", "s3://bucket", "--renderer", "null"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 3
    assert "If-None-Match" in ended.stderr
    assert "Traceback" not in ended.stderr


def _result(bucket: Any, key: str, seconds: float = 120.0) -> dict[str, Any]:
    ends = time.monotonic() + seconds
    while not list(bucket.objects.filter(Prefix=key)):
        assert time.monotonic() < ends, f"no {key}"
        time.sleep(0.05)
    result: dict[str, Any] = json.loads(bucket.Object(key).get()["Body"].read())
    return result


def _until(condition: Callable[[], Any], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.05)


def _outage(front: S3Front, kind: str) -> AbstractContextManager[object]:
    """Within the block the bucket does not answer."""
    if kind == "refused":
        return front.away()
    fault = Fault(kind, method="any")
    front.faults.append(fault)
    stack = ExitStack()
    stack.callback(front.faults.remove, fault)
    return stack


#: Legal in S3, and not valid in a directory: slips in joining paths, control characters, dots, a long name.
ODD_KEYS = [
    "requests//a.json",
    "requests/b//c.json",
    "requests/./d.json",
    "requests/e/../f.json",
    "requests/../g.json",
    "requests/h\ni.json",
    "requests/j\x01k.json",
    "requests/express//l.json",
    f"requests/{'m' * 1010}.json",
    "requests//rows.jsonl",
]


@pytest.mark.parametrize("announced", [False, True])
def test_a_request_under_any_key_that_s3_allows_is_answered(
    bucket: Any, s3_front: S3Front, moto_url: str, monkeypatch: pytest.MonkeyPatch, announced: bool
):
    """By listing and by event alike: one result under a safe id, and the object and its message go."""
    from schemas.layout import request_id

    for check in ("check_key", "check_prefix"):  # the server's own store takes any
        monkeypatch.setattr(f"infra.stores.memory.{check}", lambda text: None)
    options: list[str] = []
    if announced:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SQS", moto_url)
        sqs = boto3.client("sqs", endpoint_url=moto_url, region_name="us-east-1")
        queue = sqs.create_queue(QueueName=secrets.token_hex(6))["QueueUrl"]
        options = ["--queue", queue, "--reconcile", "600"]
    with worker("s3://bucket", *options):
        for key in ODD_KEYS:
            bucket.put_object(Key=key, Body=b'{"prompt": "a cat", "steps": 1}')
            if announced:
                event = {"bucket": {"name": "bucket"}, "object": {"key": quote_plus(key)}}
                record = {"eventVersion": "2.5", "eventName": "ObjectCreated:Put", "s3": event}
                sqs.send_message(QueueUrl=queue, MessageBody=json.dumps({"Records": [record]}))
        for key in ODD_KEYS:
            assert _result(bucket, f"results/{request_id(key)}/result.json")["status"] == "succeeded", key
    assert [o.key for o in bucket.objects.filter(Prefix="requests/")] == []


def test_a_file_that_no_worker_takes_is_named_once(bucket: Any):
    """A name that is only an extension is a slip, too; the log names it, and it stays."""
    with worker("s3://bucket") as process:
        bucket.put_object(Key="requests/.json", Body=b'{"prompt": "a cat", "steps": 1}')
        bucket.put_object(Key="requests/cat.json", Body=b'{"prompt": "a cat", "steps": 1}')
        _result(bucket, "results/cat/result.json")
        process.terminate()
        assert process.stderr is not None
        log = process.stderr.read()
    assert log.count("key=requests/.json") == 1
    assert [o.key for o in bucket.objects.filter(Prefix="requests/")] == ["requests/.json"]


def _credentials(path: Path, key: str) -> None:
    path.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.fixture
def shared_file(s3_front: S3Front, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared credentials file, and a server that takes the key "good" only once told so."""
    path = tmp_path / "credentials"
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    _credentials(path, "old")
    return path


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidAccessKeyId", "AccessDenied"])
def test_credentials_that_change_are_used_without_a_restart(s3_front: S3Front, shared_file: Path, code: str):
    """The server refuses the old key from some moment on; the file then has a new one."""
    bucket = boto3.resource("s3", endpoint_url=s3_front.url, region_name="us-east-1", **NEW_KEY).Bucket(
        "bucket"
    )
    with worker("s3://bucket") as process:
        bucket.put_object(Key="requests/first.json", Body=b'{"prompt": "a cat", "steps": 1}')
        _result(bucket, "results/first/result.json")
        s3_front.refused_keys["old"] = (400 if code == "ExpiredToken" else 403, code)
        time.sleep(3)
        bucket.put_object(Key="requests/second.json", Body=b'{"prompt": "a cat", "steps": 1}')
        _credentials(shared_file, NEW_KEY["aws_access_key_id"])
        assert _result(bucket, "results/second/result.json")["status"] == "succeeded"
        assert process.poll() is None


def test_a_worker_that_stays_denied_exits_for_its_supervisor(s3_front: S3Front, shared_file: Path):
    """With its own exit status, after the time that is set, and it says why."""
    with worker("s3://bucket", "--denied-patience", "3", "--grace", "1") as process:
        assert process.stderr is not None
        while "ready" not in process.stderr.readline():
            assert process.poll() is None
        s3_front.refused_keys["old"] = (403, "InvalidAccessKeyId")
        assert process.wait(60) == 4
        assert "denied every call for too long" in process.stderr.read()
