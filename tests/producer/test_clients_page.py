"""The page about other programs' clients shows code that runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.producer.facade import ROOT, facade, ready, worker

CODE = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A facade with a worker."""
    place = tmp_path_factory.mktemp("page") / "store"
    with worker(place), facade(place) as listening:
        ready(listening)
        yield listening


@pytest.mark.parametrize("code", CODE, ids=lambda code: re.findall(r"import (\w+)", code)[-1])
def test_every_snippet_runs_as_it_is_printed(
    address: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """But for the address, and in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    assert "http://localhost:8000" in code
    names: dict[str, object] = {}
    exec(code.replace("http://localhost:8000", address), names)
    api = names.get("api")
    if api is not None:
        api.session.close()  # type: ignore[attr-defined]
