"""Makes the folder that `make docs` builds a site from: the pages, with links that stay inside the site.

python -m tests.docs.site build/docs [ADDRESS]

A link to a file of the repository leads below ADDRESS, such as the repository's page of the main branch. Without an
address the file is named and not linked.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)\s]+)\)")


def inside(text: str, address: str = "") -> str:
    """A page's text, with what it links outside `docs/`."""

    def told(link: re.Match[str]) -> str:
        label, path = link.groups()
        if address:
            return f"[{label}]({address.rstrip('/')}/{path})"
        bare = label.strip("`")
        return f"`{path}`" if path.endswith(bare) or bare == path else f"{label} (`{path}`)"

    return _OUTSIDE.sub(told, text)


def make(target: Path, address: str = "") -> None:
    """Copy `docs/`, which holds pages and pictures."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    for page in target.glob("*.md"):
        page.write_text(inside(page.read_text(encoding="utf-8"), address), encoding="utf-8")


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:3])
