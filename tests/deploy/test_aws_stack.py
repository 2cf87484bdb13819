"""The CloudFormation stack: checked by cfn-lint, made on an emulator, and used from request to result.

The emulator (moto) makes bucket, queues, policies and roles. What it leaves out (notifications, lifecycle rules,
the policies of bucket and queue) the test gives to the same server through the AWS calls, from the template's values.
It has no scaling: that part is checked against the code's own numbers.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from consumer.worker import _LAST_ANNOUNCEMENTS, _LAST_SWEEP, _LAST_WRITES, WorkerSettings
from infra.queues.setup_documents import Wiring
from tests.cloud import KEYS, wait_for
from tests.deploy.template import ACCOUNT, BUCKET, PATH, REGION, Template
from tests.worker_process import worker

ROOT = Path(__file__).parents[2]
AFTER_GRACE = _LAST_ANNOUNCEMENTS + _LAST_SWEEP + _LAST_WRITES  # seconds
WITH_WORKERS = {"Image": "registry/dreamdrop:1", "Ami": "ami-12345678", "SecurityGroup": "sg-12345678"}


def test_the_template_is_valid():
    """cfn-lint finds nothing: types, properties, references, regions."""
    tool = Path(os.environ.get("DEPLOY_CHECK", sys.prefix), "bin", "cfn-lint")
    if not tool.exists():
        pytest.skip("cfn-lint is not installed; `make deploy-check` has it")
    done = subprocess.run([tool, PATH], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_queue_is_the_one_that_setup_makes():
    """Attributes, policy and notifications are those of `dreamdrop setup queue`."""
    template = Template()
    wiring = Wiring(BUCKET, "", "dreamdrop", ACCOUNT, REGION)
    queue, dead = template.properties("Queue"), template.properties("DeadLetters")
    attributes = wiring.attributes()
    names = (
        "VisibilityTimeout",
        "ReceiveMessageWaitTimeSeconds",
        "MessageRetentionPeriod",
        "MaximumMessageSize",
    )
    assert {name: str(queue[name]) for name in names} == {name: attributes[name] for name in names}
    assert {name: str(dead[name]) for name in names} == wiring.dead_attributes()
    redrive = json.loads(attributes["RedrivePolicy"])
    assert {k: str(v) for k, v in queue["RedrivePolicy"].items()} == redrive
    assert template.properties("QueuePolicy")["PolicyDocument"] == json.loads(attributes["Policy"])
    wanted = [
        {key: entry[key] for key in ("QueueArn", "Events", "Filter")} for entry in wiring.notifications()
    ]
    assert notifications(template) == wanted


def notifications(template: Template) -> list[dict[str, Any]]:
    """The template's notifications as the S3 API has them."""
    entries = template.properties("Bucket")["NotificationConfiguration"]["QueueConfigurations"]
    return [
        {
            "QueueArn": entry["Queue"],
            "Events": [entry["Event"]],
            "Filter": {"Key": {"FilterRules": entry["Filter"]["S3Key"]["Rules"]}},
        }
        for entry in entries
    ]


def lifecycle(template: Template) -> list[dict[str, Any]]:
    """The template's lifecycle rules as the S3 API has them."""
    rules = []
    for rule in template.properties("Bucket")["LifecycleConfiguration"]["Rules"]:
        made = {"ID": rule["Id"], "Status": rule["Status"], "Filter": {"Prefix": rule.get("Prefix", "")}}
        if "ExpirationInDays" in rule:
            made["Expiration"] = {"Days": rule["ExpirationInDays"]}
        if "ExpiredObjectDeleteMarker" in rule:
            made["Expiration"] = {"ExpiredObjectDeleteMarker": rule["ExpiredObjectDeleteMarker"]}
        for name in ("AbortIncompleteMultipartUpload", "NoncurrentVersionExpiration"):
            if name in rule:
                made[name] = rule[name]
        rules.append(made)
    return rules


