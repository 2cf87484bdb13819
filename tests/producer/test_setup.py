"""`dreamdrop setup queue` on an account of its own: print, make, check."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable

import pytest
from botocore.client import BaseClient

from tests.cloud import Cloud, wait_for

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def setup(dreamdrop: Cli, cloud: Cloud) -> Cli:
    """Run `dreamdrop setup queue` on the account's bucket."""

    def run(*options: str, store: str = "") -> subprocess.CompletedProcess[str]:
        where = ["--store", store or cloud.store, "--name", cloud.bucket]
        return dreamdrop("setup", "queue", *where, *options, **cloud.environment())

    return run


def test_what_was_made_passes_its_own_check_and_announces_files(setup: Cli, cloud: Cloud):
    """After --apply a dropped request is in the queue, a result is not; a second --apply changes nothing."""
    done = setup("--apply", "--json")
    assert done.returncode == 0, done.stderr
    queue = json.loads(done.stdout)["queue"]

    for key in ("requests/a b.json", "requests/c.jsonl", "requests/notes.txt", "results/a/result.json"):
        cloud.s3.put_object(Bucket=cloud.bucket, Key=key, Body=b"{}")
    bodies = wait_for(lambda: [b for b in cloud.take(queue) if "Records" in b], "no event came")
    assert len(bodies) == 2

    check = setup("--check", "--json")
    told = json.loads(check.stdout)
    assert (check.returncode, told["ok"], told["queue"]) == (0, True, queue)
    assert {c["status"] for c in told["checks"]} == {"pass"}
    assert json.loads(setup("--apply", "--json").stdout)["changed"] == []


def test_what_others_set_up_stays(setup: Cli, cloud: Cloud):
    """A notification of somebody else's is still there afterwards."""
    other = cloud.queue()
    theirs = {"Id": "theirs", "QueueArn": cloud.arn(other), "Events": ["s3:ObjectRemoved:*"]}
    cloud.s3.put_bucket_notification_configuration(
        Bucket=cloud.bucket, NotificationConfiguration={"QueueConfigurations": [theirs]}
    )
    made = setup("--apply")
    assert made.returncode == 0
    assert f"dreamdrop worker --store {cloud.store}" in made.stderr  # the next step
    found = cloud.s3.get_bucket_notification_configuration(Bucket=cloud.bucket)["QueueConfigurations"]
    assert [entry["Id"] for entry in found] == ["theirs", "dreamdrop-json", "dreamdrop-jsonl"]


def test_what_is_missing_is_named_with_what_to_do(setup: Cli, cloud: Cloud):
    """A bare queue fails three checks, and each says how to fix it."""
    queue = cloud.queue()
    done = setup("--check", "--queue", queue, "--json")
    failed = {c["check"]: c["fix"] for c in json.loads(done.stdout)["checks"] if c["status"] == "fail"}
    assert done.returncode == 1
    assert failed.keys() == {"queue policy", "notifications", "dead letters"}
    assert all("setup queue" in fix for fix in failed.values())
    assert "there is no dead-letter queue" in setup("--check", "--queue", queue).stdout

    missing = setup("--check")
    assert missing.returncode == 3
    assert "there is no queue" in missing.stderr


def test_a_dead_letter_queue_that_is_gone_is_noticed(setup: Cli, cloud: Cloud):
    """The redrive policy names it, and messages would vanish there."""
    queue, dead = cloud.pair()
    cloud.sqs.delete_queue(QueueUrl=dead)
    checks = json.loads(setup("--check", "--queue", queue, "--json").stdout)["checks"]
    assert [c["found"] for c in checks if c["check"] == "dead letters"] == [
        f"there is no queue {dead.rpartition('/')[2]}"
    ]


def test_what_is_printed_can_be_run(setup: Cli, cloud: Cloud):
    """Without an account AWS is not called: the commands hold valid JSON, and the JSON form holds the same."""
    done = setup("--account", "123456789012", store=f"{cloud.store}/studio")
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("aws ")]
    assert [command[2] for command in commands] == [
        "create-queue",
        "create-queue",
        "put-bucket-notification-configuration",
    ]
    notifications = json.loads(commands[2][-1])
    told = json.loads(setup("--account", "123456789012", "--json", store=f"{cloud.store}/studio").stdout)
    assert notifications["QueueConfigurations"] == told["notifications"]["QueueConfigurations"]
    assert json.loads(commands[1][-1]) == told["queue"]["attributes"]
    assert "studio/requests/" in commands[2][-1]


@pytest.mark.parametrize("store", ["./folder", "memory://"])
def test_only_a_bucket_has_notifications(setup: Cli, store: str):
    """A directory needs no queue; the message says what to give."""
    done = setup(store=store)
    assert done.returncode == 3
    assert "give --store s3://bucket" in done.stderr


def test_a_bucket_that_is_not_there_is_told(setup: Cli, cloud: Cloud):
    """The error is one line."""
    done = setup("--apply", store="s3://no-such-bucket-here")
    assert done.returncode == 3
    assert "there is no bucket 'no-such-bucket-here'" in done.stderr
    names = [url.rpartition("/")[2] for url in cloud.sqs.list_queues().get("QueueUrls", [])]
    assert [name for name in names if name.startswith(cloud.bucket)] == [], "nothing was made"


