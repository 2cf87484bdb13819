"""A rolling upgrade: workers of two versions on one directory, where only the newer one can do everything.

Once with the worker of a fixed earlier commit beside today's, once with today's beside one that has fields
which nobody knows yet: today's worker is the older one at the next upgrade.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infra.models.cards import BUNDLED
from tests.worker_process import drop, files, result

ROOT = Path(__file__).parents[2]
EARLIER = "84f0981793553aadd56108d1f22b0e22e464cd6b"
#: Options and variables of a worker with a model more and a higher limit.
MODEL = ("--models", f"mine={BUNDLED / 'doodle'}")
LIMITS = {"DREAMDROP_MAX_STEPS": "400"}
PACKAGES = ("consumer", "infra", "schemas")
CAT: dict[str, Any] = {"prompt": "a red circle", "steps": 2, "width": 8, "height": 8}
#: What the version after today's adds: (file, the line before which it stands, lines).
ADDED = (
    ("schemas/manifest.py", "    steps: int = Field(", "    tiling: bool = False\n"),
    ("schemas/manifest_parts.py", '    format: Literal["png",', "    lossless: bool = False\n"),
    ("schemas/plan.py", "    steps: int\n", "    tiling: bool = False\n"),
    ("schemas/result.py", "    finished_at: str = Field(", "    mood: str = 'newer'\n"),
    ("infra/claims/claim.py", "    nonce: str  # dist", "    mood: str = 'newer'\n"),
)


@pytest.fixture(scope="session")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of the earlier commit."""
    command = ["git", "-C", str(ROOT), "archive", EARLIER, *PACKAGES]
    try:
        packed = subprocess.run(command, capture_output=True, check=True, timeout=120).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        why = getattr(error, "stderr", b"") or str(error).encode()
        pytest.skip(f"commit {EARLIER[:7]} is not here, as in a shallow clone: {why.decode()[:200]}")
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Today's tree with the fields that are added."""
    folder = tmp_path_factory.mktemp("next")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, place, lines in ADDED:
        text = (folder / name).read_text()
        assert text.count(place) == 1, f"{name} has no single {place!r} to add a field before"
        at = text.index(place)
        (folder / name).write_text(text[:at] + lines + text[at:])
    return folder


@contextlib.contextmanager
def worker(tree: Path, store: Path, log: Path, *options: str, **environment: str) -> Iterator[Any]:
    """A worker of this tree; the block gets its process and the name of its session."""
    command = [sys.executable, "-m", "consumer", "--store", str(store), "--renderer", "null", "--lease", "2"]
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *options],
            stderr=out,
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree)} | environment,
        )
        try:
            ends = time.monotonic() + 120
            while " ready " not in (text := log.read_text()):
                assert process.poll() is None, text
                assert time.monotonic() < ends, text
                time.sleep(0.05)
            yield process, text.partition(" ready ")[2].partition("session=")[2].split()[0]
        finally:
            process.kill()
            process.wait()


def check(store: Path, id: str, document: dict[str, Any]) -> dict[str, Any]:
    """The request is answered, and its pictures are the right ones."""
    ended = result(store, id)
    assert ended["status"] == "succeeded", ended
    assert [image["seed"] for image in ended["images"]] == [document["seed"] + k for k in range(2)]
    for image in ended["images"]:
        body = (store / image["key"]).read_bytes()
        assert hashlib.sha256(body).hexdigest() == image["sha256"]
        colour = hashlib.sha256(f"{image['seed']} {document['prompt']}".encode()).digest()[:3]
        assert Image.open(io.BytesIO(body)).convert("RGB").getpixel((0, 0)) == tuple(colour)
    return ended


def settled(store: Path) -> bool:
    return not (files(store / "requests") or files(store / "claims"))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.05)


def workers_of(pair: tuple[str, str], request: pytest.FixtureRequest) -> list[Path]:
    return [ROOT if name == "today" else request.getfixturevalue(name) for name in pair]


def requests_of(pair: tuple[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Requests that both workers can draw, and those that only the newer one can."""
    changes: list[dict[str, Any]] = [{"model": "mine"}, {"steps": 300}]
    if pair[1] == "next_version":
        changes += [{"tiling": True}, {"output": {"lossless": True}}, {"tiling": True, "steps": 350}]
    plain = {f"p{number}": CAT | {"seed": 10 * number, "number_of_images": 2} for number in range(8)}
    special = {
        f"s{number}": CAT
        | {"seed": 500 + 10 * number, "number_of_images": 2}
        | changes[number % len(changes)]
        for number in range(8)
    }
    return plain, special


PAIRS = pytest.mark.parametrize(
    "pair", [("earlier", "today"), ("today", "next_version")], ids=lambda pair: "+".join(pair)
)


@pytest.mark.slow
@PAIRS
def test_an_upgrade_loses_nothing(pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path):
    """Both work; what only the newer one can draw is left to it, as a file and as a row of a batch."""
    old, new = workers_of(pair, request)
    plain, special = requests_of(pair)
    store = tmp_path / "store"
    with (
        worker(old, store, tmp_path / "old.log") as (_, older),
        worker(new, store, tmp_path / "new.log", *MODEL, **LIMITS) as (_, newer),
    ):
        time.sleep(1)  # a heartbeat, so that each knows of the other
        for id, document in (plain | special).items():
            drop(store, f"{id}.json", document)
        rows = [
            json.dumps(d | {"seed": d["seed"] + 1000, "id": f"row-{id}"})
            for id, d in (plain | special).items()
        ]
        drop(store, "rows.jsonl", "\n".join(rows).encode())
        drawn = {id: check(store, id, document)["worker"] for id, document in (plain | special).items()}
        batch = result(store, "rows")
        assert (batch["status"], batch["batch"]["counts"]["succeeded"]) == ("succeeded", 16), batch
        wait_until(lambda: settled(store), "something is left")
    assert {drawn[id] for id in special} == {newer}
    assert set(drawn.values()) <= {older, newer}
    ids = {path.parent.name for path in files(store / "results", "result.json")}
    assert ids == {*plain, *special, "rows", *(f"row-{id}" for id in plain | special)}, "an answer twice"


@pytest.mark.slow
@PAIRS
def test_a_crash_in_the_middle_of_an_upgrade_loses_nothing(
    pair: tuple[str, str], request: pytest.FixtureRequest, tmp_path: Path
):
    """The newer worker is killed with claims in hand: the older one draws what it can, and leaves it the rest."""
    old, new = workers_of(pair, request)
    plain, special = requests_of(pair)
    store = tmp_path / "store"
    hang = ["--null", json.dumps({"seconds_per_step": 30})]
    with worker(new, store, tmp_path / "new.log", *MODEL, *hang, **LIMITS) as (process, _):
        for id, document in (plain | special).items():
            drop(store, f"{id}.json", document)
        wait_until(lambda: not files(store / "requests"), "not everything is claimed")
        process.kill()
    with worker(old, store, tmp_path / "old.log") as (_, older):
        for id, document in plain.items():
            assert check(store, id, document)["worker"] == older
        assert not any((store / "results" / id).exists() for id in special)
        with worker(new, store, tmp_path / "again.log", *MODEL, **LIMITS) as (_, newer):
            for id, document in special.items():
                assert check(store, id, document)["worker"] == newer
            wait_until(lambda: settled(store), "something is left")
