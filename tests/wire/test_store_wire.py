"""A store that an earlier version left in the middle of its work is finished by this one.

`store-3f65b16/` was written by the worker of that commit on a machine called host-1, with the null renderer's
grainy images. Each request stands where its worker was killed, or let go of it. Add folders; never change one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from infra.claims.claims import Timing
from infra.stores.directory.store import DirectoryStore
from tests.worker_inside import make_worker, running, until
from tests.worker_process import files

pytestmark = pytest.mark.anyio

OLD = Path(__file__).parent / "store-3f65b16"
TIMING = Timing(beat=0.2, lease=1.0, sweep=(0.2, 0.4), retry_after=(0.1,), forget=1.0)

#: How each request ends: its status, and the attempts that it took.
ENDS = {
    "new": ("succeeded", 1),  # dropped, and not claimed
    "both": ("succeeded", 2),  # claimed, and its file not deleted yet
    "cats/half": ("succeeded", 2),  # one of three images stored, the next one half stored
    "drained": ("succeeded", 1),  # given back by a worker that stopped
    "retried": ("succeeded", 2),  # given back after a failure; its picture is in the claim
    "refused": ("failed", 2),  # claimed with a refusal for a plan, which was not told
    "finished": ("succeeded", 1),  # over; its claim and its status are left
    "used-up": ("failed", 3),  # three workers died with it
    "wall": ("succeeded", 2),  # a batch with one row that is over and three that are claimed
    "wall/row-1": ("succeeded", 1),
    **{f"wall/row-{n}": ("succeeded", 2) for n in (0, 2, 3)},
}


def copied(folder: Path) -> Path:
    """A copy of the old store.

    A file's metadata goes by the file's inode and time, which no copy keeps; so it gets the name of the copy's.
    """
    shutil.copytree(OLD, folder)
    staged = {path.name.rpartition("-")[2]: path for path in files(folder / ".staging")}
    for path in staged.values():  # as old as its name says
        born = int(path.name.partition("-")[0], 16)
        os.utime(path, ns=(born, born))
    stored = {marked(path, folder): path for path in files(folder / "results")}
    for sidecar in files(folder / ".meta"):
        mark = sidecar.name.partition("-")[0]
        facts = {**staged, **stored}[mark].stat()
        version = f"{facts.st_ino:x}-{facts.st_mtime_ns:x}-{facts.st_size:x}"
        sidecar.rename(sidecar.with_name(f"{mark}-{version}.json"))
    return folder


def marked(path: Path, store: Path) -> str:
    return hashlib.sha256(path.relative_to(store).as_posix().encode()).hexdigest()[:32]


def left(store: Path) -> list[str]:
    """What must not stay, but for the living worker's own heartbeat."""
    found = [path for name in ("requests", "claims", "status", "workers") for path in files(store / name)]
    return [path.name for path in found if path.name != "inside"]


def results(store: Path) -> dict[str, dict[str, Any]]:
    """Each request's result, by its id."""
    found = files(store / "results", "result.json")
    return {
        path.parent.relative_to(store / "results").as_posix(): json.loads(path.read_bytes()) for path in found
    }


async def test_what_an_earlier_version_left_is_finished(tmp_path: Path):
    """Each request ends once, as its plan said; what was stored is adopted byte for byte, and nothing is left."""
    folder, diary = copied(tmp_path / "store"), tmp_path / "diary"
    assert len(files(folder / ".meta")) == len(files(folder, "*.png")) + 1  # that of the half-stored image
    null = {"diary": str(diary)}
    async with DirectoryStore(folder) as store, running(make_worker(store, timing=TIMING, null=null)):
        await until(lambda: not left(folder))
    ends = results(folder)
    assert {id: (end["status"], end["attempts"]) for id, end in ends.items()} == ENDS

    for path in files(OLD / "results"):
        assert (folder / path.relative_to(OLD)).read_bytes() == path.read_bytes()
    drawn = diary.read_text().split("\n")
    assert "cats/half 1" in drawn
    assert not {"cats/half 0", "finished 0", "wall/row-1 0", "wall/row-1 1"} & set(drawn)
    for id, end in ends.items():
        for image in end["images"]:
            assert hashlib.sha256((folder / image["key"]).read_bytes()).hexdigest() == image["sha256"], id

    claims = [json.loads(path.read_bytes()) for path in files(OLD / "claims", "000001")]
    plans = {claim["id"]: claim["plan"] for claim in claims if "seeds" in (claim["plan"] or {})}
    assert len(plans) == 9
    for id, plan in plans.items():
        seeds = [image["seed"] for image in ends[id]["images"]]
        assert ends[id]["parameters"] == plan
        assert seeds == ([] if id == "used-up" else plan["seeds"])
    assert ends["refused"]["failure"]["field"] == "steps"
    assert ends["used-up"]["failure"]["code"] == "worker_crashed"
    assert ends["wall"]["batch"]["counts"]["succeeded"] == 4

    pictures = [path for path in files(folder / "results", "*.png") if path.name != "contact-sheet.png"]
    assert len(files(folder / ".meta")) == len(pictures)
    assert files(folder / ".staging") == []
