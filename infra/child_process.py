"""How this project starts Python programs of its own.

A plain `python -m` looks for modules in the working directory first, and clients may write there: with
`--store .`, a dropped `hashlib.py` would run with the worker's credentials.
"""

from __future__ import annotations

import os
import re
import site
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the folder that holds `consumer`, `producer` and the others

#: Threads that wait for one another spin for a fraction of a millisecond, then sleep: a small model's barriers are
#: nearer than that, and where other programs use the cores, spinning for longer makes it many times slower. libgomp's
#: documentation has both names; other OpenMP libraries know the first one only, and sleep at once.
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
_NUMBERS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # either one is the user's word on the number of threads
_SECRET = re.compile(r"^AWS_|^OTEL_|SECRET|TOKEN(?!IZERS)|PASSW|CREDENTIAL|KEY|^DREAMDROP_", re.IGNORECASE)
_CGROUP = Path("/sys/fs/cgroup")


def python_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of an installed package, never one of the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """An environment for `python_command`: the given one, whose own settings win over our defaults.

    Entries of PYTHONPATH that depend on the working directory are left out. Where the packages lie in a plain
    checkout, its folder is added, which `python -m` had found through the working directory.
    """
    entries = [e for e in environment.get("PYTHONPATH", "").split(os.pathsep) if Path(e).is_absolute()]
    if str(ROOT) not in (*site.getsitepackages(), site.getusersitepackages()):
        entries = [str(ROOT), *(entry for entry in entries if Path(entry) != ROOT)]
    child = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    if entries:
        child["PYTHONPATH"] = os.pathsep.join(entries)
    return {**thread_settings(environment), **child, "PYTHONSAFEPATH": "1"}


def without_secrets(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that a process may have which loads models or pictures of strangers."""
    return {name: value for name, value in environment.items() if not _SECRET.search(name)}


def thread_settings(environment: Mapping[str, str], cgroup: Path = _CGROUP) -> dict[str, str]:
    """Variables for a process that imports torch: how OpenMP's threads wait, and how many there are.

    They are read once, when torch is imported. Nothing that the user has set is changed or mixed with ours.
    """
    settings = {} if _WAITING.keys() & environment.keys() else dict(_WAITING)
    if not any(name in environment for name in _NUMBERS):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if (quota := _quota(cgroup)) < cores:
            settings["OMP_NUM_THREADS"] = str(max(1, int(quota)))
    return settings


def _quota(cgroup: Path) -> float:
    """How many cores this container may use, which torch does not look up; infinite without a limit."""
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = " ".join((cgroup / file).read_text() for file in files).split()
            if float(quota) > 0 < float(period):
                return float(quota) / float(period)
        except (OSError, ValueError):  # no such file, or "max": no limit
            continue
    return float("inf")
