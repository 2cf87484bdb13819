"""The pages that follow from the code are fresh, and say something about every field and every option."""

from __future__ import annotations

import re

import pytest

from tests.deploy.dockerfile import ROOT
from tests.deploy.env_example import variables
from tests.docs.pages import PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_the_code_makes(name: str):
    """A field or an option that was added, renamed or bounded otherwise is found here."""
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == PAGES[name](), (
        "run: python -m tests.docs.pages"
    )


@pytest.mark.parametrize("name", PAGES)
def test_every_row_says_what_it_is_about(name: str):
    """A table that is not torn, and a sentence in its last cell."""
    for line in PAGES[name]().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if cells and cells[0].startswith("`") and len(cells) > 3:
            assert len(cells) == (5 if name == "contract.md" else 4), line
            assert cells[-1], line


def test_every_variable_of_an_option_is_on_the_page():
    page = PAGES["settings.md"]()
    assert [name for name in variables() if f"| `{name}` |" not in page] == []
