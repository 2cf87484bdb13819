"""Files of any size to and from every store: created once, whole, with their hash; lost answers read back."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from infra.stores import s3_files
from infra.stores.directory.store import DirectoryStore
from infra.stores.files import DiskTrouble
from infra.stores.s3 import S3Store
from infra.stores.store import WrongContent
from schemas.errors import NotFound, StoreUnavailable, Unsupported
from tests.servers.s3_front import Fault, S3Front

if TYPE_CHECKING:
    from pathlib import Path

    from infra.stores.open import OpenableStore

pytestmark = pytest.mark.anyio

KEY = "models/my-dog/1/unet/model.safetensors"
LARGE = (5 << 20) * 3 + 17  # four parts


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 MiB, which is the least that S3 takes."""
    monkeypatch.setattr(s3_files, "PART", 5 << 20)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "large.safetensors"
    path.write_bytes(os.urandom(LARGE))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("size", [0, 1000, LARGE])
async def test_a_file_comes_back_as_it_was(store: OpenableStore, tmp_path: Path, size: int):
    """Empty, small and in parts; a second create changes nothing, and the hash stands in the metadata."""
    path, back, other = tmp_path / "file", tmp_path / "back", tmp_path / "other"
    path.write_bytes(os.urandom(size))
    other.write_bytes(b"other")
    assert await store.create_file(KEY, path, sha256=sha256(path))
    assert not await store.create_file(KEY, other, sha256=sha256(other))
    assert not await store.create_file(KEY, path, sha256=sha256(path))

    back.write_bytes(b"what was there before is overwritten" * 9)
    assert await store.fetch_file(KEY, back) == sha256(path)
    assert back.read_bytes() == path.read_bytes()
    info = await store.head(KEY)
    assert info is not None
    assert (info.size, dict(info.metadata)) == (size, {"sha256": sha256(path)})


async def test_progress_counts_to_the_end(store: OpenableStore, large: Path, tmp_path: Path):
    """Both ways, more than once for a large file, and never beyond its size."""
    up: list[int] = []
    down: list[int] = []
    await store.create_file(KEY, large, sha256=sha256(large), progress=up.append)
    await store.fetch_file(KEY, tmp_path / "back", progress=down.append)
    await asyncio.sleep(0)
    assert max(up) == max(down) == LARGE
    small: list[int] = []
    (tmp_path / "back").write_bytes(b"small")
    await store.create_file(
        "models/b/1/x", tmp_path / "back", sha256=sha256(tmp_path / "back"), progress=small.append
    )
    await asyncio.sleep(0)
    assert max(small) == 5
    assert "memory" in store.url or (len(up) > 2 and len(down) > 2)


async def test_a_file_with_another_hash_is_not_created(store: OpenableStore, large: Path, tmp_path: Path):
    """Nothing is left under the key, so that the right file can be created."""
    small = tmp_path / "small"
    small.write_bytes(b"x")
    for path in (large, small):
        with pytest.raises(WrongContent, match="was it changed meanwhile"):
            await store.create_file(KEY, path, sha256="0" * 64)
    assert await store.head(KEY) is None
    assert await store.create_file(KEY, large, sha256=sha256(large))


async def test_what_is_not_there_is_said_so(store: OpenableStore, tmp_path: Path):
    with pytest.raises(NotFound) as caught:
        await store.fetch_file(KEY, tmp_path / "back")
    assert caught.value.key == KEY


async def test_creators_of_one_file_have_one_winner(
    store: OpenableStore, tmp_path: Path, request: pytest.FixtureRequest
):
    """Each sends another file in parts; the winner's is there, whole."""
    if "moto" in request.node.callspec.id:
        pytest.skip("moto checks and then acts, so it is no referee for races")
    paths = [tmp_path / f"{n}" for n in range(4)]
    for path in paths:
        path.write_bytes(os.urandom(LARGE))
    won = await asyncio.gather(*(store.create_file(KEY, p, sha256=sha256(p)) for p in paths))
    assert won.count(True) == 1
    assert await store.fetch_file(KEY, tmp_path / "back") == sha256(paths[won.index(True)])


async def test_a_local_file_that_cannot_be_used_is_no_fault_of_the_store(
    store: OpenableStore, large: Path, tmp_path: Path
):
    """It is not tried again and again as a store that does not answer is."""
    if "memory" in store.url:
        pytest.skip("a memory store raises what the system raises")
    await store.create_file(KEY, large, sha256=sha256(large))
    with pytest.raises(DiskTrouble, match="nowhere"):
        await store.fetch_file(KEY, tmp_path / "nowhere" / "back")


