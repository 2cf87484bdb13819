"""The operator's page names tests, parameters and roles that exist."""

from __future__ import annotations

import re
from pathlib import Path

from infra.queues.setup_documents import RETENTION
from tests.deploy.template import Template

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_each_mitigation_names_a_test_that_exists():
    """A threat whose test was renamed or removed is found here."""
    table = PAGE[PAGE.index("| threat |") :]
    rows = [line for line in table.splitlines()[2:] if line.startswith("|")]
    assert len(rows) >= 15
    for row in rows:
        [(path, name)] = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), row


def test_the_parameters_and_roles_on_the_page_are_the_stacks():
    """What the page tells an operator to set, the stack has."""
    template = Template()
    given = {
        name for name in re.findall(r"\b([A-Z]\w+)=", PAGE) if not name.startswith(("DREAMDROP_", "AUDIT_"))
    }
    assert given <= template.parameters.keys()
    named = {"MaxWorkers", "BacklogPerWorker", "ResultDays", "UploadDays", "OnDemandPercentage", "Versioning"}
    assert named <= template.parameters.keys()
    for role in ("WorkerRole", "TrainerRole", "FacadeRole", "ProducerRole"):
        assert f"| {role} |" in PAGE
        assert role in template.resources
    assert RETENTION == 7 * 86_400  # "messages for seven days"
