"""How programs of our own are started: where they find their modules, and how their threads wait."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from infra import child_process
from infra.child_process import child_environment, thread_settings

WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def test_a_child_finds_the_packages_from_any_folder(tmp_path: Path):
    """From a plain checkout too, and no entry of its path depends on the working directory."""
    (tmp_path / "json.py").write_text("raise RuntimeError('the planted file was executed')")
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(["", ".", "lib", "/own"])}
    given.pop("PYTHONSAFEPATH", None)
    environment = child_environment(given)
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(child_process.ROOT), "/own"]
    code = "import sys, json, schemas; print(json.dumps([sys.flags.safe_path, schemas.__file__]))"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert json.loads(said.stdout) == [True, str(child_process.ROOT / "schemas" / "__init__.py")], said.stderr


def test_an_installed_package_adds_nothing_to_the_path(monkeypatch: pytest.MonkeyPatch):
    """Its folder would go before Python's own modules."""
    monkeypatch.setattr(child_process, "ROOT", Path(sysconfig.get_paths()["purelib"]))
    assert "PYTHONPATH" not in child_environment({"HOME": "/nowhere"})


def test_threads_spin_for_a_moment_and_then_sleep(tmp_path: Path):
    """Without a word of the user's; torch chooses their number."""
    assert thread_settings({}, tmp_path) == WAITING


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_users_own_policy_is_not_mixed_with_ours(name: str, tmp_path: Path):
    """Our spin count would undo a policy of ACTIVE."""
    assert thread_settings({name: "ACTIVE"}, tmp_path) == {}


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "100000 100000\n"}, "1"),
        ({"cpu.max": "550000 100000\n"}, "5"),
        ({"cpu.max": "50000 100000\n"}, "1"),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "2"),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "6400000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense\n"}, None),
        ({"cpu.max": ""}, None),
    ],
)
def test_a_container_has_no_more_threads_than_cores(
    files: dict[str, str], threads: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """torch counts the machine's cores, and not what a limit leaves of them. The user's own number stays."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert thread_settings({}, tmp_path).get("OMP_NUM_THREADS") == threads
    assert "OMP_NUM_THREADS" not in thread_settings({"MKL_NUM_THREADS": "8"}, tmp_path)


def test_training_has_the_same_settings():
    """They are in the environment before torch is imported."""
    code = "import os, sys, training.doodle; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    environment = {n: v for n, v in child_environment().items() if not n.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert said.stdout.split() == ["10000", "False"], said.stderr
