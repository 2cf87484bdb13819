"""`dreamdrop setup queue`: makes or checks a queue and a bucket's notifications, or prints how to."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.stores.s3_location import S3Location
from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    OK,
    WRONG,
    AsJson,
    StoreUrl,
    print_json,
    reporting_errors,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.queues.setup_check import Finding
    from infra.queues.setup_documents import Wiring

_NAME = re.compile(r"[A-Za-z0-9_-]{1,75}")  # SQS allows 80; the dead-letter queue adds five

app = typer.Typer(help="Set up a queue for a store.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def setup() -> None:
    """Set up a queue for a store."""


@app.command()
def queue(
    store: StoreUrl = DEFAULT_STORE,
    name: Annotated[
        str, typer.Option(help="The queue's name; the dead-letter queue gets this name with -dead.")
    ] = "dreamdrop",
    apply: Annotated[
        bool, typer.Option("--apply", help="Make what is missing, with your credentials.")
    ] = False,
    make_bucket: Annotated[
        bool, typer.Option("--make-bucket", help="With --apply: make the bucket, too, where there is none.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Check that everything is in place.")] = False,
    url: Annotated[
        str | None, typer.Option("--queue", help="With --check: the URL of a queue that has another name.")
    ] = None,
    account: Annotated[str, typer.Option(help="The AWS account number to print.")] = "ACCOUNT",
    as_json: AsJson = False,
) -> None:
    """Let a bucket notify workers through an SQS queue.

    Workers then see new requests at once. Without --apply or --check it only prints the commands of the AWS
    command line that make two queues, their policies, and the bucket's notifications. --apply ends with
    --check's look, and fails where something is not in place.
    """
    if make_bucket and not apply:
        say("dreamdrop: --make-bucket makes nothing by itself: give --apply, too")
        raise typer.Exit(WRONG)
    with reporting_errors(as_json=as_json):
        if check:
            raise typer.Exit(_check(store, name, url, as_json))
        raise typer.Exit(_apply(store, name, account, apply, make_bucket, as_json))


def _check(store: str, name: str, url: str | None, as_json: bool) -> int:
    from infra.queues.setup import Account
    from schemas.errors import Unsupported

    location = _location(store)
    aws = Account()
    url = url or aws.url_of(name)
    if url is None:
        raise Unsupported(
            f"there is no queue {name!r} in {aws.region}: `dreamdrop setup queue --apply` makes it, or give "
            "another with --name or --queue"
        )
    findings = aws.check(url, location.bucket, location.prefix)
    if as_json:
        region = {"region": aws.region, "region_source": aws.region_source}
        print_json({"queue": url, **region, "checks": documents(findings), "ok": ok(findings)})
    else:
        say(f"region {aws.region}, from {aws.region_source}")
        _show(findings)
    return OK if ok(findings) else FAILED


def _show(findings: Sequence[Finding]) -> None:
    from rich.console import Console

    from producer.commands import show

    Console().print(show.findings(findings))


def _apply(store: str, name: str, account: str, apply: bool, make_bucket: bool, as_json: bool) -> int:
    from infra.aws import new_session, region_of, region_source
    from infra.queues.setup_documents import Wiring, partition_of

    location = _location(store)
    _check_name(name)
    session = new_session()
    region, source = region_of(session), region_source(session)
    wiring = Wiring(location.bucket, location.prefix, name, account, region, partition_of(region))
    facts = {"region": region, "region_source": source}
    if not apply:
        if as_json:
            print_json({**_documents(wiring), **facts})
        else:
            typer.echo(f"# Region {region}, from {source}\n\n{_commands(wiring)}")
        return OK
    from infra.queues.setup import Account

    aws = Account()
    created = (
        (f"created the bucket {location.bucket}",) if make_bucket and aws.make_bucket(location.bucket) else ()
    )
    made = aws.apply(wiring)
    made = replace(made, changed=(*created, *made.changed))
    findings = aws.read_back(made)
    if as_json:
        changed = {"changed": list(made.changed), "checks": documents(findings), "ok": ok(findings)}
        print_json({"queue": made.queue, **facts, **changed})
        return OK if ok(findings) else FAILED
    say(f"region {region}, from {source}")
    for line in made.changed or ("everything was there already",):
        say(line)
    if not ok(findings):
        _show(findings)
        say("the server accepted every call, yet not everything is in place: see the checks above")
        return FAILED
    typer.echo(f"export DREAMDROP_QUEUE={made.queue}")
    say(_next(store))
    return OK


def _check_name(name: str) -> None:
    """Raise `Unsupported` for a name that no queue of ours can have."""
    from schemas.errors import Unsupported

    if name.endswith(".fifo"):
        raise Unsupported(
            f"{name!r} names a FIFO queue, and S3 sends to standard queues only: give a name without .fifo"
        )
    if not _NAME.fullmatch(name):
        raise Unsupported(
            f"{name!r} is not a queue's name: give at most 75 letters, digits, dashes and underscores"
        )


def documents(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Findings for programs."""
    return [{"check": f.check, "status": f.status, "found": f.found, "fix": f.fix} for f in findings]


def ok(findings: Sequence[Finding]) -> bool:
    return all(finding.status != "fail" for finding in findings)


def _location(store: str) -> S3Location:
    """Where in S3 a store is. Raises `Unsupported` for another kind of store."""
    from schemas.errors import Unsupported

    location = S3Location.of(store)
    if location is None:
        raise Unsupported(
            f"{store!r} is not a bucket, and only a bucket can notify a queue; give --store s3://bucket"
        )
    return location


def _documents(wiring: Wiring) -> dict[str, Any]:
    return {
        "queue": {"name": wiring.queue, "attributes": wiring.attributes()},
        "dead_letters": {"name": wiring.dead, "attributes": wiring.dead_attributes()},
        "notifications": {"bucket": wiring.bucket, "QueueConfigurations": wiring.notifications()},
    }


def _commands(wiring: Wiring) -> str:
    """The commands of the AWS command line that make it."""

    def quoted(document: Any) -> str:
        return shlex.quote(json.dumps(document))

    notifications = {"QueueConfigurations": wiring.notifications()}
    hidden = wiring.attributes()["VisibilityTimeout"]
    lines = [
        "# The dead-letter queue, for messages that nobody can use",
        f"aws sqs create-queue --queue-name {wiring.dead} --attributes {quoted(wiring.dead_attributes())}",
        "",
        f"# The queue: the bucket may send, a received message stays hidden for {hidden} s",
        f"aws sqs create-queue --queue-name {wiring.queue} --attributes {quoted(wiring.attributes())}",
        "",
        "# The bucket's notifications of new requests. This REPLACES those it has; --apply keeps them",
        f"aws s3api put-bucket-notification-configuration --bucket {wiring.bucket} "
        f"--notification-configuration {quoted(notifications)}",
        "",
        "# For workers and clients",
        f"export DREAMDROP_QUEUE={wiring.url}",
        "",
        *(f"# {line}" for line in _next(f"s3://{wiring.bucket}/{wiring.prefix}".rstrip("/")).splitlines()),
    ]
    return "\n".join(lines)


def _next(store: str) -> str:
    """What to do after the queue is there."""
    return (
        f"next: start a worker with that variable (dreamdrop worker --store {shlex.quote(store)}), then look at it "
        f"all (dreamdrop doctor --store {shlex.quote(store)})\n"
        "workers that follow the queue down to none: infra/deploy/aws and infra/deploy/kubernetes, see "
        "docs/operations.md"
    )
