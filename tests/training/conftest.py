"""Fixtures of the training tests: tiny models with random weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.trainings import specks
from training import defaults

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def pictures_of_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models draw noise with any number of steps; 5 show the same faults as 25."""
    for kind in ("sd1", "sd2", "sdxl"):
        monkeypatch.setitem(defaults.DRAWING, kind, (5, defaults.DRAWING[kind][1]))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder of the first family (epsilon), sizes in multiples of 16 pixels."""
    from tests.studio import save_tiny

    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def sdxl_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two text encoders and SDXL's size conditioning."""
    from tests.studio import save_tiny_sdxl

    return save_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny-xl", tiny_folder)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures: five rows an epoch, so steps of two or three rows end in the middle of one."""
    return specks(tmp_path_factory.mktemp("pictures") / "specks")
