"""How AWS services are reached: one client for many first calls, and addresses that are fit to be shown."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from infra.aws import LazyClient, shown


@pytest.mark.anyio
async def test_many_first_calls_make_one_client():
    """Ten calls at once share a client; after closing, the next call makes another."""
    made: list[str] = []

    @asynccontextmanager
    async def client():
        made.append("made")
        await asyncio.sleep(0)
        yield object()
        made.append("closed")

    lazy = LazyClient(client)
    assert len({id(one) for one in await asyncio.gather(*(lazy() for _ in range(10)))}) == 1
    await lazy.close()
    await lazy()
    await lazy.close()
    assert made == ["made", "closed"] * 2


@pytest.mark.anyio
async def test_a_client_that_cannot_be_made_is_tried_again():
    """One failure is told to its caller and not remembered."""
    tries = 0

    @asynccontextmanager
    async def client():
        nonlocal tries
        tries += 1
        if tries == 1:
            raise OSError("no network yet")
        yield "client"

    lazy = LazyClient(client)
    with pytest.raises(OSError, match="no network yet"):
        await lazy()
    assert await lazy() == "client"
    await lazy.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://user:secret@queues.example/0/q", "https://queues.example/0/q"),
        ("http://[::1]:4566/0/q?signature=secret", "http://[::1]:4566/0/q"),
        ("https://sqs.eu-west-1.amazonaws.com/1/q", "https://sqs.eu-west-1.amazonaws.com/1/q"),
        ("nonsense", "the endpoint"),
    ],
)
def test_an_address_is_shown_without_what_is_secret(url: str, expected: str):
    """No password, no signature; an IPv6 address keeps its brackets."""
    assert shown(url) == expected
