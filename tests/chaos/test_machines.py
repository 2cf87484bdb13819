"""Machines that are not as they should be: a full disk, clocks that are wrong."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from tests.chaos.history import IMAGES, Wish, renderings, takeovers
from tests.chaos.nursery import Nursery, nursery
from tests.chaos.places import Folder, Place, place
from tests.worker_process import files


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Nursery]:
    """Where the workers come from."""
    with nursery(tmp_path / "logs") as cradle:
        yield cradle


def wish(number: int, steps: int) -> Wish:
    body = {"prompt": f"p{number}", "steps": steps, "number_of_images": IMAGES, "width": 64, "height": 64}
    return Wish(f"r{number}", json.dumps(body).encode())


def until(condition: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.02)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own, in memory."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], timeout=60, check=True)


def fill(ballast: Path) -> None:
    """Take the last byte."""
    with ballast.open("ab", buffering=0) as file:
        for size in (4096, 1):
            with pytest.raises(OSError, match="No space left"):
                _write_for_ever(file, b"x" * size)


def _write_for_ever(file: FileIO, block: bytes) -> None:
    while True:
        file.write(block)


def test_a_full_disk_tears_nothing_and_the_worker_goes_on_when_there_is_room(home: Nursery, tmp_path: Path):
    """It says what is wrong, stays alive, and stores what it has drawn once space is freed."""
    disk = tmp_path / "disk"
    with small_disk(disk, "300k"):
        here = Folder(disk / "store")
        for number in range(3):
            here.drop(wish(number, steps=8))
        null = json.dumps({"seconds_per_step": 0.02})
        worker = home.start(*here.options, "--renderer", "null", "--lease", "2", "--null", null)
        until(lambda: files(disk / "store" / "claims", "0*"), "nothing is claimed")
        fill(disk / "ballast")
        until(lambda: "No space left" in worker.log.read_text(), "it says nothing")
        for _ in range(20):
            time.sleep(0.05)
            assert worker.alive
            fill(disk / "ballast")
        torn = [path for path in files(disk / "store" / "results", "*.json") if not _is_whole(path)]
        assert not torn
        (disk / "ballast").unlink()
        until(lambda: here.open_wishes() == 0 and here.is_tidy(), "it does not recover")
        verdict = here.judge()
        worker.send(SIGTERM)
        assert worker.wait(120)
    assert verdict.is_good, str(verdict)


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_bytes())
    except ValueError:
        return False
    return True


def _start(home: Nursery, here: Place, diary: Path, *, lease: float, seed: int):  # type: ignore[no-untyped-def]
    null = json.dumps({"seconds_per_step": 0.02, "diary": str(diary)})
    options = [*here.options, "--renderer", "null", "--lease", str(lease), "--null", null]
    facts = {"seed": seed, "since": 3600.0 * seed}
    return home.start(*options, environment=here.environment, spoil="tests.chaos.clocks", **facts)


@pytest.mark.parametrize("tier", ["directory", "s3"])
def test_wrong_clocks_steal_nothing_and_strand_nothing(tier: str, home: Nursery, tmp_path: Path):
    """Wall clocks jump by days, monotonic ones differ by hours: nobody alive is robbed, the dead are."""
    diary = tmp_path / "diary"
    with place(tier, tmp_path / "place", 0, kind=True) as here:
        workers = [_start(home, here, diary, lease=3, seed=seed) for seed in range(3)]
        for number in range(12):
            here.drop(wish(number, steps=8))
        until(lambda: here.open_wishes() == 0, "they do not end")
        assert not takeovers(tmp_path / "logs")
        assert set(renderings(diary).values()) == {1}

        for number in range(12, 20):
            here.drop(wish(number, steps=8))
        until(lambda: here.open_wishes() < 8, "nothing ends")
        workers[0].send(SIGKILL)
        until(lambda: here.open_wishes() == 0 and here.is_tidy(), "what the dead had is not taken over")
        verdict = here.judge()
        for worker in workers[1:]:
            worker.send(SIGTERM)
            assert worker.wait(120)
    assert verdict.is_good, str(verdict)
