"""Sets of LoRAs share a model: how often it is switched, and who shares a call."""

from __future__ import annotations

import itertools

import pytest

from consumer.engine import admission
from consumer.engine.admission import FairShares, acting
from consumer.renderer.protocol import Lora
from tests.consumer.test_admission import a_task

A, C = Lora("a", 0.7), Lora("c", -1.0)
_SETS = ((), (A,), (A, C))


def _switches(room, tasks) -> int:
    """How often other LoRAs acted than before."""
    for one in tasks:
        room.engine.submit(one)
    sets = []
    while room.engine.step():
        sets.append(room.engine.registry.get("tiny").adapters._active)
    return sum(before != after for before, after in itertools.pairwise(sets))


@pytest.mark.parametrize(("stay", "least", "most"), [(0.0, 12, 99), (0.1, 2, 8)], ids=["by turns", "stays"])
def test_sets_do_not_alternate_at_every_step(
    stay, least, most, monkeypatch, make_registry, lora_file, studio, task, alone, apart
):
    """Nine requests of 8 steps with three sets, on a device where a call takes 10 ms."""
    monkeypatch.setattr(admission, "_STAY", stay)
    registry = make_registry(loras={"a": lora_file, "c": lora_file})
    ticks = itertools.count()
    room = studio(registry, max_rows=6, clock=lambda: 0.005 * next(ticks))
    tasks = [task(f"r{i}", steps=8, seed=i, loras=_SETS[i % 3]) for i in range(9)]

    assert least <= _switches(room, tasks) <= most
    ended = room.ended()
    for one in tasks[:3]:
        assert apart(ended[one.request, 0].picture, alone(registry, one)) <= 1


def test_who_names_the_same_loras_shares_calls(make_registry, lora_file, studio, task):
    """In another order, or with one more at weight 0."""
    room = studio(make_registry(loras={"a": lora_file, "c": lora_file}))
    sets = [(A, C), (C, A), (A, C, Lora("b", 0.0))]
    registry = room.engine.registry
    registry.loras["b"] = lora_file
    ended = room.draw(*(task(f"r{i}", steps=3, loras=loras) for i, loras in enumerate(sets)))

    assert room.engine.counters.unet_calls == 3
    assert len({ended[f"r{i}", 0].picture.data for i in range(3)}) == 1


def test_weight_0_is_the_set_without_it():
    """It changes nothing, so it keeps nobody apart; the plan still names it."""
    bare, nothing = a_task("bare"), a_task("nothing", loras=(Lora("a", 0.0),))
    assert acting(nothing) == acting(bare) == ()
    assert admission.batch_key(nothing) == admission.batch_key(bare)


def test_pictures_of_several_sets_are_encoded_together(monkeypatch, make_registry, lora_file, studio, task):
    """A VAE has no LoRAs, so these keep no calls of it apart."""
    monkeypatch.setattr(admission, "_STAY", 0.0)  # each set's turn comes before one of them has a second
    ticks = itertools.count()
    room = studio(make_registry(loras={"a": lora_file, "c": lora_file}), clock=lambda: 0.005 * next(ticks))
    room.draw(*(task(f"r{i}", task="img2img", steps=2, loras=loras) for i, loras in enumerate(_SETS)))

    counters = room.engine.counters
    assert (counters.encode_calls, counters.encode_rows) == (1, 3)


def test_the_one_that_was_served_last_goes_on_until_it_is_ahead_by_so_much():
    """And everybody has an equal share in the end."""
    shares, order = FairShares(stay=0.1), []
    for _ in range(40):
        name = shares.next(["a", "b"])
        shares.charge(name, 0.03)
        order.append(name)

    assert sum(before != after for before, after in itertools.pairwise(order)) <= 11
    assert abs(order.count("a") - order.count("b")) <= 8


def test_a_long_call_gives_way_after_one():
    """A small picture waits for the call in progress only."""
    shares = FairShares(stay=0.1)
    shares.charge("large", 2.0)
    assert shares.next(["large", "small"]) == "small"
