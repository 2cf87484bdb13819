"""Files that people and strangers put into a directory store: made by hand, and hostile."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.stores.directory import safe_paths
from infra.stores.directory.store import DirectoryStore
from infra.stores.store import InvalidKey
from schemas.errors import DreamError, NotFound, StoreUnavailable, TooLarge
from tests.infra.directory_bench import keys

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.anyio


# Files made by hand -------------------------------------------------------------------------------


async def test_a_copied_file_is_a_request(folder: DirectoryStore):
    """What `cp` puts below requests/ is listed and read, with no metadata."""
    inbox = folder.root / "requests/my cats"
    inbox.mkdir(parents=True)
    (inbox / "a.json").write_text("{}")

    assert await keys(folder, "requests/") == ["requests/my cats/a.json"]
    found = await folder.get("requests/my cats/a.json")
    assert (found.body, dict(found.info.metadata)) == (b"{}", {})
    await folder.delete("requests/my cats/a.json", etag=found.info.etag)
    assert inbox.is_dir(), "a person's folder stays, for the next copy into it"


async def test_an_edit_in_place_changes_the_etag(folder: DirectoryStore):
    """A half-copied file can be told: its etag changes while it grows."""
    path = folder.root / "requests/a.json"
    path.parent.mkdir()
    etags = set()
    for text in ("", "{", "{}"):
        with path.open("a") as file:
            file.write(text[-1:])
        info = await folder.head("requests/a.json")
        assert info is not None
        etags.add(info.etag)
    assert len(etags) == 3


async def test_unfinished_and_hidden_files_are_not_listed_in_the_inbox(folder: DirectoryStore):
    """Editors, browsers and rsync leave names that are no requests; elsewhere such names are keys."""
    for name in (".a.json.swp", ".hidden/b.json", "a.json~", "a.json.tmp", "a.json.part", "a.json"):
        await folder.put(f"requests/{name}", b"{}")
        await folder.put(f"models/m/{name}", b"{}")
    assert await keys(folder, "requests/") == ["requests/a.json"]
    assert len(await keys(folder, "models/")) == 6


async def test_names_that_are_no_keys_are_passed_over(folder: DirectoryStore):
    """A file whose name is not UTF-8, or has a line break, cannot stop a listing."""
    inbox = os.fsencode(folder.root) + b"/requests/"
    os.mkdir(inbox)
    for name in (b"latin-\xe9.json", b"line\nbreak.json", b"fine.json"):
        with open(inbox + name, "wb"):
            pass
    assert await keys(folder, "requests/") == ["requests/fine.json"]


# Hostile files ------------------------------------------------------------------------------------


async def refuses(store: DirectoryStore, key: str) -> None:
    """No verb reads or lists what stands at the key."""
    assert await store.head(key) is None
    with pytest.raises(NotFound):
        await store.get(key)
    assert key not in await keys(store)
    await store.delete(key)


async def test_symbolic_links_are_not_followed(folder: DirectoryStore, tmp_path: Path):
    """A link to a file outside, or inside, or to nothing, is no object; writing through it fails."""
    secret = tmp_path / "secret.json"
    secret.write_text("secret")
    (folder.root / "requests").mkdir()
    for name, target in (("out", secret), ("nothing", tmp_path / "none"), ("self", "self.json")):
        link = folder.root / f"requests/{name}.json"
        link.symlink_to(target)
        await refuses(folder, f"requests/{name}.json")
        with pytest.raises(StoreUnavailable, match="not a plain file is in its place"):
            await folder.create(f"requests/{name}.json", b"x")
        assert link.is_symlink()
    await folder.put("requests/out.json", b"replaced")

    assert secret.read_text() == "secret"
    assert (await folder.get("requests/out.json")).body == b"replaced"


async def test_linked_folders_are_not_entered(folder: DirectoryStore, tmp_path: Path):
    """A folder that is a link leads nowhere: nothing outside is read, listed, written or deleted."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.json").write_text("secret")
    (folder.root / "requests").mkdir()
    (folder.root / "requests/way").symlink_to(outside)
    (folder.root / "results").symlink_to(outside)

    for key in ("requests/way/a.json", "results/a.json"):
        await refuses(folder, key)
        with pytest.raises(StoreUnavailable, match="a file or a link is where"):
            await folder.create(key, b"x")
        with pytest.raises(StoreUnavailable, match="a file or a link is where"):
            await folder.put(key, b"x")
    assert await keys(folder, "requests/way/") == []
    assert await keys(folder, "results/") == []
    assert (outside / "a.json").read_text() == "secret"
    assert os.listdir(outside) == ["a.json"]


