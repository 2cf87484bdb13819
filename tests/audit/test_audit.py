"""The audit tells "nothing was found" from "nothing was looked up", and every new secret from a known one."""

from __future__ import annotations

import json

from tests.audit.audit import KNOWN, ROOT, secrets, unknown, vulnerabilities


def test_what_was_not_looked_up_is_not_called_safe():
    """Reports as pip-audit 2.10 writes them."""
    bad = {"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
    report = {
        "dependencies": [
            {"name": "torch", "version": "2.0", "vulns": [bad]},
            {"name": "typer", "version": "0.29", "vulns": []},
            {"name": "yarl", "skip_reason": "Dependency not found on PyPI"},
        ],
        "fixes": [],
    }
    assert vulnerabilities(report) == (["torch 2.0: PYSEC-2026-1, fixed in 2.1"], ["yarl"])


def test_a_new_secret_is_told_and_a_moved_one_is_not():
    """Reports as detect-secrets 1.5 writes them."""
    known = {"type": "Secret Keyword", "hashed_secret": "aa", "line_number": 3}
    new = {"type": "AWS Access Key", "hashed_secret": "bb", "line_number": 9}
    before = secrets({"results": {"a.py": [known]}})
    after = secrets({"results": {"a.py": [known | {"line_number": 30}, new], "b.py": [known]}})
    assert unknown(before, before) == []
    assert unknown(after, before) == ["a.py: AWS Access Key", "b.py: Secret Keyword"]


def test_what_is_known_is_in_files_that_there_are():
    files = json.loads(KNOWN.read_text())
    assert files
    assert [name for name in files if not (ROOT / name).is_file()] == []
