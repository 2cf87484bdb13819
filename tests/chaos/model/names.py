"""Where the model's steps stand in the code: function by function, the store calls in their order.

Whoever reorders one of these functions changes the protocol: change the model with it, let it search,
then change this table.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]

#: What touches the bucket, or is a step that does.
CALLS = frozenset(
    (
        *("create", "delete", "head", "list", "put"),
        *(
            "result_fingerprint",
            "claim",
            "summary",
            "groups",
            "result_body",
            "tidy",
            "drop_claim",
            "drop_request",
        ),
        *("_claim_first", "_candidates", "_settle_one", "_claim_next", "_give_up", "_move"),
    )
)


@dataclass(frozen=True, slots=True)
class Named:
    """A function of the code, the steps that it says it is, and its calls in the order of the text."""

    file: str
    function: str
    steps: str
    calls: str


#: The first delete of `tidy` and of `drop_claim` is of the status object: it is for people, and no step.
NAMED = [
    Named("infra/claims/claims.py", "Claims.take", "B6", "_claim_first drop_request drop_claim"),
    Named(
        "infra/claims/claims.py", "Claims._claim_first", "B4 B5", "create claim result_fingerprint drop_claim"
    ),
    Named("infra/claims/claims.py", "Claims.stored_image", "B7", "head"),
    Named("infra/claims/claims.py", "Claims.store_image", "B7", "create head"),
    Named("infra/claims/claims.py", "Claims.commit", "B8 B9", "create result_body drop_claim tidy"),
    Named("infra/claims/claims.py", "Claims.is_over", "", "head result_fingerprint tidy"),
    Named("infra/claims/claims.py", "Claims.release", "", "create"),
    Named("infra/claims/ledger.py", "Ledger.tidy", "B9", "groups delete summary delete delete"),
    Named("infra/claims/ledger.py", "Ledger.drop_request", "", "delete"),
    Named("infra/claims/ledger.py", "Ledger.drop_claim", "", "delete delete"),
    Named("infra/claims/sweep.py", "Sweep.__call__", "S1 S2", "list groups _candidates"),
    Named(
        "infra/claims/sweep.py",
        "Sweep._settle_one",
        "S3",
        "result_fingerprint tidy summary tidy claim _move _claim_next",
    ),
    Named("infra/claims/sweep.py", "Sweep._claim_next", "S4 B5", "_give_up create result_fingerprint tidy"),
    Named("infra/claims/sweep.py", "Sweep._give_up", "", "create result_fingerprint tidy"),
]


def calls_of(named: Named, root: Path = ROOT) -> str:
    """The function's calls that matter, as its text has them."""
    found = [
        (call.func.end_lineno or 0, call.func.end_col_offset or 0, call.func.attr)
        for call in ast.walk(_function(named, root))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in CALLS
    ]
    return " ".join(name for _, _, name in sorted(found))


def text_of(named: Named) -> str:
    """The function as it is written, comments too."""
    function = _function(named, ROOT)
    lines = (ROOT / named.file).read_text().splitlines()
    return "\n".join(lines[function.lineno - 1 : function.end_lineno])


def _function(named: Named, root: Path) -> ast.AsyncFunctionDef:
    owner, name = named.function.split(".")
    for node in ast.parse((root / named.file).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == owner:
            for item in node.body:
                if isinstance(item, ast.AsyncFunctionDef) and item.name == name:
                    return item
    raise LookupError(f"{named.file} has no coroutine {named.function}; name the one that has its place")
