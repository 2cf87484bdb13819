"""The pages as a site: what it is made from, and the commands of its first two pages."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from tests.console import PATIENCE, Block, Terminals, blocks
from tests.deploy.dockerfile import ROOT
from tests.docs.site import inside, make
from tests.test_readme import environment, free_port, run

RUN_HERE = ("index.md", "http.md", "cookbook.md", "operations.md")
# By tests/training/test_training_page.py, tests/producer/test_clients_page.py and tests/producer/planning/.
RUN_ELSEWHERE = {"training.md", "clients.md", "planning.md"}
PROGRAMS = r"dreamdrop|python3?|pip|make|docker|kubectl|aws|curl|accelerate|rclone|mc"
PAGES = {path.name for path in (ROOT / "docs").glob("*.md")}


def pages(nav: list[dict[str, object]]) -> list[str]:
    """The files of a navigation, in order."""
    found: list[str] = []
    for entry in nav:
        for value in entry.values():
            found += pages(value) if isinstance(value, list) else [str(value)]
    return found


def test_every_page_is_in_the_navigation_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert sorted(pages(config["nav"])) == sorted(PAGES)
    assert config["docs_dir"] == "build/docs"


def test_no_link_leaves_the_site(tmp_path: Path):
    """A file of the repository is named; with an address it is linked there."""
    make(tmp_path / "docs")
    assert {path.name for path in (tmp_path / "docs").glob("*.md")} == PAGES
    for page in (tmp_path / "docs").glob("*.md"):
        assert "](../" not in page.read_text(), page.name
    line = "see [compose.yaml](../compose.yaml) and [the file](../infra/a.yaml)"
    assert inside(line) == "see `compose.yaml` and the file (`infra/a.yaml`)"
    there = "https://example.com/main"
    assert (
        inside(line, f"{there}/")
        == f"see [compose.yaml]({there}/compose.yaml) and [the file]({there}/infra/a.yaml)"
    )


@pytest.mark.parametrize("name", sorted(PAGES))
def test_every_command_is_run_or_says_what_it_needs(name: str):
    """A block of commands is marked as one, and is run by a test unless it begins with what it needs."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S):
        if language == "":
            assert not re.search(rf"^(?:{PROGRAMS}) ", block, re.M), f"mark it as console:\n{block}"
    if name not in {*RUN_HERE, *RUN_ELSEWHERE}:
        not_run = [b.text for b in blocks(ROOT / "docs" / name) if b.kind == "console" and not b.needs]
        assert not_run == [], "begin the block with what it needs, or run the page"


@pytest.mark.slow
@pytest.mark.timeout(20 * PATIENCE)
def test_the_commands_of_the_pages_work_as_they_stand(tmp_path: Path):
    """One worker and one web server for all of them. Blocks that need more than a clone are left out."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    port = str(free_port())
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    theirs = environment(ROOT, DREAMDROP_PORT=port)
    theirs["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{theirs['PATH']}"
    terminals = Terminals(tmp_path, theirs)
    try:
        for page in RUN_HERE:
            for block in blocks(ROOT / "docs" / page):
                if not block.needs:
                    text = re.sub(r"^\$ dreamdrop up.*\n", "", block.text, flags=re.M)  # both run already
                    run(
                        terminals,
                        Block(block.kind, text.replace("localhost:8000", f"localhost:{port}")),
                        port,
                    )
            (tmp_path / "photos").mkdir(exist_ok=True)
            shutil.copy(tmp_path / "circle.png", tmp_path / "photos")
    finally:
        ends = terminals.close()
    assert set(ends.values()) <= {0, 130}, ends
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "pictures").rglob("*.png"))) >= 2
    assert list((tmp_path / "redrawn").rglob("0.png"))
    assert "images" in (tmp_path / "answer.json").read_text()
