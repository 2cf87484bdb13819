"""Whose turn it is on the device: the express lane first, everybody by time, nobody starved."""

from __future__ import annotations

from collections import Counter

import pytest

from consumer.engine.admission import AdmissionQueue, Turns, next_group
from consumer.engine.in_flight import InFlight
from tests.consumer.test_admission import Registry, a_task, admitted, begun, names, unlimited


def waiting(request: str, ticket: int, **fields: object) -> InFlight:
    return begun(a_task(request, **fields), "unet", ticket, key=f"{fields.get('width', 64)}")


def drawn(images: list[InFlight], cost: dict[str, float], calls: int, turns: Turns) -> list[str]:
    """Run calls that cost so many seconds by request; each image pauses in its next call at once."""
    order, ticket = [], 1000
    for _ in range(calls):
        group = next_group(images, unlimited, turns)
        first = group[0]
        order.append(first.task.request)
        turns.charge(first.task.express, first.batch_key, cost[first.task.request])
        for image in group:
            ticket += 1
            image.call.ticket = ticket
    return order


# Who begins ------------------------------------------------------------------------------------


def test_express_begins_before_all_that_has_not_begun():
    """Whatever came earlier."""
    queue = AdmissionQueue(Registry(), max_rows=4, patience=1)
    for i in range(4):
        queue.add(a_task(f"slow{i}"))
    queue.add(a_task("fast", express=True))
    assert admitted(queue, []) == ["fast", "slow0", "slow1"]


def test_express_has_rows_of_its_own():
    """With every row of its size taken, and every row of the device, it begins all the same."""
    queue, in_flight = AdmissionQueue(Registry(), max_rows=4, patience=1), []
    for size in range(4):
        for i in range(3):
            queue.add(a_task(f"{size}-{i}", width=64 + 8 * size))
    assert len(admitted(queue, in_flight)) == 8
    for i in range(3):
        queue.add(a_task(f"fast{i}", express=True))
    assert admitted(queue, in_flight) == ["fast0", "fast1"]


def test_the_other_lane_has_rows_of_its_own_too():
    """A stream of express images of many sizes does not keep it from beginning."""
    queue, in_flight = AdmissionQueue(Registry(), max_rows=4, patience=1), []
    for size in range(6):
        for i in range(3):
            queue.add(a_task(f"fast{size}-{i}", width=64 + 8 * size, express=True))
    queue.add(a_task("slow"))
    assert admitted(queue, in_flight)[-1] == "slow"
    assert len(in_flight) == 9


def test_express_waits_for_no_model_but_its_own():
    """Its model does not fit beside the one in use: nothing else begins until it can be loaded."""
    queue, in_flight = AdmissionQueue(Registry("m", room=1), max_rows=8, patience=64), [begun(a_task("old"))]
    for i in range(3):
        queue.add(a_task(f"slow{i}"))
    queue.add(a_task("fast", model="n", express=True))
    assert admitted(queue, in_flight) == []
    in_flight.clear()
    assert admitted(queue, in_flight)[0] == "fast"


def test_a_stream_of_express_images_does_not_keep_a_model_out_for_ever():
    """After `patience` of them, the one whose model is not loaded has its turn."""
    queue, in_flight = AdmissionQueue(Registry("m", room=1), max_rows=2, patience=3), []
    queue.add(a_task("other", model="n"))
    order = []
    for i in range(6):
        queue.add(a_task(f"fast{i}", express=True))
        in_flight.clear()
        order += admitted(queue, in_flight)[:1]
    assert order[:4] == ["fast0", "fast1", "fast2", "other"]


# Whose calls run -------------------------------------------------------------------------------


def test_an_express_call_runs_next_and_alone():
    """Rows of others would make it wait, as a call of 16 rows takes longer than one of 2."""
    images = [waiting("slow0", 1), waiting("slow1", 2), waiting("fast", 3, express=True)]
    turns = Turns()
    assert names(next_group(images, unlimited, turns)) == ["fast"]
    turns.charge(False, images[0].batch_key, 1.0)
    assert names(next_group(images, unlimited, turns)) == ["fast"]


def test_where_calls_are_padded_the_rows_that_are_left_are_used():
    """Exact mode: a call costs the same with 2 rows and with 8."""
    images = [waiting(f"slow{i}", i) for i in range(4)] + [waiting("fast", 9, express=True)]
    turns = Turns()
    group = next_group(images, lambda _kind, _key: 8, turns, fill=True)
    assert names(group) == ["fast", "slow0", "slow1", "slow2"]


def test_the_lanes_share_the_devices_time_three_to_one():
    """Neither starves, whatever their calls cost."""
    images = [waiting("slow", 1), waiting("fast", 2, express=True)]
    cost = {"slow": 2.0, "fast": 0.5}
    counts = Counter(drawn(images, cost, 700, Turns()))
    seconds = {name: counts[name] * cost[name] for name in cost}
    assert seconds["fast"] / seconds["slow"] == pytest.approx(3, rel=0.02)


def test_sizes_share_the_time_and_not_the_calls():
    """A large picture whose steps take 40 times as long has one call in 41."""
    images = [waiting("large", 1, width=512), waiting("small", 2)]
    counts = Counter(drawn(images, {"large": 4.0, "small": 0.1}, 410, Turns()))
    assert counts["large"] in (10, 11)


def test_a_small_image_that_comes_to_a_large_one_waits_for_the_call_in_progress_only():
    """Then it is drawn to its end: twenty of its steps take less than one of the other."""
    turns, large = Turns(), waiting("large", 1, width=512)
    cost = {"large": 4.0, "small": 0.1}
    drawn([large], cost, 7, turns)
    assert drawn([large, waiting("small", 2)], cost, 20, turns) == ["small"] * 20


def test_small_images_that_come_one_after_the_other_do_not_starve_the_large_one():
    """Each of another size, so that none has had anything yet."""
    turns, large = Turns(), waiting("large", 1, width=512)
    cost = {"large": 4.0, "small": 0.5}
    drawn([large], cost, 1, turns)
    order = [
        name for n in range(40) for name in drawn([large, waiting("small", 2, width=8 * n)], cost, 4, turns)
    ]
    assert 160 / (order.count("large") or 1) < 20