async def test_a_copy_ends_with_its_caller(tmp_path: Path, large: Path):
    """A cancelled create leaves neither an object nor a staging file, though it runs in a thread."""
    async with DirectoryStore(tmp_path / "store") as store:
        begun = asyncio.Event()
        task = asyncio.create_task(
            store.create_file(KEY, large, sha256=sha256(large), progress=lambda _: begun.set())
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await store.head(KEY)
    store._threads.shutdown(wait=True)
    left = [p for p in (tmp_path / "store" / ".staging").iterdir()]
    assert left == []


# Lost answers on S3 -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["broken", "broken_after", "cut", "cut_after", "slow_down"])
@pytest.mark.parametrize("method", ["PUT", "POST"])
async def test_faults_in_the_middle_of_an_upload(
    bucket: S3Store, s3_front: S3Front, large: Path, tmp_path: Path, kind: str, method: str
):
    """Of a part, or where the parts are joined (the second POST): the object is whole and ours."""
    faults = [Fault(kind, method=method, times=2)]
    if method == "POST":  # the first begins the upload
        s3_front.faults.append(Fault("delay", method="POST", times=1))
    s3_front.faults += faults
    assert await bucket.create_file(KEY, large, sha256=sha256(large))
    assert await bucket.fetch_file(KEY, tmp_path / "back") == sha256(large)
    assert not s3_front.uploads.parts


async def test_a_store_that_asks_to_begin_anew(bucket: S3Store, s3_front: S3Front, large: Path):
    """409 where the parts are joined: they are sent again; the parts of the first try are removed."""
    s3_front.faults += [Fault("delay", method="POST", times=1), Fault("conflict", method="POST", times=1)]
    assert await bucket.create_file(KEY, large, sha256=sha256(large))
    assert not s3_front.uploads.parts


async def test_another_s_file_is_left_alone(bucket: S3Store, s3_front: S3Front, large: Path, tmp_path: Path):
    """Created while our parts were under way: we are told so, and our parts are removed."""
    s3_front.faults.append(Fault("delay", method="PUT", prefix=KEY, times=1, seconds=3.0))
    ours = asyncio.create_task(bucket.create_file(KEY, large, sha256=sha256(large)))
    while not s3_front.uploads.parts:
        await asyncio.sleep(0.005)
    assert await bucket.create(KEY, b"theirs")
    s3_front.faults.append(Fault("cut_after", method="POST", times=1))
    assert not await ours
    assert (await bucket.get(KEY)).body == b"theirs"
    assert not s3_front.uploads.parts


async def test_an_upload_that_fails_leaves_no_parts(s3_front: S3Front, large: Path):
    """Given up after the patience; nothing is said about the object."""
    s3_front.faults += [Fault("delay", method="POST", times=1), Fault("broken", method="POST")]
    async with S3Store("s3://bucket", patience=0.3) as impatient:
        with pytest.raises(StoreUnavailable, match=r"cannot create 'models/my-dog"):
            await impatient.create_file(KEY, large, sha256=sha256(large))
    assert not s3_front.uploads.parts


async def test_a_store_without_conditions_for_uploads_is_refused(
    bucket: S3Store, s3_front: S3Front, large: Path
):
    s3_front.faults.append(Fault("unsupported", method="POST"))
    with pytest.raises(Unsupported, match="conditional write"):
        await bucket.create_file(KEY, large, sha256=sha256(large))
    assert not s3_front.uploads.parts


async def test_a_download_goes_on_where_it_broke_off(
    bucket: S3Store, s3_front: S3Front, large: Path, tmp_path: Path
):
    """Three times in the middle; each answer after the first begins where the last one ended."""
    await bucket.create_file(KEY, large, sha256=sha256(large))
    s3_front.faults.append(Fault("half", method="GET", times=3))
    assert await bucket.fetch_file(KEY, tmp_path / "back") == sha256(large)


async def test_amazons_checksums_are_sent(
    moto_url: str, monkeypatch: pytest.MonkeyPatch, large: Path, tmp_path: Path
):
    """As on AWS: a SHA-256 with each part, and with the list of parts."""
    import urllib.request

    from tests.conftest import pretend_credentials

    pretend_credentials(monkeypatch, moto_url)
    urllib.request.urlopen(urllib.request.Request(f"{moto_url}/files-bucket", method="PUT")).close()
    async with S3Store("s3://files-bucket") as store:
        store._on_aws = True
        assert await store.create_file(KEY, large, sha256=sha256(large))
        assert not await store.create_file(KEY, large, sha256=sha256(large))
        assert await store.fetch_file(KEY, tmp_path / "back") == sha256(large)


MEASURED = """
import asyncio, hashlib, pathlib, resource, sys
from infra.stores.open import open_store

async def main(url, path):
    digest = hashlib.file_digest(path.open("rb"), "sha256").hexdigest()
    async with open_store(url) as store:
        await store.head("warm/up")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert await store.create_file("models/a/1/big", path, sha256=digest)
        assert await store.fetch_file("models/a/1/big", path.with_suffix(".back")) == digest
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main(sys.argv[1], pathlib.Path(sys.argv[2])))
"""


@pytest.mark.parametrize("kind", ["directory", "s3"])
async def test_a_file_is_never_whole_in_memory(tmp_path: Path, s3_front: S3Front, kind: str):
    """A process that sends and fetches 200 MB grows by less than 140 MB: four parts of 16 MiB and their copies."""
    path = tmp_path / "big"
    with path.open("wb") as stream:
        stream.truncate(200_000_000)
    url = str(tmp_path / "store") if kind == "directory" else "s3://bucket"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", MEASURED, url, str(path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    kib = 1 if sys.platform == "linux" else 1024  # of what getrusage counts
    assert int(ended.stdout) / kib < 140_000
