"""A directory behaves as memory does, whatever is done to both: random histories, compared verb by verb."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from infra.stores.directory.store import DirectoryStore
from infra.stores.memory import MemoryStore
from schemas.errors import NotFound

if TYPE_CHECKING:
    from infra.stores.open import OpenableStore

# Folders and files never share a name, for a directory cannot have both; files end in "!".
folders = st.lists(st.sampled_from(["a", "b", "a-", "a.b", "a0", "Ä", "日"]), max_size=3)
keys = st.builds(lambda path, name: "/".join([*path, f"{name}!"]), folders, st.sampled_from("abé"))
beginnings = st.builds(lambda key, cut: key[:cut], keys, st.integers(0, 8))
bodies = st.binary(max_size=3)
metadata = st.dictionaries(
    st.sampled_from(["plan", "seed"]), st.sampled_from(["", "1", "ab=c d"]), max_size=2
)

steps = st.one_of(
    st.tuples(st.just("create"), keys, bodies, metadata),
    st.tuples(st.just("put"), keys, bodies),
    st.tuples(st.just("delete"), keys, st.booleans()),
    st.tuples(st.just("get"), keys),
    st.tuples(st.just("list"), beginnings, st.one_of(st.just(""), keys, beginnings)),
)


async def take(store: OpenableStore, step: tuple) -> object:
    """Do one step and tell what its caller can see."""
    match step:
        case ("create", key, body, facts):
            return await store.create(key, body, metadata=facts)
        case ("put", key, body):
            return await store.put(key, body)
        case ("delete", key, exact):
            info = await store.head(key)
            return await store.delete(key, etag=info.etag if info and exact else None)
        case ("get", key):
            info = await store.head(key)
            try:
                found = await store.get(key)
            except NotFound:
                return info
            assert info == found.info
            return found.body, dict(found.info.metadata)
        case ("list", prefix, after):
            prefix = prefix.rstrip("/") if prefix.strip("/") == "" else prefix
            return [(info.key, info.size) async for info in store.list(prefix, start_after=after)]
    raise AssertionError(step)


@settings(max_examples=120, deadline=None)
@given(history=st.lists(steps, max_size=25))
def test_a_directory_is_a_bucket(history: list[tuple]):
    """Every answer of every history is the same from both stores, and so is what is left."""

    async def story(folder: str) -> None:
        memory = MemoryStore()
        async with DirectoryStore(Path(folder), fsync=False) as directory:
            for step in [*history, ("list", "", "")]:
                assert await take(directory, step) == await take(memory, step), step
        assert list(Path(folder, ".staging").iterdir()) == []

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(story(folder))
