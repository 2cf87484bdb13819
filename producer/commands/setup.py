"""`dreamdrop setup queue`: wire a bucket's notifications to a queue, or say how, or check that they are."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infra.stores.s3_location import S3Location
from producer.commands.session import DEFAULT_STORE, FAILED, OK, AsJson, StoreUrl, print_json, say, spoken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infra.queues.setup_check import Finding
    from infra.queues.setup_documents import Wiring

app = typer.Typer(help="Set up what is beside a store.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def setup() -> None:
    """Set up what is beside a store."""


@app.command()
def queue(
    store: StoreUrl = DEFAULT_STORE,
    name: Annotated[
        str, typer.Option(help="The queue's name; that for dead letters gets -dead.")
    ] = "dreamdrop",
    apply: Annotated[
        bool, typer.Option("--apply", help="Make it, with your credentials; what is there already stays.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Look whether all of it is in place.")] = False,
    url: Annotated[
        str | None, typer.Option("--queue", help="With --check: the queue's URL, if it has another name.")
    ] = None,
    account: Annotated[str, typer.Option(help="The account's number, for what is printed.")] = "ACCOUNT",
    as_json: AsJson = False,
) -> None:
    """Wire a bucket to an SQS queue, so that workers hear of new requests at once.

    Without --apply or --check it only prints what to do: two queues, their policies, and the bucket's
    notifications, as commands of the AWS command line.
    """
    with spoken(as_json=as_json):
        code = _check(store, name, url, as_json) if check else _apply(store, name, account, apply, as_json)
    raise typer.Exit(code)


def _check(store: str, name: str, url: str | None, as_json: bool) -> int:
    from infra.queues.setup import Account
    from schemas.errors import Unsupported

    location = _location(store)
    there = Account()
    url = url or there.url_of(name)
    if url is None:
        raise Unsupported(
            f"there is no queue {name!r} in {there.region}: `dreamdrop setup queue --apply` makes it, or name another "
            "with --name or --queue"
        )
    findings = there.check(url, location.bucket, location.prefix)
    if as_json:
        print_json({"queue": url, "checks": documents(findings), "ok": ok(findings)})
    else:
        from rich.console import Console

        from producer.commands import show

        Console().print(show.findings(findings))
    return OK if ok(findings) else FAILED


def _apply(store: str, name: str, account: str, apply: bool, as_json: bool) -> int:
    from infra.aws import new_session, region_of
    from infra.queues.setup_documents import Wiring, partition_of

    location = _location(store)
    region = region_of(new_session())
    wish = Wiring(location.bucket, location.prefix, name, account, region, partition_of(region))
    if not apply:
        if as_json:
            print_json(_documents(wish))
        else:
            typer.echo(_commands(wish))
        return OK
    from infra.queues.setup import Account

    made = Account().apply(wish)
    if as_json:
        print_json({"queue": made.queue, "changed": list(made.changed)})
        return OK
    for line in made.changed or ("all of it was there already",):
        say(line)
    typer.echo(f"export DREAMDROP_QUEUE={made.queue}")
    return OK


def documents(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Findings for programs."""
    return [{"check": f.check, "status": f.status, "found": f.found, "fix": f.fix} for f in findings]


def ok(findings: Sequence[Finding]) -> bool:
    return all(finding.status != "fail" for finding in findings)


def _location(store: str) -> S3Location:
    """Where a store lies in S3. Raises `Unsupported` when it is not there."""
    from schemas.errors import Unsupported

    location = S3Location.of(store)
    if location is None:
        raise Unsupported(
            f"{store!r} is not a bucket: only a bucket announces files to a queue; give --store s3://bucket"
        )
    return location


def _documents(wish: Wiring) -> dict[str, Any]:
    return {
        "queue": {"name": wish.queue, "attributes": wish.attributes()},
        "dead_letters": {"name": wish.dead, "attributes": wish.dead_attributes()},
        "notifications": {"bucket": wish.bucket, "QueueConfigurations": wish.notifications()},
    }


def _commands(wish: Wiring) -> str:
    """The same as commands to run."""

    def quoted(document: Any) -> str:
        return shlex.quote(json.dumps(document))

    notifications = {"QueueConfigurations": wish.notifications()}
    lines = [
        "# A queue for messages that nobody understands",
        f"aws sqs create-queue --queue-name {wish.dead} --attributes {quoted(wish.dead_attributes())}",
        "",
        f"# The queue: the bucket may send, a message stays hidden for {wish.attributes()['VisibilityTimeout']} s",
        f"aws sqs create-queue --queue-name {wish.queue} --attributes {quoted(wish.attributes())}",
        "",
        "# The bucket announces new requests. This REPLACES the notifications that it has; --apply keeps them",
        f"aws s3api put-bucket-notification-configuration --bucket {wish.bucket} "
        f"--notification-configuration {quoted(notifications)}",
        "",
        "# Then, for workers and clients",
        f"export DREAMDROP_QUEUE={wish.url}",
    ]
    return "\n".join(lines)
