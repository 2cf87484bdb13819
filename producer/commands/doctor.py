"""`dreamdrop doctor`: checks the store, the workers and the queues, then sends a test request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from producer.commands.session import (
    DEFAULT_STORE,
    FAILED,
    OK,
    AsJson,
    QueueUrl,
    StoreUrl,
    print_json,
    run,
    say,
)
from producer.commands.setup import documents, ok

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from infra.queues.setup_check import Finding


def doctor(
    store: StoreUrl = DEFAULT_STORE,
    queue: QueueUrl = None,
    canary: Annotated[
        bool,
        typer.Option(
            "--canary/--no-canary",
            help="Also send a small test request with an unusual name.",
        ),
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for the test request.")] = 120.0,
    max_attempts: Annotated[
        int,
        typer.Option(envvar="DREAMDROP_MAX_ATTEMPTS", min=1, help="The workers' --max-attempts."),
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Check an installation and say what to fix.

    The exit code is 1 if a check fails.
    """

    async def work() -> tuple[list[Finding], list[Finding], str]:
        from producer.checks.doctor import examine

        checks = await _shown(examine(store, queue or [], attempts=max_attempts), as_json)
        usable = all(finding.status != "fail" for finding in checks if finding.check in ("store", "promises"))
        if not (canary and usable):
            return checks, [], ""
        from infra.stores.open import open_store
        from producer.checks.canary import Canary

        async with open_store(store) as opened:
            test = Canary(opened, queue or [], timeout)
            hops = await _shown(_labelled(test.run()), as_json)
            return checks, hops, test.result.id if test.result is not None else ""

    checks, hops, stays = run(work(), as_json=as_json)
    good = ok([*checks, *hops])
    if as_json:
        report: dict[str, Any] = {"ok": good, "checks": documents(checks)}
        if hops:
            report |= {"canary": documents(hops), "result": f"results/{stays}/result.json" if stays else None}
        print_json(report)
    else:
        if stays:
            say(f"the result of the test request stays in results/{stays}/")
        failed = [finding.check for finding in (*checks, *hops) if finding.status == "fail"]
        say("everything works" if good else f"failed: {', '.join(failed)}")
    raise typer.Exit(OK if good else FAILED)


async def _shown(findings: AsyncIterator[Finding], as_json: bool) -> list[Finding]:
    """Collect findings, and show each to people as it comes."""
    if as_json:
        return [finding async for finding in findings]
    from rich.console import Console

    from producer.commands import show

    console, shown = Console(), []
    with show.people.status("checking"):
        async for finding in findings:
            shown.append(finding)
            console.print(show.finding(finding))
    return shown


async def _labelled(hops: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    async for finding in hops:
        yield replace(finding, check=f"canary {finding.check}")
