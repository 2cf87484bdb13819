"""Measurements, printed as ratios: `python tests/benchmarks/run.py [names] [--quick] [--json FILE]`.

Each figure is the median of pairs that ran in turn in one run on one machine, with its range.
Nothing here passes or fails by a time; a contender with wrong pixels ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # before torch, here and in the children: everybody has one thread
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[0] = str(Path(__file__).parents[2])

BENCHMARKS = (
    "host",
    "simulated",
    "throughput",
    "latency",
    "protocol",
    "queue",
    "facade",
    "peers",
    "threads",
    "express",
    "scale",
    "estimate",
)
MODELS = ("launch", "mixed", "flux", "doodle")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all without any")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: to see that it runs")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    warnings.filterwarnings("ignore", "__array", DeprecationWarning)  # diffusers 0.42 with numpy 2

    from tests.benchmarks.table import Table

    facts, table = _facts(), Table()
    print("\n".join(f"{name}: {value}" for name, value in facts.items()), flush=True)
    names = options.names or list(BENCHMARKS)
    with tempfile.TemporaryDirectory(prefix="dreamdrop-bench-") as folder:
        if {"throughput", "latency", "facade", "peers"} & set(names):
            _drawing(names, options.models, Path(folder), table, options.quick)
        if "host" in names:
            from tests.benchmarks import host

            host.measure(Path(folder), table, options.quick)
        if "simulated" in names:
            from tests.benchmarks import simulated

            simulated.measure(Path(folder), table, options.quick)
        if "protocol" in names:
            from tests.benchmarks import protocol

            protocol.measure(Path(folder), table, options.quick)
        if "queue" in names:
            from tests.benchmarks import queue

            queue.measure(Path(folder), table, options.quick)
        if "threads" in names:
            from tests.benchmarks import threads

            threads.measure(table, options.quick)
        if "express" in names:
            from tests.benchmarks import express

            express.measure(Path(folder), table, options.quick)
        if "scale" in names:
            from tests.benchmarks import scale

            scale.measure(table, options.quick)
        if "estimate" in names:
            from tests.benchmarks import estimate

            estimate.measure(Path(folder), table, options.quick)
    facts["load at the end"] = _load()
    print(f"\nload at the end: {facts['load at the end']}")
    if options.json:
        options.json.write_text(json.dumps({"facts": facts, "rows": table.rows}, indent=1) + "\n")


def _drawing(names: list[str], models: list[str], place: Path, table: Any, quick: bool) -> None:
    import torch

    from consumer.engine.loading.registry import ModelRegistry, quiet
    from infra.models.cards import Cards
    from tests.benchmarks import latency, throughput
    from tests.benchmarks.contenders import Child
    from tests.benchmarks.models import available

    quiet()
    torch.set_num_threads(1)
    folders, skipped = available(models, place)
    for name, why in skipped.items():
        table.say(f"{name} is skipped: {why}")
    if not folders:
        return
    registry = ModelRegistry(Cards.of(f"{name}={folder}" for name, folder in folders.items()))
    child = Child(folders)
    try:
        if "throughput" in names:
            throughput.measure(registry, child, list(folders), table, quick)
        if "latency" in names:
            latency.measure(registry, child, folders, place, table, quick)
        if "facade" in names:
            from tests.benchmarks import facade

            facade.measure(child, folders, place, table, quick)
        if "peers" in names:
            from tests.benchmarks.peers import measure as peers

            peers.measure(child, folders, place, table, quick)
    finally:
        child.close()


def _facts() -> dict[str, str]:
    """What the figures depend on."""
    packages = ("torch", "diffusers", "transformers", "numpy", "pillow", "aiobotocore")
    return {
        "versions": ", ".join(
            [f"python {platform.python_version()}", *(f"{p} {version(p)}" for p in packages)]
        ),
        "hardware": f"{_processor()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}",
        "threads": "1 for torch in every process, except for the figures of threads",
        "load at the start": _load(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _load() -> str:
    """Of the last minute: above the number of cores, ratios of separate processes are distorted."""
    return f"{os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
