"""`make gpu`: its script runs here on a CPU with tiny models, and says what to do where there is no GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from tests.benchmarks import gpu
from tests.benchmarks.gpu_models import made

if TYPE_CHECKING:
    from pathlib import Path

TINY = ["--device", "cpu", "--size", "tiny", "--models", "sd21", "--rows", "4", "--rounds", "1"]

# Of torch's own code, while it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_the_whole_script_runs_and_writes_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is there, eager and compiled; what stands around the table stays."""
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{gpu.BEGIN}\nold\n{gpu.END}\nafter\n")
    options = [*TINY, "--backend", "aot_eager", "--write", str(page)]
    monkeypatch.setattr(sys, "argv", ["gpu", *options])
    gpu.main()
    before, _, rest = page.read_text().partition(gpu.BEGIN)
    table, _, after = rest.partition(gpu.END)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in table.splitlines() if line[:1] == "|"
    }

    assert (before, after) == ("before\n", "\nafter\n")
    assert "old" not in table
    assert [("eager" in cell, "compiled" in cell) for cell in rows[""]] == [(True, False), (False, True)]
    figures = [cells for name, cells in rows.items() if name not in ("", "---")]
    assert len(figures) == 10
    assert all(cells[0].strip() for name, cells in rows.items() if name != "calls of compiled code")
    assert int(rows["calls of compiled code"][1]) > 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU answers")
def test_without_a_gpu_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And ends with an exit status, so that `make gpu` fails."""
    monkeypatch.setattr(sys, "argv", ["gpu", "--check"])
    with pytest.raises(SystemExit) as ended:
        gpu.main()

    assert ended.value.code == 3
    assert "Run it on a machine with a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "billions"), [("sd21", 0.866), ("sdxl", 2.567), ("z_image", 6.155)])
def test_the_measured_models_have_their_real_sizes(name: str, billions: float) -> None:
    """By the number of weights of the published denoisers; made without memory here."""
    pipe = made(name, "meta", torch.bfloat16)
    denoiser = pipe.components.get("unet") or pipe.transformer
    assert sum(weight.numel() for weight in denoiser.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert {weight.dtype for weight in denoiser.parameters()} == {torch.bfloat16}
