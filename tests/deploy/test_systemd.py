"""The systemd units: valid, hardened, and in step with the commands that they start."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from producer.cli import app, mount_all
from tests.deploy.dockerfile import ROOT
from tests.deploy.env_example import variables
from training.lease.trainer import TrainerSettings

UNITS = sorted((ROOT / "infra/deploy/systemd").glob("*.service"))
INSTALLED = "/opt/dreamdrop/bin/dreamdrop"

units = pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)


def settings(unit: Path) -> dict[str, list[str]]:
    """The unit's settings, each with its values in order."""
    found: dict[str, list[str]] = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE):
        found.setdefault(name, []).append(value)
    return found


def test_there_are_units_for_web_server_trainer_and_worker():
    names = ["dreamdrop-serve.service", "dreamdrop-trainer@.service", "dreamdrop-worker@.service"]
    assert [unit.name for unit in UNITS] == names


@units
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault(unit: Path, tmp_path: Path):
    """It checks names, values and the command, for which another program stands in. It also rates the exposure."""
    copy = tmp_path / unit.name.replace("@", "@0")
    copy.write_text(unit.read_text().replace(INSTALLED, "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if copy.name in line]
    assert (done.returncode, ours) == (0, [])
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=50", str(copy)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert rated.returncode == 0, rated.stdout[-300:] + rated.stderr


@units
def test_a_unit_starts_a_command_that_there_is(unit: Path):
    """With options that it has, and variables that it reads."""
    mount_all()
    [command] = settings(unit)["ExecStart"]
    program, *words = shlex.split(command)
    assert program == INSTALLED
    help = CliRunner().invoke(app, [words[0], "--help"])
    assert help.exit_code == 0
    for option in (word for word in words if word.startswith("--")):
        assert option in help.output
    explained = (ROOT / ".env.example").read_text()
    for name in re.findall(r"\b(DREAMDROP_\w+)=", "\n".join(settings(unit).get("Environment", ()))):
        assert f"{name}=" in explained


@units
def test_units_that_share_folders_share_a_user(unit: Path):
    """A dynamic user of its own would take the folders from the others at each start."""
    found = settings(unit)
    assert found["DynamicUser"] == ["yes"]
    assert found["User"] == ["dreamdrop"]
    assert found["StateDirectory"] == ["dreamdrop"]


def test_a_worker_has_longer_to_stop_than_to_drain():
    found = settings(UNITS[2])
    grace = float(variables()["DREAMDROP_GRACE"][1].default)
    assert float(found["TimeoutStopSec"][0]) > grace + 10
    assert found["KillSignal"] == ["SIGTERM"]


def test_a_trainer_has_longer_to_stop_than_to_save_a_checkpoint():
    found = settings(UNITS[1])
    assert float(found["TimeoutStopSec"][0]) > TrainerSettings().grace + 20
    assert (found["KillSignal"], found["KillMode"]) == (["SIGTERM"], ["mixed"])
    # A folder that the service may write to; both are its own.
    assert "DREAMDROP_WORK=/var/cache/dreamdrop/" in found["Environment"][0]
    assert found["CacheDirectory"] == ["dreamdrop"]


@units
def test_what_a_restart_cannot_mend_is_not_restarted(unit: Path):
    """2 is a wrong command. 3 may be a store that is away, 4 are denied credentials, which a restart reads again."""
    found = settings(unit)
    assert found["Restart"] == ["always"]
    assert found["RestartPreventExitStatus"] == ["2"]
    assert found["StartLimitIntervalSec"] == ["0"]
