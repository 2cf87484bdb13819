"""The engine's policy, without torch: who begins next, and whose calls run together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from typing import Any

import pytest

from consumer.engine import admission
from consumer.engine.admission import AdmissionQueue, Turns, batch_key
from consumer.engine.call import Call
from consumer.engine.in_flight import InFlight
from consumer.renderer.protocol import ImageTask, RawPicture
from schemas.errors import Rejected


def a_task(request: str, **fields: Any) -> ImageTask:
    defaults = {"index": 0, "task": "text2img", "model": "m", "prompt": "a dot", "negative_prompt": None}
    numbers = {"width": 64, "height": 64, "steps": 4, "cfg_scale": 7.0, "seed": 1, "scheduler": "Euler"}
    return ImageTask(request=request, **{**defaults, **numbers, **fields})


def begun(task: ImageTask, kind: str = "", ticket: int = 0, key: str = "k") -> InFlight:
    """An image in flight; paused in a call of this kind, if one is named."""
    image = InFlight(task, batch_key(task), task.loras, model=None, greenlet=None)  # type: ignore[arg-type]
    if kind:
        rows = 2 if kind == "unet" and task.cfg_scale > 1 else 1
        image.paused_in = Call(kind, None, "__call__", {}, rows, key, ticket=ticket)  # type: ignore[arg-type]
    return image


class Registry:
    """Models of one size, and room for so many of them."""

    def __init__(self, *loaded: str, room: int = 100) -> None:
        self._loaded = list(loaded)
        self.room = room

    def loaded(self) -> list[str]:
        return self._loaded

    def joins(self, name: str) -> bool:
        return True

    def guides_fit(self, task: ImageTask, in_use: Collection[str]) -> bool:
        return True

    def fits(self, name: str, in_use: Collection[str]) -> bool:
        if name == "unknown":
            raise Rejected("unknown_model", "no model named 'unknown'")
        return name in self._loaded or len(in_use) < self.room


def admitted(queue: AdmissionQueue, in_flight: list[InFlight]) -> list[str]:
    """Let tasks begin until none can; their requests in order."""
    order = []
    while (task := queue.next(in_flight)) is not None:
        in_flight.append(begun(task))
        order.append(task.request)
    return order


def test_the_policy_needs_no_torch():
    """It is tested, and can be read, without a device."""
    modules = ("admission", "batch_size", "call", "in_flight")
    code = "import sys" + "".join(f", consumer.engine.{module}" for module in modules)
    code += "; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_tasks_begin_oldest_first_while_a_row_is_free():
    """With eight rows, four guided images begin; a fifth waits until one has ended."""
    queue, in_flight = AdmissionQueue(Registry(), max_rows=8, patience=1), []
    for i in range(6):
        queue.add(a_task(f"r{i}"))
    assert admitted(queue, in_flight) == ["r0", "r1", "r2", "r3"]
    in_flight.pop(0)
    assert admitted(queue, in_flight) == ["r4"]
    assert len(queue) == 1


def test_each_size_has_its_own_rows_up_to_four_of_them():
    """Sizes are drawn side by side; a fifth waits, because every image in flight holds memory."""
    queue, in_flight = AdmissionQueue(Registry(), max_rows=2, patience=1), []
    for i in range(5):
        queue.add(a_task(f"r{i}", width=64 + 8 * i))
        queue.add(a_task(f"s{i}", width=64 + 8 * i))
    assert admitted(queue, in_flight) == ["r0", "r1", "r2", "r3"]


def test_a_measured_limit_holds_for_its_size_only():
    """Where four rows pay, two guided images begin; another size still gets all rows."""
    queue, in_flight = AdmissionQueue(Registry(), max_rows=8, patience=1), []
    for i in range(3):
        queue.add(a_task(f"r{i}"))
    queue.set_limit(batch_key(a_task("any")), 4)
    assert admitted(queue, in_flight) == ["r0", "r1"]
    for i in range(3):
        queue.add(a_task(f"wide{i}", width=128))
    assert admitted(queue, in_flight) == ["wide0", "wide1", "wide2"]


def test_a_dropped_request_does_not_begin():
    """Of a cancelled request nothing is left in the queue."""
    queue = AdmissionQueue(Registry(), max_rows=8, patience=1)
    for request in ("a", "b", "a"):
        queue.add(a_task(request))
    queue.drop("a")
    assert (len(queue), admitted(queue, [])) == (1, ["b"])


def test_a_loaded_model_goes_before_one_that_would_evict_it():
    """As often as patience allows; then everybody waits until the older task's model fits."""
    queue, in_flight = AdmissionQueue(Registry("m", room=1), max_rows=2, patience=2), []
    queue.add(a_task("other", model="n"))
    for i in range(4):
        queue.add(a_task(f"r{i}"))
    for expected in ("r0", "r1"):
        assert admitted(queue, in_flight) == [expected]
        in_flight.clear()
    in_flight.append(begun(a_task("still drawn")))
    assert admitted(queue, in_flight) == []
    in_flight.clear()
    assert admitted(queue, in_flight)[0] == "other"