async def test_pipes_sockets_and_folders_never_block(folder: DirectoryStore):
    """A pipe without a writer would hang a plain open; here it is no object."""
    inbox = folder.root / "requests"
    inbox.mkdir()
    os.mkfifo(inbox / "pipe.json")
    (inbox / "folder.json").mkdir()
    here = os.getcwd()
    os.chdir(inbox)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("socket.json")
    finally:
        os.chdir(here)

    async with asyncio.timeout(120):
        for name in ("pipe", "socket", "folder"):
            await refuses(folder, f"requests/{name}.json")
            with pytest.raises(StoreUnavailable, match="is in its place; move that away"):
                await folder.create(f"requests/{name}.json", b"x")
    with pytest.raises(StoreUnavailable, match="move that away"):
        await folder.put("requests/folder.json", b"x")


async def test_hard_links_to_other_files_are_not_requests(folder: DirectoryStore, tmp_path: Path):
    """A second name of a file that only the worker may read is passed over in the inbox."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (folder.root / "requests").mkdir()
    os.link(secret, folder.root / "requests/a.json")

    assert await folder.head("requests/a.json") is None
    with pytest.raises(NotFound):
        await folder.get("requests/a.json")
    assert await keys(folder) == []


async def test_a_backup_by_hard_links_hides_no_result(folder: DirectoryStore, tmp_path: Path):
    """Results stay visible when a snapshot tool links to them: what was committed stays committed."""
    await folder.create("results/a/result.json", b"{}")
    os.link(folder.root / "results/a/result.json", tmp_path / "snapshot")
    assert (await folder.get("results/a/result.json")).body == b"{}"
    assert await keys(folder, "results/") == ["results/a/result.json"]


async def test_a_key_below_an_object_cannot_be_had_in_a_directory(folder: DirectoryStore):
    """A bucket can hold both `a` and `a/b`; here the second is absent, and refused with the reason."""
    await folder.create("results/a", b"x")
    await refuses(folder, "results/a/b")
    with pytest.raises(StoreUnavailable, match="a file or a link is where one of its folders should be"):
        await folder.create("results/a/b", b"y")
    await folder.create("results/c/d", b"x")
    with pytest.raises(StoreUnavailable, match="a folder is in its place"):
        await folder.create("results/c", b"y")


async def test_the_stores_own_folders_are_no_keys(folder: DirectoryStore):
    """Staging and metadata can be neither read nor written by a key, nor listed."""
    await folder.create("results/a/0.png", b"x", metadata={"plan": "p"})
    for key in (".staging/x", ".meta/x", ".meta", ".staging"):
        with pytest.raises(InvalidKey, match="keeps for itself"):
            await folder.put(key, b"x")
    assert await keys(folder) == ["results/a/0.png"]
    assert await keys(folder, ".meta/") == []


async def test_a_name_too_long_for_the_file_system_is_refused_with_the_limit(folder: DirectoryStore):
    """A segment of 256 bytes is a key elsewhere, but not here."""
    assert await folder.create("requests/" + "n" * 255, b"")
    with pytest.raises(InvalidKey, match="more than 255 bytes"):
        await folder.create("requests/" + "é" * 128, b"")


async def test_a_file_that_grows_past_the_limit_is_not_read_to_its_end(folder: DirectoryStore):
    """The limit holds for what is read, not only for what the file said of itself at first."""
    parts = iter([b"x" * 60, b"x" * 60])
    with pytest.raises(TooLarge):
        safe_paths.read_all(lambda _: next(parts), "requests/a.json", size=60, max_bytes=100)


names = st.one_of(
    st.sampled_from(
        ["..", ".", "", "~", "requests", "out", "a", "a.json", ".staging", "%2e%2e", "..\\", "C:"]
    ),
    st.text(max_size=12),
    st.text(alphabet="./\\a\x00\n", max_size=6),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(names, min_size=1, max_size=5), body=st.binary(max_size=8))
def test_no_key_leaves_the_root(parts: list[str], body: bytes, tmp_path: Path):
    """Whatever the text: it is refused, or it is a file below the root; what lies beside stays as it was."""
    key = "/".join(parts)
    root = tmp_path / "store"
    beside = tmp_path / "secret"
    beside.write_bytes(b"secret")
    root.mkdir(exist_ok=True)
    (root / "out").unlink(missing_ok=True)
    (root / "out").symlink_to(tmp_path)

    async def story() -> None:
        async with DirectoryStore(root, fsync=False) as store:
            try:
                await store.delete(key)
                await store.put(key, body)
                assert (await store.get(key)).body == body
                await store.delete(key)
                assert await store.create(key, body)
                assert await store.head(key) is not None
                await store.delete(key)
            except DreamError:
                pass

    asyncio.run(story())
    assert sorted(os.listdir(tmp_path)) == ["secret", "store"]
    assert beside.read_bytes() == b"secret"
