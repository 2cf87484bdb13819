"""The documentation names files, modules and functions that exist, and its diagrams are there."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "tests/README.md",
    *sorted(ROOT.glob("docs/*.md")),
]
FOLDERS = "consumer|docs|examples|infra|producer|schemas|tests|training"

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def exists(path: str) -> bool:
    """Whether a path or a pattern names something in the repository."""
    return any(ROOT.glob(path.rstrip("/")))


def module(name: str) -> bool:
    """Whether `python -m name` would find something to run."""
    path = name.replace(".", "/")
    return exists(f"{path}.py") or exists(f"{path}/__main__.py")


@pages
def test_every_path_in_the_documentation_exists(page: Path):
    """A path from the top of the repository, unless it is marked "(planned)"; then it must not exist yet."""
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./*-]*)(`? \(planned\))?", text)
    assert [path for path, planned in named if exists(path.rstrip(".")) == bool(planned)] == []


@pages
def test_every_file_name_in_the_documentation_exists(page: Path):
    """A Python file that is named without its folder is somewhere in the repository."""
    names = re.findall(r"`([\w*]+\.py)`", page.read_text(encoding="utf-8"))
    files = {file.name for top in FOLDERS.split("|") for file in (ROOT / top).rglob("*.py")}
    assert [name for name in names if not fnmatch.filter(files, name)] == []


@pages
def test_every_module_in_the_documentation_exists(page: Path):
    """What follows `python -m` is a module of ours or pytest; a dotted name of ours is a module or in one."""
    text = page.read_text(encoding="utf-8")
    run = set(re.findall(r"python3? -m ([\w.]+)", text)) - {"pytest"}
    assert [name for name in run if not module(name)] == []
    for name in re.findall(rf"`((?:{FOLDERS})(?:\.\w+)+)[` ]", text):
        parent, _, last = name.replace(".", "/").rpartition("/")
        within = ROOT / f"{parent}.py"
        assert module(name) or (within.exists() and re.search(rf"\b{last}\b", within.read_text())), name


@pages
def test_every_link_in_the_documentation_leads_somewhere(page: Path):
    """A link to a file of the repository, and to a heading of it."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, heading = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in slugs, target


def test_the_nine_files_have_the_functions_to_read():
    """Each row of "One request in nine files" names a file and what to read in it."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+\.py)` \| `(\w+)(?:\.(\w+))?` \|(.*)$", text, re.MULTILINE)
    assert len(rows) == 9
    for path, name, method, rest in rows:
        code = (ROOT / path).read_text(encoding="utf-8")
        for kind, wanted in [("class", name), ("def", method), *(("def", also) for also in _methods(rest))]:
            assert not wanted or re.search(rf"^ *(?:async )?{kind} {wanted}\b", code, re.MULTILINE), (
                path,
                wanted,
            )


def _methods(text: str) -> list[str]:
    return re.findall(r"`[A-Z]\w+\.(\w+)`", text)


def test_the_architecture_page_has_its_diagrams():
    """Two mermaid blocks: the bucket with the two processes, and the life of a claim."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    blocks = [block.strip().splitlines() for block in re.findall(r"```mermaid\n(.*?)```", text, re.DOTALL)]
    assert [block[0].split()[0] for block in blocks] == ["flowchart", "stateDiagram-v2"]
    assert all(sum("-->" in line for line in block) >= 8 for block in blocks)
