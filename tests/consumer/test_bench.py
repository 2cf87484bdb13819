"""`dreamdrop bench`: what it measures, what it recommends, and how it stops."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consumer.bench import report
from consumer.bench.cli import STOPPED, app
from consumer.bench.measure import Cell
from infra.models.cards import BUILT_IN

ROOT = Path(__file__).parents[2]
DOODLE = BUILT_IN[0]  # 20 steps, with guidance


def cell(rows: int, row_ms: float, side: int = 128, **facts: object) -> Cell:
    return replace(Cell(side, side, rows, rows, rows * row_ms, 20.0, 500 << 20), **facts)  # type: ignore[arg-type]


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="it looks at the processes under /proc")
def test_a_model_is_measured_until_ctrl_c(tiny_folder: Path, tmp_path: Path):
    """Real calls of a real child, with all rows that were asked for. What was measured is kept; the child is gone."""
    code = "from consumer.bench.cli import app; app()"
    sizes = ",".join(str(8 * n) for n in range(4, 60))
    command = [
        sys.executable,
        "-c",
        code,
        "--models",
        f"tiny={tiny_folder}",
        "--model",
        "tiny",
        "--device",
        "cpu",
    ]
    given = re.escape(shlex.quote(f"tiny={tiny_folder}"))
    command += [
        "--dtype",
        "float32",
        "--steps",
        "4",
        "--rows",
        "2,6",
        "--sizes",
        sizes,
        "--out",
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(4)]  # a title, a head, and the two cells of 32 x 32
        started = children(process.pid)
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=300)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == STOPPED, complaints
    assert "Traceback" not in complaints
    assert started
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]
    assert lines[2].split()[:4] == ["32", "x", "32", "2"]
    assert re.search(
        rf"recommended: dreamdrop worker --model tiny --max-rows \d+ --models {given} --dtype float32\n", rest
    )
    found = json.loads((tmp_path / "bench.json").read_text())
    two, six = found["cells"][:2]
    assert [(c["rows"], c["problem"]) for c in (two, six)] == [(2, ""), (6, "")]
    assert all(c["step_ms"] > 0 and c["image_ms"] > 0 and c["memory"] > 1 << 20 for c in (two, six))
    assert len(found["cells"]) < 2 * 56
    ET.fromstring((tmp_path / "bench.svg").read_text())


def test_it_is_a_command_of_dreamdrop():
    """The package announces it, so an installation has it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    announced = project["entry-points"]["dreamdrop.commands"]["bench"]
    assert EntryPoint("bench", announced, "dreamdrop.commands").load() is app


def test_the_fewest_rows_that_are_nearly_as_fast_are_recommended():
    """More rows than that only make every image wait; the size that needs most decides."""
    small = [cell(2, 10), cell(4, 6), cell(8, 5), cell(16, 4.95)]
    large = [cell(2, 40, 256), cell(4, 39.5, 256), cell(8, 39, 256)]
    found = report.advice(small + large, DOODLE)
    assert found is not None
    assert found.options() == ["--max-rows", "8"]
    assert not found.still_faster
    alone = report.advice(large, DOODLE)
    assert alone is not None
    assert alone.options() == ["--max-rows", "2"]
    for measured in (small[:3], small[:1]):
        rising = report.advice(measured, DOODLE)
        assert rising is not None
        assert rising.still_faster


def test_what_does_not_fit_changes_the_advice():
    """Pixels of the images that a worker takes ahead, and a size for which there is no memory at all."""
    huge = [
        cell(16, 1, 2048),
        cell(2, 9, 4096, step_ms=None, problem="this does not fit into memory"),
    ]
    found = report.advice(huge, DOODLE)
    assert found is not None
    assert found.options() == ["--max-rows", "16", "--picture-memory", "768", "--offload"]
    assert report.advice(huge[1:], DOODLE) is None
    assert "does not fit" in report.line(huge[1], DOODLE)


def test_images_a_second_are_those_of_the_models_own_steps():
    """20 steps of two rows of 5 ms, and 20 ms beside them: 220 ms."""
    assert report.rate_of(cell(8, 5), DOODLE) == pytest.approx(1 / 0.22)
    assert report.rate_of(cell(8, 5), replace(DOODLE, cfg_scale=0, steps=4)) == pytest.approx(1 / 0.04)


def test_the_plot_has_a_line_for_each_size():
    """It is well-formed, its points lie within it, and a strange name cannot break it."""
    cells = [cell(2, 10), cell(16, 5), cell(2, 40, 256), cell(16, 39, 256), cell(4, 1, 64, step_ms=None)]
    root = ET.fromstring(report.plot(cells, DOODLE, "<model> & co"))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "<model> & co" in texts
    assert {"128 x 128", "256 x 256"} <= set(texts)
    points = [(float(c.get("cx", -1)), float(c.get("cy", -1))) for c in root.iter(f"{space}circle")]
    assert len(points) == 4
    assert all(0 < x < 720 and 0 < y < 420 for x, y in points)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sizes", "100"], "multiples of 8"),
        (["--sizes", "128,axb"], "'axb' is not a size"),
        (["--sizes", "512x0"], "'512x0' is not a size"),
        (["--rows", "0"], "1 to 256"),
        (["--rows", "2,many"], "'many' is not a number"),
        (["--model", "nosuch"], "no model named 'nosuch'"),
        (["--steps", "1"], "--steps"),
    ],
)
def test_wrong_options_are_named_before_anything_is_loaded(
    options: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Each with what is right."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, options)
    assert done.exit_code == 2
    assert words in " ".join(done.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []
