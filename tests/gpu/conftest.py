"""What needs CUDA: run where a GPU is at hand, skipped with the reason elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.studio import save_tiny

if TYPE_CHECKING:
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder, and skip it on a machine without a GPU."""
    import torch

    for item in items:
        if item.path.parent.name != "gpu":
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; this machine has none"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with safetensors and random weights."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")
