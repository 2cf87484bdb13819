"""What a batch of 50,000 rows costs: a real worker with the null renderer, then its roll-up alone.

The worker draws the whole file in a directory. Then another process sums the same rows up once more, through a
store that counts its calls: its peak memory is the roll-up's own, without the renderer's and the requests'.

    python tests/benchmarks/fifty_thousand.py [--rows N] [--place FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[2])

_SUMMARY = ("*.jsonl", "*.html", "*.png", "batch.json", "result.json", "input-*", "request*")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--place", type=Path, help="an empty folder on the disk to be measured")
    parser.add_argument("--sum-up", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sum_up:
        asyncio.run(_sum_up(options.sum_up, _file(options.rows)))
        return
    with tempfile.TemporaryDirectory(prefix="dreamdrop-bench-") as folder:
        root = options.place or Path(folder)
        inbox = root / "requests"
        inbox.mkdir(parents=True, exist_ok=True)
        (inbox / "b.jsonl").write_bytes(_file(options.rows))
        environment = {**os.environ, "PYTHONPATH": sys.path[0]}
        command = [sys.executable, "-m", "consumer", "--store", str(root), "--renderer", "null", "--once"]
        began = time.perf_counter()
        # Only the worker itself is waited for: the peak of its own child is smaller, and not asked for.
        subprocess.run([*command, "--log-level", "warning"], env=environment, check=True)
        print(f"worker: {time.perf_counter() - began:.0f} s, peak of the parent {_mib(_children())} MiB")
        files = root / "results" / "b"
        for file in sorted(path for pattern in _SUMMARY for path in files.glob(pattern)):
            if "gallery-" not in file.name:
                print(f"  {file.name}: {file.stat().st_size:,} bytes")
        subprocess.run(
            [sys.executable, __file__, "--rows", str(options.rows), "--sum-up", str(root)],
            env=environment,
            check=True,
        )


def _file(rows: int) -> bytes:
    lines = [
        {
            "custom_id": f"row-{number}",
            "prompt": f"a red circle on a blue background, number {number}",
            "width": 64,
            "height": 64,
            "steps": 1,
            "seed": number,
        }
        for number in range(rows)
    ]
    return "\n".join(map(json.dumps, lines)).encode()


def _children() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def _mib(kib: int) -> int:
    return round(kib / 1024)


async def _sum_up(root: Path, body: bytes) -> None:
    from consumer.jobs.batches import Batches
    from infra.claims.claim import Claim, Held
    from infra.stores.directory.store import DirectoryStore
    from schemas import layout
    from schemas.limits import Limits
    from schemas.result import Frozen

    for pattern in _SUMMARY:
        for file in (root / "results" / "b").glob(pattern):
            file.unlink()
    calls: Counter[str] = Counter()

    class Counting(DirectoryStore):
        async def _in_thread(self, key: str, work: Any) -> Any:
            calls[sys._getframe(1).f_code.co_name] += 1
            return await super()._in_thread(key, work)

    async with Counting(root) as store:
        claim = Claim(
            id="b", fingerprint=layout.fingerprint(body), frozen=Frozen.of(body), plan=None, session="s",
            nonce="n", epoch=1, attempt=1, batch=True,
        )  # fmt: skip
        calls.clear()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        result = await Batches(store, Limits(), time.monotonic, "s").run(Held(claim))
        took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"roll-up: {took:.1f} s ({time.process_time():.1f} s of CPU), peak {_mib(peak)} MiB "
        f"({_mib(before)} before), {dict(calls)}"
    )
    pages = [file.stat().st_size for file in (root / "results" / "b").glob("gallery*.html")]
    print(f"  {len(result.to_json()):,} bytes of result.json, before a long request is taken out of it")
    print(f"  {result.status}; {len(pages)} pages of the gallery, the largest has {max(pages):,} bytes")


if __name__ == "__main__":
    main()
