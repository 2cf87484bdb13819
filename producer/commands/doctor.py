"""`dreamdrop doctor`: look at everything, then send a canary through it."""

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
        bool, typer.Option("--canary/--no-canary", help="Send a small request with a nasty name through it.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until the canary is given up.")] = 120.0,
    max_attempts: Annotated[
        int,
        typer.Option(envvar="DREAMDROP_MAX_ATTEMPTS", min=1, help="How often the workers try a request."),
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Say what is in order, what is not, and how to put it right. Exit code 1 if something fails."""

    async def work() -> tuple[list[Finding], list[Finding], str]:
        from producer.checks.doctor import examine

        found = await _shown(examine(store, queue or [], attempts=max_attempts), as_json)
        usable = all(finding.status != "fail" for finding in found if finding.check in ("store", "promises"))
        if not (canary and usable):
            return found, [], ""
        from infra.stores.open import open_store
        from producer.checks.canary import Canary

        async with open_store(store) as opened:
            bird = Canary(opened, queue or [], timeout)
            hops = await _shown(_labelled(bird.fly()), as_json)
            return found, hops, bird.result.id if bird.result is not None else ""

    found, hops, stays = run(work(), as_json=as_json)
    good = ok([*found, *hops])
    if as_json:
        report: dict[str, Any] = {"ok": good, "checks": documents(found)}
        if hops:
            report |= {"canary": documents(hops), "result": f"results/{stays}/result.json" if stays else None}
        print_json(report)
    else:
        if stays:
            say(f"the canary's result stays in results/{stays}/")
        failed = [finding.check for finding in (*found, *hops) if finding.status == "fail"]
        say("all is well" if good else f"not in order: {', '.join(failed)}")
    raise typer.Exit(OK if good else FAILED)


async def _shown(findings: AsyncIterator[Finding], as_json: bool) -> list[Finding]:
    """Collect findings; people see each as it comes."""
    if as_json:
        return [finding async for finding in findings]
    from rich.console import Console

    from producer.commands import show

    console, found = Console(), []
    with show.people.status("looking"):
        async for finding in findings:
            found.append(finding)
            console.print(show.finding(finding))
    return found


async def _labelled(hops: AsyncIterator[Finding]) -> AsyncIterator[Finding]:
    async for finding in hops:
        yield replace(finding, check=f"canary {finding.check}")