def test_a_bucket_in_another_region_is_told_before_anything_is_made(setup: Cli, cloud: Cloud):
    """S3 notifies only within a region; the message names the variable to set."""
    far = f"far-{cloud.bucket}"
    cloud.s3.create_bucket(Bucket=far, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    done = setup("--apply", store=f"s3://{far}")
    assert done.returncode == 3
    assert "set AWS_REGION=eu-west-1" in done.stderr
    checks = json.loads(setup("--check", "--queue", cloud.queue(), "--json", store=f"s3://{far}").stdout)[
        "checks"
    ]
    assert (checks[0]["check"], checks[0]["status"]) == ("region", "fail")


def test_a_second_store_or_queue_of_a_bucket_leaves_the_first_in_place(dreamdrop: Cli, cloud: Cloud):
    """Other prefixes to one queue, another queue for a prefix, another bucket to one queue: all are announced."""
    other = f"other-{cloud.bucket}"
    cloud.s3.create_bucket(Bucket=other)
    places = [
        (cloud.store, "one"),
        (f"{cloud.store}/studio", "one"),
        (f"{cloud.store}/lab", "two"),
        (f"s3://{other}", "one"),
    ]

    def run(store: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
        where = ["--store", store, "--name", f"{cloud.bucket}-{name}"]
        return dreamdrop("setup", "queue", *where, *options, **cloud.environment())

    for store, name in places:
        done = run(store, name, "--apply")
        assert done.returncode == 0, done.stderr
    for store, name in places:
        checks = json.loads(run(store, name, "--check", "--json").stdout)["checks"]
        assert {c["status"] for c in checks} == {"pass"}, (store, checks)
        assert json.loads(run(store, name, "--apply", "--json").stdout)["changed"] == []
    found = cloud.s3.get_bucket_notification_configuration(Bucket=cloud.bucket)["QueueConfigurations"]
    assert len({entry["Id"] for entry in found}) == len(found) == 6


@pytest.mark.parametrize("ignored", ["PutBucketNotificationConfiguration", "SetQueueAttributes"])
def test_a_server_that_takes_the_call_and_stores_nothing_is_told(
    setup: Cli, cloud: Cloud, monkeypatch: pytest.MonkeyPatch, ignored: str
):
    """--apply ends with the look of --check, and its status is that look's."""
    cloud.sqs.create_queue(QueueName=cloud.bucket)  # without a policy, so that one is set
    call = BaseClient._make_api_call

    def ignoring(self: BaseClient, operation: str, arguments: dict[str, object]) -> object:
        return {} if operation == ignored else call(self, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", ignoring)
    monkeypatch.setattr("infra.queues.setup.READ_BACK", 0.0)
    monkeypatch.setattr("infra.queues.setup.PATIENCE", 0.0)
    done = setup("--apply", "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["ok"]) == (1, False)
    assert "fail" in {c["status"] for c in told["checks"]}
    assert "not everything is in place" in setup("--apply").stderr


def test_the_region_is_that_of_aws_region_and_its_source_is_said(setup: Cli, monkeypatch: pytest.MonkeyPatch):
    """AWS_REGION goes before AWS_DEFAULT_REGION, as in every other SDK; botocore alone does not read it."""
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert "# Region eu-north-1, from AWS_REGION" in setup().stdout
    assert "sqs.eu-north-1.amazonaws.com" in setup().stdout
    monkeypatch.delenv("AWS_REGION")
    told = json.loads(setup("--json").stdout)
    assert (told["region"], told["region_source"]) == ("us-east-1", "AWS_DEFAULT_REGION")


@pytest.mark.parametrize("name", ["dreamdrop.fifo", "a b", "x" * 76, ""])
@pytest.mark.parametrize("options", [(), ("--apply",)])
def test_a_name_that_no_queue_of_ours_can_have_is_refused(
    dreamdrop: Cli, name: str, options: tuple[str, ...]
):
    """A FIFO queue gets no events of S3; no call is made."""
    done = dreamdrop("setup", "queue", "--store", "s3://bucket", "--name", name, *options)
    assert done.returncode == 3
    assert ("FIFO" if name.endswith(".fifo") else "is not a queue's name") in done.stderr


def test_a_bucket_is_made_only_where_it_is_asked_for(setup: Cli, cloud: Cloud):
    """`--make-bucket` needs --apply, makes what is missing, and leaves what is there."""
    new = f"{cloud.bucket}-new"
    assert setup("--apply", store=f"s3://{new}").returncode == 3
    refused = setup("--make-bucket", store=f"s3://{new}")
    assert refused.returncode == 2
    assert "--apply" in refused.stderr
    made = json.loads(setup("--apply", "--make-bucket", "--json", store=f"s3://{new}").stdout)
    assert made["ok"]
    assert made["changed"][0] == f"created the bucket {new}"
    cloud.s3.put_object(Bucket=new, Key="kept", Body=b"1")
    again = json.loads(setup("--apply", "--make-bucket", "--json", store=f"s3://{new}").stdout)
    assert again["changed"] == []
    assert cloud.s3.get_object(Bucket=new, Key="kept")["Body"].read() == b"1"