@pytest.fixture
def stack(moto_url: str) -> Iterator[dict[str, str]]:
    """The outputs of the stack, made on moto, with what moto's CloudFormation leaves out."""
    template = Template()

    def client(name: str) -> Any:
        return boto3.client(name, endpoint_url=moto_url, **KEYS)

    formation, s3, sqs = client("cloudformation"), client("s3"), client("sqs")
    formation.create_stack(
        StackName="dreamdrop",
        TemplateBody=PATH.read_text(encoding="utf-8"),
        Parameters=[{"ParameterKey": "BucketName", "ParameterValue": BUCKET}],
        Capabilities=["CAPABILITY_IAM"],
    )
    [made] = formation.describe_stacks(StackName="dreamdrop")["Stacks"]
    assert made["StackStatus"] == "CREATE_COMPLETE"
    outputs = {entry["OutputKey"]: entry["OutputValue"] for entry in made["Outputs"]}
    url = sqs.get_queue_url(QueueName="dreamdrop")["QueueUrl"]
    policy = template.properties("QueuePolicy")["PolicyDocument"]
    sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy)})
    policy = template.properties("BucketPolicy")["PolicyDocument"]
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(policy))
    s3.delete_bucket_policy(Bucket=BUCKET)  # moto reads no conditions, so its "Deny" would refuse everything
    s3.put_bucket_notification_configuration(
        Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": notifications(template)}
    )
    s3.put_bucket_lifecycle_configuration(
        Bucket=BUCKET, LifecycleConfiguration={"Rules": lifecycle(template)}
    )
    yield outputs | {"endpoint": moto_url, "url": url}
    urllib.request.urlopen(urllib.request.Request(f"{moto_url}/moto-api/reset", method="POST")).close()


