"""`Client`: the same client for code without await."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from producer import AsyncClient, Client, StillWorking, UnknownRequest
from schemas.layout import result_key

pytestmark = pytest.mark.anyio

CAT = {"prompt": "a cat"}
Worker = Callable[..., Any]


def test_plain_code_uses_the_same_client(tmp_path: Path):
    """`Client` is `AsyncClient` without await, on a loop of its own."""
    with Client(tmp_path / "store") as dream:
        tickets = [dream.submit(CAT, id=f"r{k}") for k in range(3)]
        with pytest.raises(StillWorking):
            dream.wait(tickets[0], timeout=0.05)
        for ticket in tickets:
            dream.cancel(ticket)
        assert {result.status for result in dream.results(tickets, timeout=120)} == {"canceled"}
        assert next(dream.results(tickets)).id in {t.id for t in tickets}  # stopping early is fine
        with pytest.raises(UnknownRequest):
            dream.status("nobody")
        assert dream.models() == []
    dream.close()
    with pytest.raises(RuntimeError, match="closed"):
        dream.models()


async def test_plain_code_works_in_a_running_loop(tmp_path: Path):
    """As in a notebook, whose cells run inside a loop."""
    with Client(tmp_path / "store") as dream:
        assert dream.status(dream.submit(CAT)).status == "queued"


def test_a_client_can_wait_before_a_worker_answers(tmp_path: Path, worker: Worker):
    """A result that comes later, from elsewhere, ends the wait."""
    with Client(tmp_path / "store") as dream:
        ticket = dream.submit(CAT)

        async def elsewhere() -> None:
            async with AsyncClient(tmp_path / "store") as other:
                await worker(other.store, ticket.key)

        results = dream.results([ticket], timeout=120)
        asyncio.run(elsewhere())
        assert next(results).id == ticket.id
        assert result_key(ticket.id) in {
            p.relative_to(tmp_path / "store").as_posix() for p in (tmp_path / "store").rglob("*.json")
        }
