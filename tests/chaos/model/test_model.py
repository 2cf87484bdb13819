"""Every history of a small day is lived through; nine broken protocols are each found out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.chaos.model.check import explore
from tests.chaos.model.days import SHORT
from tests.chaos.model.model import steps
from tests.chaos.model.names import NAMED, ROOT, Named, calls_of, text_of
from tests.chaos.model.state import Day, State, pack
from tests.chaos.model.variants import VARIANTS, Variant


@pytest.mark.parametrize("day", SHORT, ids=str)
def test_no_history_of_a_small_day_breaks_an_invariant(day: Day) -> None:
    """Whatever happens, in whatever order: one result, whole, never forgotten, always within reach."""
    found = explore(day)

    assert not found.broken, str(found)
    assert found.states > 1000


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.what)
def test_a_broken_protocol_is_found_out(variant: Variant) -> None:
    """The search names the broken invariant and the shortest way there, step by step."""
    found = explore(variant.day)

    print(found)
    assert (found.broken, len(found.trace)) == (variant.breaks, variant.steps), str(found)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.what)
def test_the_same_day_unbroken_is_well(variant: Variant) -> None:
    """It is the broken rule that is found, not the day."""
    assert not explore(variant.unbroken).broken


@pytest.mark.parametrize("named", NAMED, ids=lambda named: named.function)
def test_the_code_calls_the_store_in_the_order_of_the_model(named: Named) -> None:
    """A step that moves in the code, or a call that is added, has to move in the model too."""
    assert calls_of(named) == named.calls
    assert all(step in text_of(named) for step in named.steps.split())


def test_a_reordering_in_the_code_would_be_noticed(tmp_path: Path) -> None:
    """A text in which the result is looked for before the claim is made has another order of calls."""
    first = next(named for named in NAMED if named.function == "Claims._claim_first")
    text = (ROOT / first.file).read_text()
    create, look = (
        re.search(rf"^ +{name} = await .*\n", text[text.index("_claim_first(self") :], re.MULTILINE)
        for name in ("created", "answered")
    )
    assert create is not None
    assert look is not None
    (tmp_path / "infra" / "claims").mkdir(parents=True)
    swapped = text.replace(look[0], "", 1)
    (tmp_path / first.file).write_text(swapped.replace(create[0], look[0] + create[0], 1))

    assert calls_of(first, tmp_path) == "result_fingerprint create claim drop_claim"


def test_the_model_has_the_steps_of_the_design_in_their_order() -> None:
    """One worker alone takes B4 to B9 as the protocol's docstring lists them."""
    text = ast.get_docstring(ast.parse((ROOT / "infra/claims/claims.py").read_text())) or ""
    listed = re.findall(r"^\s+(B\d)  ", text, re.MULTILINE)

    assert listed == ["B4", "B5", "B6", "B7", "B8", "B9"]
    assert list(dict.fromkeys(_alone())) == ["B3", *listed]


def test_every_named_step_is_taken_in_the_model() -> None:
    """No name is in the code only; S1, the heartbeats, is left out: in the model anybody may look dead."""
    names = {name for named in NAMED for name in named.steps.split()} - {"S1"}

    assert names <= _names(Day(crashes=1, drains=1))


def _alone() -> list[str]:
    """The names of the steps of a lucky worker: always the first that is not a look around."""
    day, s, names = Day(workers=1), Day(workers=1).start(), []
    while following := [step for step in steps(day, s) if "S2" not in step[0]]:
        names.append(following[0][0].split()[2])
        s = following[0][1]
    return names


def _names(day: Day) -> set[str]:
    """The first word of every label that is possible on a day."""
    seen, todo, names = set[bytes](), [day.start()], set[str]()
    while todo:
        s: State = todo.pop()
        for label, n, _ in steps(day, s):
            names.add(label.split(": ")[-1].split()[0])
            names.update(re.findall(r"\b[BSQ]\d\b", label))
            if pack(n) not in seen:
                seen.add(pack(n))
                todo.append(n)
    return names
