"""README's commands work as they are printed, one after the other, in a folder like a fresh clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest

from producer.input_files import gather
from schemas.batch import split_rows
from schemas.limits import Limits
from schemas.manifest import parse_manifest
from tests.console import PATIENCE, Block, Terminals, blocks

ROOT = Path(__file__).parents[1]
NOT_CLONED = shutil.ignore_patterns(".*", "__pycache__", "dreamdrop-*", "my-bucket", "out", "*.egg-info")
README = blocks(ROOT / "README.md")
EXAMPLES = sorted(path for path in (ROOT / "examples").iterdir())


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder like a clone in which `make demo` has run: its `.venv` is the one that the tests run in."""
    if not (Path(sys.prefix) / "bin" / "activate").exists():
        pytest.skip("the tests do not run in a virtual environment")
    folder = tmp_path / "dreamdrop"
    shutil.copytree(ROOT, folder, ignore=NOT_CLONED)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    """As a user's, without settings of theirs. The code is the folder's, wherever the environment's is."""
    theirs = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "DREAMDROP_"))}
    return theirs | {"PYTHONPATH": str(folder), "COLUMNS": "100"} | more


@pytest.mark.slow
@pytest.mark.timeout(20 * PATIENCE)
def test_the_commands_of_the_readme_work_as_they_stand(clone: Path):
    """All but blocks that need more than a clone, or an account; the port is another one."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    port = str(free_port())
    terminals = Terminals(clone, environment(clone, DREAMDROP_PORT=port))
    try:
        for block in README:
            if not block.needs:
                run(terminals, block, port)
    finally:
        ends = terminals.close()
    assert set(ends.values()) <= {0, 130}, ends
    assert (clone / "circle.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in (clone / "my-bucket" / "requests").rglob("*") if path.is_file()]


def run(terminals: Terminals, block: Block, port: str) -> None:
    """A block's commands in terminals; Python as a script."""
    if block.kind == "python":
        (terminals.folder / "snippet.py").write_text(block.text)
        [command] = Block("console", "$ python snippet.py").commands
        terminals.run(command)
    for command in block.commands if block.kind == "console" else ():
        terminals.run(command, command.text.replace("localhost:8000", f"localhost:{port}"))


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_readme_has_commands_for_everybody():
    """What is run above is not empty: each way in has its block, and few need an account."""
    texts = [block.text for block in README if not block.needs]
    for word in ("dreamdrop worker", "dreamdrop imagine", "from producer", "dreamdrop up"):
        assert any(word in text for text in texts), word
    assert [block.needs for block in README if block.needs]
    assert re.search(r"git clone \S", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("page", ["README.md", "docs/queues.md", "docs/http.md", "docs/clients.md"])
def test_every_example_that_the_documentation_names_is_there(page: str):
    """A file of requests in a command is one of `examples/`, or a pattern."""
    for block in blocks(ROOT / page):
        for name in re.findall(r"(?<![\w*./-])([\w./-]+\.(?:json|jsonl|csv|txt))\b", block.text):
            if block.kind == "console" and not re.search(
                rf"(?:>|my-bucket\S*|results/\S*) ?{name}", block.text
            ):
                assert (ROOT / name).exists() or name == "result.json", f"{page}: {name}"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_something_that_the_bundled_model_can_draw(example: Path):
    """Each is valid, names no model, and uses only words that doodle knows."""
    [item] = gather([str(example)])
    bodies = [row.body for row in split_rows("x", item.body, Limits())] if item.batch else [item.body]
    tokens = json.loads((ROOT / "infra/models/doodle/tokenizer/tokenizer.json").read_bytes())
    known = {word.removesuffix("</w>") for word in tokens["model"]["vocab"] if word.endswith("</w>")}
    assert bodies
    for body in bodies:
        manifest = parse_manifest(body)
        words = f"{manifest.prompt} {manifest.negative_prompt or ''}".replace(",", " ").split()
        assert manifest.model is None
        assert set(words) <= known
