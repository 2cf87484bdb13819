"""What a directory store owes beyond the common promises: many processes, hostile files, hand-made files."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.stores.directory import safe_paths
from infra.stores.directory.store import DirectoryStore
from infra.stores.store import InvalidKey
from schemas.errors import DreamError, NotFound, StoreUnavailable, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio


@pytest.fixture
async def folder(tmp_path: Path) -> AsyncIterator[DirectoryStore]:
    """An open store in a directory of its own, beside which there is room for strangers."""
    async with DirectoryStore(tmp_path / "store") as opened:
        yield opened


async def keys(store: DirectoryStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


# Many processes -----------------------------------------------------------------------------------

RACER = """
import asyncio, sys
from pathlib import Path
from infra.stores.directory.store import DirectoryStore

async def main(root, name, rounds):
    async with DirectoryStore(Path(root), fsync=False) as store:
        print("ready", flush=True)
        sys.stdin.readline()
        for n in range(rounds):
            key = f"claims/race-{n}/000001"
            won = await asyncio.gather(*(
                store.create(key, f"{name}-{task}".encode() * 1000, metadata={"winner": f"{name}-{task}"})
                for task in range(4)
            ))
            for task, mine in enumerate(won):
                if mine:
                    print(n, f"{name}-{task}", flush=True)

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def start(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


async def test_of_sixteen_creators_in_four_processes_one_wins(folder: DirectoryStore):
    """In each of 200 races exactly one creator is told so, and its body and metadata are what stays."""
    rounds = 200
    racers = [start(RACER, str(folder.root), f"p{n}", str(rounds)) for n in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=300)[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0] * 4

    winners = {int(number): name for number, name in lines}
    assert sorted(int(number) for number, _ in lines) == list(range(rounds))
    for number, name in winners.items():
        found = await folder.get(f"claims/race-{number}/000001")
        assert found.body == name.encode() * 1000
        assert dict(found.info.metadata) == {"winner": name}
    assert os.listdir(folder.root / safe_paths.STAGING) == []


CHURN = """
import asyncio, sys
from pathlib import Path
from infra.stores.directory.store import DirectoryStore

async def main(root, rounds):
    async with DirectoryStore(Path(root), fsync=False) as store:
        for n in range(rounds):
            await store.create("claims/a/b/000001", b"x")
            await store.put("claims/a/c/000001", b"y")
            async for _ in store.list("claims/"):
                pass
            await store.delete("claims/a/b/000001")
            await store.delete("claims/a/c/000001")

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_folders_that_come_and_go_disturb_nobody(folder: DirectoryStore):
    """Empty claim folders are removed while other processes create in them, and no verb fails."""
    churners = [start(CHURN, str(folder.root), "150") for _ in range(3)]
    for churner in churners:
        churner.communicate(timeout=300)
    assert [churner.returncode for churner in churners] == [0] * 3
    assert await keys(folder) == []
    assert os.listdir(folder.root / "claims") == []


async def test_a_reader_never_sees_half_an_object(folder: DirectoryStore):
    """While an object is overwritten again and again, every read is one of the bodies, whole."""
    await folder.put("workers/w", b"0" * 50_000)
    done = asyncio.Event()

    async def write() -> None:
        for n in range(60):
            await folder.put("workers/w", b"%d" % (n % 10) * 50_000)
        done.set()

    writer = asyncio.create_task(write())
    while not done.is_set():
        found = await folder.get("workers/w")
        assert len(found.body) == found.info.size == 50_000
        assert len(set(found.body)) == 1
    await writer


async def test_every_version_has_an_etag_of_its_own(tmp_path: Path):
    """Versions written in the same tick of the kernel's clock, in a reused inode, still differ."""
    etags = []
    async with DirectoryStore(tmp_path / "store", fsync=False) as store:
        for n in range(300):
            await store.put("workers/w", b"%d" % (n % 10))
            info = await store.head("workers/w")
            assert info is not None
            etags.append(info.etag)
    assert len(set(etags)) == 300


# Crashes ------------------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from pathlib import Path
from infra.stores.directory.store import DirectoryStore

async def main(root, name):
    async with DirectoryStore(Path(root)) as store:
        async def write(lane):
            for n in range(100_000):
                key = f"results/{name}-{lane}-{n}/0.png"
                assert await store.create(key, key.encode() * 500, metadata={"of": key.replace("/", ":")})
                print(key, flush=True)
        await asyncio.gather(*(write(lane) for lane in range(6)))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


async def test_a_killed_writer_leaves_whole_objects_or_none(folder: DirectoryStore):
    """Writers are killed in full flight: what they had reported is there, and nothing is half there."""
    reported: set[str] = set()
    for run in range(4):
        writer = start(WRITER, str(folder.root), f"run{run}")
        assert writer.stdout is not None
        first = writer.stdout.readline()
        await asyncio.sleep(0.03 * run)
        writer.kill()
        whole_lines = (first + writer.communicate(timeout=120)[0]).split("\n")[:-1]
        reported.update(whole_lines)

    found = [info.key async for info in folder.list("results/")]
    assert reported <= set(found)
    assert len(reported) >= 4
    for key in found:
        stored = await folder.get(key)
        assert stored.body == key.encode() * 500
        assert dict(stored.info.metadata) == {"of": key.replace("/", ":")}


async def test_leftovers_of_the_dead_are_swept_after_an_hour(folder: DirectoryStore):
    """Opening removes old staging files, and leaves those that somebody may be writing."""
    staging = folder.root / safe_paths.STAGING
    (staging / "old").write_bytes(b"half")
    (staging / "new").write_bytes(b"half")
    os.utime(staging / "old", (time.time() - 3700, time.time() - 3700))

    async with DirectoryStore(folder.root):
        assert os.listdir(staging) == ["new"]
    assert await keys(folder) == []


async def test_an_object_whose_creator_died_before_tidying_is_whole(folder: DirectoryStore):
    """With its staging name still there an object is read and listed like any other."""
    await folder.create("requests/a.json", b"{}")
    os.link(folder.root / "requests/a.json", folder.root / safe_paths.STAGING / "left")

    assert (await folder.get("requests/a.json")).body == b"{}"
    assert await keys(folder) == ["requests/a.json"]


async def test_a_link_that_worked_but_was_reported_as_failed_counts(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """A network file system may answer EEXIST to its own repeated request; the link count tells."""
    real = os.link

    def twice(*arguments: object, **options: object) -> None:
        real(*arguments, **options)  # type: ignore[arg-type]
        real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "link", twice)
    assert await folder.create("claims/a/000001", b"mine", metadata={"n": "1"})
    assert dict((await folder.get("claims/a/000001")).info.metadata) == {"n": "1"}
    assert not await folder.create("claims/a/000001", b"other")


async def test_a_missing_disk_is_not_an_empty_store(folder: DirectoryStore):
    """When the directory itself is gone every verb says so; nothing is taken for absent."""
    shutil.rmtree(folder.root)
    with pytest.raises(StoreUnavailable, match="is not there: create it, or mount its disk"):
        await folder.head("results/a/result.json")
    with pytest.raises(StoreUnavailable, match="is not there"):
        await folder.get("results/a/result.json")
    with pytest.raises(StoreUnavailable, match="is not there"):
        await folder.create("results/a/result.json", b"")
    with pytest.raises(StoreUnavailable, match="is not there"):
        await keys(folder, "requests/")


async def test_a_store_that_was_emptied_under_us_goes_on(folder: DirectoryStore):
    """Removing everything inside the directory, staging too, is a fresh start and no error."""
    await folder.put("requests/a.json", b"1")
    for child in folder.root.iterdir():
        shutil.rmtree(child)
    assert await keys(folder) == []
    assert await folder.create("requests/a.json", b"2", metadata={"n": "1"})
    assert (await folder.get("requests/a.json")).body == b"2"


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


# Size ---------------------------------------------------------------------------------------------


async def test_a_narrow_listing_reads_only_its_own_folder(
    folder: DirectoryStore, monkeypatch: pytest.MonkeyPatch
):
    """The claims of one request are found without a look at the other thousand."""
    for n in range(50):
        (folder.root / f"claims/{n:03d}").mkdir(parents=True)
        (folder.root / f"claims/{n:03d}/000001").write_bytes(b"")
    opened = []
    real = os.scandir

    def spy(path: int) -> object:
        opened.append(path)
        return real(path)

    monkeypatch.setattr(os, "scandir", spy)
    assert await keys(folder, "claims/007/") == ["claims/007/000001"]
    assert len(opened) == 1


async def test_thousands_of_requests_are_listed_whole_and_in_order(folder: DirectoryStore):
    """A listing goes on over its internal pages without a gap or a repeat."""
    inbox = folder.root / "requests"
    inbox.mkdir()
    for n in range(2_500):
        os.close(os.open(inbox / f"{n:05d}.json", os.O_CREAT | os.O_WRONLY))
    assert await keys(folder, "requests/") == [f"requests/{n:05d}.json" for n in range(2_500)]
