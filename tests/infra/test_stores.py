"""What every store promises: one suite, for memory, a directory and two S3 servers."""

from __future__ import annotations

import asyncio

import pytest

from infra.stores.open import OpenableStore, open_store
from infra.stores.store import InvalidKey
from schemas.errors import NotFound, TooLarge

pytestmark = pytest.mark.anyio

NASTY = [
    "requests/with space.json",
    "requests/plus+percent%20equals=and&hash#question?.json",
    "requests/Grüße/日本語 🎨.json",
    "requests/e\u0301 and \u00e9.json",
    "requests/quote\"apostrophe'back\\slash<xml>&amp;.json",
    "requests/~tilde/-dash/_under.json",
    "requests/$(touch x);`id`|*.json",
    "requests/" + "n" * 200 + ".json",
]
IMPOSSIBLE = [
    "",
    "/",
    "/etc/passwd",
    "requests/",
    "requests//a.json",
    ".",
    "..",
    "../a",
    "requests/../../a",
    "requests/./a",
    "requests/..",
    "requests/a\x00b",
    "requests/a\nb",
    "requests/a\x7fb",
    "requests/a\x85b",
    "requests/\ud800",
    "k" * 1025,
    "é" * 513,
]


async def keys(store: OpenableStore, prefix: str = "", start_after: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix, start_after=start_after)]


async def test_what_was_created_is_read_back(store: OpenableStore):
    """Body, size and metadata come back as they were given."""
    assert await store.create("results/cat/0.png", b"\x89PNG\r\n\x00", metadata={"plan": "ab12", "seed": "7"})

    found = await store.get("results/cat/0.png")
    assert found.body == b"\x89PNG\r\n\x00"
    assert (found.info.key, found.info.size) == ("results/cat/0.png", 7)
    assert dict(found.info.metadata) == {"plan": "ab12", "seed": "7"}
    assert await store.head("results/cat/0.png") == found.info


async def test_a_second_create_changes_nothing(store: OpenableStore):
    """Whoever comes second is told so, and the first body and metadata stay."""
    assert await store.create("claims/cat/000001", b"first", metadata={"n": "1"})
    assert not await store.create("claims/cat/000001", b"second", metadata={"n": "2"})

    found = await store.get("claims/cat/000001")
    assert (found.body, dict(found.info.metadata)) == (b"first", {"n": "1"})


async def test_an_empty_object_is_an_object(store: OpenableStore):
    """Zero bytes are a body like any other."""
    assert await store.create("requests/empty.json", b"")
    assert (await store.get("requests/empty.json", max_bytes=0)).body == b""
    assert not await store.create("requests/empty.json", b"x")


async def test_put_replaces_and_its_etag_tells(store: OpenableStore):
    """An overwritten object has the new body and another etag."""
    await store.put("workers/w1", b"beat 1", content_type="application/json")
    first = await store.head("workers/w1")
    await store.put("workers/w1", b"beat 2")
    second = await store.get("workers/w1")

    assert second.body == b"beat 2"
    assert first is not None
    assert first.etag != second.info.etag


async def test_what_is_not_there_is_said_so(store: OpenableStore):
    """get raises NotFound with the key, head answers None, delete does nothing."""
    with pytest.raises(NotFound) as caught:
        await store.get("results/none/result.json")
    assert caught.value.key == "results/none/result.json"
    assert await store.head("results/none/result.json") is None
    await store.delete("results/none/result.json")
    await store.delete("results/none/result.json", etag="0")


async def test_a_large_object_is_refused_before_it_is_read(store: OpenableStore):
    """max_bytes is inclusive, and the error has both sizes."""
    await store.put("requests/big.json", b"x" * 101)
    assert len((await store.get("requests/big.json", max_bytes=101)).body) == 101
    with pytest.raises(TooLarge, match="101 bytes; the limit is 100"):
        await store.get("requests/big.json", max_bytes=100)


async def test_megabytes_survive_the_way(store: OpenableStore):
    """A body beyond every buffer's size comes back whole."""
    body = bytes(range(256)) * 20_000
    assert await store.create("results/big/0.png", body)
    assert (await store.get("results/big/0.png")).body == body


async def test_delete_frees_the_key(store: OpenableStore):
    """After a delete the key is unknown to every verb, and can be created anew, without old metadata."""
    await store.create("claims/a/000001", b"1", metadata={"old": "yes"})
    await store.delete("claims/a/000001")

    assert await store.head("claims/a/000001") is None
    assert await keys(store, "claims/") == []
    assert await store.create("claims/a/000001", b"2")
    assert dict((await store.get("claims/a/000001")).info.metadata) == {}


async def test_delete_spares_another_version(store: OpenableStore):
    """With an etag only that version goes: a file dropped anew under the same name stays."""
    await store.put("requests/a.json", b"old")
    old = await store.head("requests/a.json")
    assert old is not None
    await store.put("requests/a.json", b"new!")

    await store.delete("requests/a.json", etag=old.etag)
    new = await store.get("requests/a.json")
    assert new.body == b"new!"
    await store.delete("requests/a.json", etag=new.info.etag)
    assert await store.head("requests/a.json") is None