def test_a_model_that_nobody_knows_begins_so_that_somebody_says_so():
    """The policy refuses nothing: beginning the task reports what is wrong with it."""
    queue = AdmissionQueue(Registry(), max_rows=8, patience=1)
    queue.add(a_task("a", model="unknown"))
    assert admitted(queue, []) == ["a"]


def unlimited(_kind: str, _key: object) -> int:
    return 100


def next_group(images: list[InFlight], limit: Callable[[str, object], int]) -> list[InFlight]:
    """The next group where nobody has had the device yet."""
    return admission.next_group(images, limit, Turns())


def names(group: list[InFlight]) -> list[str]:
    return [image.task.request for image in group]


def test_short_calls_run_first():
    """Text, then encode, then decode, then the UNet: they let images begin and end."""
    images = [
        begun(a_task(kind), kind, ticket) for ticket, kind in enumerate(("unet", "decode", "encode", "text"))
    ]
    order = []
    while group := next_group(images, unlimited):
        order += names(group)
        group[0].paused_in = None
    assert order == ["text", "encode", "decode", "unet"]


def test_a_group_is_the_oldest_call_and_what_fits_to_it():
    """Oldest first, up to the limit of rows; a smaller call may fill the last row."""
    images = [begun(a_task(f"r{ticket}"), "unet", ticket) for ticket in (2, 1, 3)]
    images.append(begun(a_task("free", cfg_scale=1.0), "unet", 4))
    assert names(next_group(images, lambda _kind, _key: 5)) == ["r1", "r2", "free"]
    assert names(next_group(images, lambda _kind, _key: 1)) == [
        "r1"
    ]  # never none: a call can be run in pieces


@pytest.mark.parametrize(
    "other",
    [
        begun(a_task("other"), "unet", 2, key="another size"),
        begun(a_task("other", solo=True), "unet", 2),
        begun(a_task("other"), ticket=2),
    ],
    ids=["another key", "solo", "not paused"],
)
def test_what_differs_does_not_share_a_call(other: InFlight):
    """Another shape or other LoRAs (both are in the key), or a request that is suspected of crashing its renderer."""
    assert names(next_group([begun(a_task("first"), "unet", 1), other], unlimited)) == ["first"]


def test_images_of_one_solo_request_share_their_calls():
    """A suspect is kept away from others, not from itself."""
    images = [begun(a_task("suspect", index=i, solo=True), "unet", i) for i in range(3)]
    assert next_group(images, unlimited) == images


def test_prompts_are_encoded_together_whatever_their_number():
    """Equal prompts are encoded once, so the number of calls says little about the rows."""
    images = [begun(a_task(f"r{i}"), "text", i) for i in range(5)]
    assert next_group(images, lambda _kind, _key: 1) == images


def test_the_images_of_a_request_share_its_pictures():
    """Each task comes with a copy of its own; sixty-four of them would hold as many pictures."""

    def drawn_from(request: str, shade: int) -> ImageTask:
        picture = RawPicture(2, 1, 3, bytes([shade] * 6))
        return a_task(request, task="img2img", image=picture, pictures={"controlnet.0.image": picture})

    queue = AdmissionQueue(Registry("m"), 64, 8)
    for request, shade in (("a", 1), ("a", 1), ("b", 1), ("b", 2)):
        queue.add(drawn_from(request, shade))
    in_flight: list[InFlight] = []
    assert admitted(queue, in_flight) == ["a", "a", "b", "b"]
    first, second, third, fourth = (image.task for image in in_flight)
    assert first.image is second.image
    assert first.pictures is second.pictures
    assert third.image is not second.image  # of another request
    assert fourth.image != third.image