def test_a_request_becomes_a_picture_on_what_the_stack_makes(
    stack: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """The check of `dreamdrop setup` is content; a dropped and a sent request are drawn; the queue is empty then."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", stack["endpoint"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["aws_secret_access_key"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert stack["Store"] == f"s3://{BUCKET}"
    assert stack["WorkerRoleArn"].startswith("arn:aws:iam::")
    dreamdrop = [sys.executable, "-m", "producer.cli"]
    store = ["--store", stack["Store"]]

    check = [*dreamdrop, "setup", "queue", "--check", "--json", *store]
    report = json.loads(subprocess.run(check, capture_output=True, text=True, timeout=300).stdout)
    assert report["ok"], report

    s3 = boto3.client("s3", endpoint_url=stack["endpoint"], **KEYS)
    with worker(stack["Store"], "--queue", stack["url"]):
        s3.put_object(Bucket=BUCKET, Key="requests/dropped.json", Body=b'{"prompt": "a cat", "steps": 1}')
        send = [*dreamdrop, "submit", "--queue", stack["url"], "--id", "sent", *store, "-"]
        done = subprocess.run(
            send, input='{"prompt": "a dog", "steps": 1}', capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        for id in ("dropped", "sent"):
            wait_for(lambda id=id: _result(s3, id), f"a result for {id}")
            assert _result(s3, id)["status"] == "succeeded"
        sqs = boto3.client("sqs", endpoint_url=stack["endpoint"], **KEYS)
        wait_for(lambda: _depth(sqs, stack["url"]) == 0, "an empty queue")


def _result(s3: Any, id: str) -> Any:
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"results/{id}/result.json")
    if not found.get("Contents"):
        return None
    return json.loads(s3.get_object(Bucket=BUCKET, Key=f"results/{id}/result.json")["Body"].read())


def _depth(sqs: Any, url: str) -> int:
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    facts = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(facts[name]) for name in names)


def test_lifecycle_rules_follow_the_parameters():
    """Results stay unless a number of days is given; uploads and old versions go; the protocol's own keys never."""
    days = {r["ID"]: r.get("Expiration", {}).get("Days") for r in lifecycle(Template())}
    assert days == {"parts-of-broken-uploads": None, "old-versions": None, "uploads": 30}
    rules = lifecycle(Template(ResultDays=60, UploadDays=20))
    assert {
        r["Filter"]["Prefix"]: r["Expiration"]["Days"] for r in rules if "Days" in r.get("Expiration", {})
    } == {
        "uploads/": 20,
        "results/": 60,
    }


def test_the_bucket_is_private_and_encrypted():
    """Nothing is public, every object is encrypted, and the bucket outlives the stack."""
    template = Template(Versioning="on")
    bucket = template.properties("Bucket")
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert "VersioningConfiguration" not in Template().properties("Bucket")
    assert template.resources["Bucket"]["DeletionPolicy"] == "Retain"


def test_a_terminating_instance_has_time_to_drain():
    """docker waits longer than the longest grace and what follows it, systemd longer still, the hook longest."""
    template = Template(**WITH_WORKERS)
    script = template.properties("LaunchTemplate")["LaunchTemplateData"]["UserData"]["Fn::Base64"]
    docker = int(re.search(r"docker stop --time (\d+)", script)[1])
    systemd = int(re.search(r"TimeoutStopSec=(\d+)", script)[1])
    [hook] = template.properties("Workers")["LifecycleHookSpecificationList"]
    looks = int(re.search(r"do sleep (\d+)", script)[1])
    longest = template.parameters["Grace"]["MaxValue"]
    assert template.parameters["Grace"]["Default"] == WorkerSettings().grace
    assert longest + AFTER_GRACE < docker < systemd
    assert systemd + looks < hook["HeartbeatTimeout"]
    assert longest + AFTER_GRACE < 120  # what spot gives
    assert f"DREAMDROP_GRACE={WorkerSettings().grace:g}\n" in script
    assert f"--lifecycle-hook-name {hook['LifecycleHookName']} " in script


def test_the_instance_runs_what_the_template_says(tmp_path: Path):
    """The script is valid for bash, with one worker, its queue and store, and no right that it does not need."""
    template = Template(**WITH_WORKERS)
    script = template.properties("LaunchTemplate")["LaunchTemplateData"]["UserData"]["Fn::Base64"]
    path = tmp_path / "user-data"
    path.write_text(script)
    done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"DREAMDROP_STORE=s3://{BUCKET}\n" in script
    assert f"DREAMDROP_QUEUE=https://sqs.{REGION}.amazonaws.com/{ACCOUNT}/dreamdrop\n" in script
    assert re.search(
        r"^ExecStart=.*--gpus all.*\n(.*\n)+?.*registry/dreamdrop:1 worker$", script, re.MULTILINE
    )
    for word in ("--read-only", "--cap-drop ALL", "no-new-privileges", "--user 10001:10001"):
        assert word in script
    metadata = template.properties("LaunchTemplate")["LaunchTemplateData"]["MetadataOptions"]
    assert metadata["HttpTokens"] == "required"


def test_workers_follow_the_backlog_to_none_and_back():
    """What is in flight counts, the group may be empty, and the first and last instance have alarms of their own."""
    template = Template(**WITH_WORKERS)
    group = template.properties("Workers")
    assert (group["MinSize"], group["MaxSize"]) == ("0", 4)
    assert group["MetricsCollection"][0]["Metrics"] == ["GroupInServiceInstances", "GroupDesiredCapacity"]
    target = template.properties("FollowBacklog")["TargetTrackingConfiguration"][
        "CustomizedMetricSpecification"
    ]
    queue_metrics = {"ApproximateNumberOfMessagesVisible", "ApproximateNumberOfMessagesNotVisible"}
    for metrics in (target["Metrics"], template.properties("GoToSleepAlarm")["Metrics"]):
        used = {metric["MetricStat"]["Metric"]["MetricName"] for metric in metrics if "MetricStat" in metric}
        assert used >= queue_metrics
    assert value(target["Metrics"], visible=60, inflight=4, instances=2) == 32
    assert value(target["Metrics"], visible=5, inflight=0, instances=0) == 5
    sleep = template.properties("GoToSleepAlarm")["Metrics"]
    assert value(sleep, visible=0, inflight=1) == 1
    wake = template.properties("WakeUpAlarm")["Metrics"]
    assert (value(wake, visible=3, wanted=0), value(wake, visible=3, wanted=1)) == (3, 0)
    ends = [
        template.properties(name)["StepAdjustments"][0]["ScalingAdjustment"]
        for name in ("WakeUp", "GoToSleep")
    ]
    assert ends == [1, 0]


def value(metrics: list[dict[str, Any]], **given: float) -> float:
    """A metric expression's value."""
    [expression] = [metric["Expression"] for metric in metrics if metric.get("ReturnData")]
    functions = {"IF": lambda test, yes, no: yes if test else no, "FILL": lambda one, _other: one}
    return float(eval(expression, {"__builtins__": {}}, functions | given))


def test_everything_that_can_wake_a_person_is_there():
    """Dead letters and old messages raise alarms, and the dashboard is JSON."""
    template = Template(AlarmTopic="arn:aws:sns:us-east-1:1:x")
    for name, metric in (
        ("DeadLettersAlarm", "ApproximateNumberOfMessagesVisible"),
        ("OldestMessageAlarm", "ApproximateAgeOfOldestMessage"),
    ):
        alarm = template.properties(name)
        assert (alarm["MetricName"], alarm["AlarmActions"]) == (metric, ["arn:aws:sns:us-east-1:1:x"])
    assert template.properties("DeadLettersAlarm")["Dimensions"][0]["Value"] == "dreamdrop-dead"
    assert len(json.loads(template.properties("Dashboard")["DashboardBody"])["widgets"]) == 4
    assert template.properties("Logs")["RetentionInDays"] == 30