async def test_a_listing_is_in_order_of_bytes(store: OpenableStore):
    """Folders and files interleave as their keys sort in UTF-8, not as a directory would have it."""
    names = [
        "a.json",
        "a/b.json",
        "a-b.json",
        "a0.json",
        "a/b/c.json",
        "B.json",
        "é.json",
        "z.json",
        "𝄞.json",
    ]
    for name in names:
        await store.put(f"requests/{name}", b"{}")

    expected = sorted((f"requests/{n}" for n in names), key=str.encode)
    assert await keys(store, "requests/") == expected
    assert await keys(store) == expected


async def test_a_prefix_may_end_anywhere(store: OpenableStore):
    """A prefix is text, not a folder: it may stop inside a name."""
    for key in ("claims/cat/000001", "claims/cat/000001.released", "claims/cats/000001", "claims/dog/000001"):
        await store.put(key, b"")

    assert await keys(store, "claims/cat/") == ["claims/cat/000001", "claims/cat/000001.released"]
    assert await keys(store, "claims/ca") == [
        "claims/cat/000001",
        "claims/cat/000001.released",
        "claims/cats/000001",
    ]
    assert await keys(store, "claims/cat/000001.") == ["claims/cat/000001.released"]
    assert await keys(store, "claims/x/") == []
    assert await keys(store, "nothing/at/all") == []
    assert await keys(store, "claims/cat/000001/") == []


async def test_a_listing_can_start_after_any_key(store: OpenableStore):
    """start_after is exclusive, and need not exist."""
    everything = ["r/a", "r/b/1", "r/b/2", "r/b/3/x", "r/c", "s/a"]
    for key in everything:
        await store.put(key, b"")
    for after in ["", "a", "r", "r/", "r/a", "r/a/", "r/b", "r/b/", "r/b/2", "r/b/3", "r/bb", "r/c", "t"]:
        assert await keys(store, "", start_after=after) == [k for k in everything if k > after], after
        assert await keys(store, "r/b", start_after=after) == [
            k for k in everything if k > after and k.startswith("r/b")
        ], after


async def test_a_listing_shows_sizes_and_etags(store: OpenableStore):
    """An entry agrees with `head`, but for the metadata, which listings do not have."""
    await store.create("results/a/0.png", b"12345", metadata={"plan": "x"})
    head = await store.head("results/a/0.png")
    assert head is not None
    [entry] = [info async for info in store.list("results/")]
    assert (entry.key, entry.size, entry.etag) == (head.key, 5, head.etag)
    assert dict(entry.metadata) == {}


async def test_objects_may_come_and_go_during_a_listing(store: OpenableStore):
    """A listing that is under way ends, whatever is deleted under it."""
    for n in range(9):
        await store.put(f"claims/{n:02d}/000001", b"")
    seen: list[str] = []
    async for info in store.list("claims/"):
        for n in range(0 if seen else 9):
            await store.delete(f"claims/{n:02d}/000001")
        seen.append(info.key)
    assert seen[0] == "claims/00/000001"
    assert await keys(store, "claims/") == []


async def test_nasty_keys_are_only_keys(store: OpenableStore):
    """Spaces, plus, percent, quotes, other scripts: every verb takes them as they are."""
    for key in NASTY:
        assert await store.create(key, key.encode())
        assert not await store.create(key, b"other")
        assert (await store.get(key)).body == key.encode()
        assert await keys(store, key) == [key]
    assert await keys(store) == sorted(NASTY, key=str.encode)
    for key in NASTY:
        assert key not in await keys(store, "", start_after=key)
        await store.delete(key)
        assert await store.head(key) is None
    assert await keys(store) == []


async def test_impossible_keys_are_refused_by_every_verb(store: OpenableStore):
    """What is no key raises InvalidKey before anything is touched."""
    for key in IMPOSSIBLE:
        with pytest.raises(InvalidKey):
            await store.get(key)
        with pytest.raises(InvalidKey):
            await store.head(key)
        with pytest.raises(InvalidKey):
            await store.create(key, b"x")
        with pytest.raises(InvalidKey):
            await store.put(key, b"x")
        with pytest.raises(InvalidKey):
            await store.delete(key)
    assert await keys(store) == []


async def test_impossible_prefixes_are_refused(store: OpenableStore):
    """No key could begin like this, so asking is a mistake."""
    for prefix in ["/", "../", "a//b", "a/./b", "a/../", "a\n", "\ud800", "p" * 1025]:
        with pytest.raises(InvalidKey):
            await keys(store, prefix)


async def test_sixteen_tasks_one_winner(store: OpenableStore, request: pytest.FixtureRequest):
    """Of many concurrent creators exactly one wins, and its body is the one that stays."""
    if "moto" in request.node.callspec.id:
        pytest.skip("moto checks and then acts, so it is no referee for races")
    for n in range(10):
        key = f"claims/race-{n}/000001"
        won = await asyncio.gather(*(store.create(key, b"%d" % task) for task in range(16)))
        assert won.count(True) == 1
        assert (await store.get(key)).body == b"%d" % won.index(True)


async def test_two_openers_see_one_store(store: OpenableStore, store_url: str):
    """What one writes the other reads at once: this is how clients and workers meet."""
    if store_url == "memory://":
        store_url = "memory://shared"
    async with open_store(store_url) as one, open_store(store_url) as two:
        assert await one.create("requests/x.json", b"hello")
        assert (await two.get("requests/x.json")).body == b"hello"
        assert not await two.create("requests/x.json", b"again")
        assert await keys(two, "requests/") == ["requests/x.json"]
        await one.delete("requests/x.json")
