"""Pictures of several sizes share calls where a model takes them, and are drawn as alone.

Z-Image does: its transformer is given a list of latents. The model is a genuine pipeline with random weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from consumer.engine.admission import Turns, next_group
from consumer.engine.compiling import Compiler
from consumer.engine.in_flight import InFlight, shares
from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, ImageTask, Stepped
from infra.models.cards import Cards
from tests.consumer.test_admission import a_task, begun, names, unlimited
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.families import FAMILIES
from tests.tiny.parts import vae

if TYPE_CHECKING:
    from collections.abc import Iterator

    from consumer.renderer.protocol import RawPicture

TOLERANCE = 1  # grey level, between an image drawn in company and alone
SIZES = {
    "square": (64, 64),
    "wide": (128, 64),
    "tall": (64, 96),
}  # at most 32 tokens, to which all are padded
LONG = {"smaller": (192, 192), "larger": (224, 192)}  # 144 and 168 tokens, padded to 160 and 192
PROMPTS = ("a red fox", "a long and winding road to a small green house", "cat")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """Latents have an eighth of a picture's sides, as Z-Image's have."""
    folder = tmp_path_factory.mktemp("z_image") / "model"
    torch.manual_seed(0)
    pipe = FAMILIES["z_image"]()
    pipe.register_modules(vae=vae(16, widths=(8, 8, 8, 16), shift_factor=0.11, scaling_factor=0.36))
    pipe.save_pretrained(folder)
    return ModelRegistry(Cards.of([f"tiny={folder}"]))


def a_picture(name: str, number: int, **fields: Any) -> ImageTask:
    width, height = fields.pop("size", None) or (SIZES | LONG)[name]
    fields = {"prompt": PROMPTS[number % 3], "seed": number, "steps": 2 + number, **fields}
    return make_task(name, width=width, height=height, scheduler="Flow Euler", **fields)


@pytest.fixture(scope="module")
def tasks() -> list[ImageTask]:
    """Three sizes, other steps, guidance and prompts."""
    return [a_picture(name, i, cfg_scale=(1, 4, 2.5)[i]) for i, name in enumerate(SIZES)]


@pytest.fixture(scope="module")
def pair() -> list[ImageTask]:
    """Two sizes of which one is padded to the other's tokens; one row each."""
    return [a_picture(name, i, cfg_scale=1) for i, name in enumerate(LONG)]


@pytest.fixture(scope="module")
def alone(registry: ModelRegistry, tasks: list[ImageTask], pair: list[ImageTask]) -> dict[str, RawPicture]:
    return {task.request: draw_alone(registry, task) for task in (*tasks, *pair)}


@pytest.fixture
def transformer(registry: ModelRegistry) -> Iterator[Any]:
    """The real module; what a test puts in the place of its `forward` is taken away afterwards."""
    module: Any = registry.get("tiny").plain["text2img"].transformer
    yield module
    module.__dict__.pop("forward", None)


def together(
    registry: ModelRegistry, tasks: list[ImageTask], **settings: Any
) -> tuple[Studio, dict[str, RawPicture]]:
    room = Studio(registry, **{"max_rows": 32, **settings})
    ended = {request: event for (request, _), event in room.draw(*tasks).items()}
    assert all(isinstance(event, Drawn) for event in ended.values()), ended
    return room, {request: event.picture for request, event in ended.items()}


def apart(pictures: dict[str, RawPicture], others: dict[str, RawPicture]) -> int:
    return max(grey_levels_apart(picture, others[name]) for name, picture in pictures.items())


def test_three_sizes_share_calls_and_are_drawn_as_alone(registry, tasks, alone):
    room, pictures = together(registry, tasks)

    assert {name: (picture.width, picture.height) for name, picture in pictures.items()} == SIZES
    assert apart(pictures, alone) <= TOLERANCE
    assert room.engine.counters.unet_calls == 4  # as many as the longest has steps; apart they take 9
    assert room.engine.counters.splits == 0


def test_a_row_that_is_padded_to_a_larger_one_is_drawn_as_alone(registry, pair, alone):
    room, pictures = together(registry, pair)

    assert apart(pictures, alone) <= TOLERANCE
    assert room.engine.counters.unet_calls == 3


def test_padding_that_is_read_is_seen(registry, pair, alone, transformer, monkeypatch):
    """The proof above is worth something: a row's attention must leave out what was added to it."""
    for block in (*transformer.noise_refiner, *transformer.layers):
        real = block.forward
        monkeypatch.setattr(block, "forward", lambda x, mask, *rest, _real=real: _real(x, None, *rest))

    assert apart(together(registry, pair)[1], alone) > TOLERANCE


def test_swapped_rows_of_two_sizes_are_seen(registry, transformer):
    """Each row gets its own answer back: two sizes of as many places, with the answers of the other."""
    pair = [
        a_picture("wide", 1, steps=2, cfg_scale=1),
        a_picture("tall", 2, size=(64, 128), steps=2, cfg_scale=1),
    ]
    alone = {task.request: draw_alone(registry, task) for task in pair}
    real, seen = transformer.forward, []

    def swapped(**given: Any) -> Any:
        one, two = real(**given)[0]
        seen.append((one.shape, two.shape))
        return ([two.reshape(one.shape), one.reshape(two.shape)],)

    assert apart(together(registry, pair)[1], alone) <= TOLERANCE
    transformer.forward = swapped
    assert apart(together(registry, pair)[1], alone) > TOLERANCE
    assert seen == [((16, 1, 8, 16), (16, 1, 16, 8))] * 2


def test_starting_pictures_and_masks_of_other_sizes_join_them(registry, tasks):
    """A picture of one size, an inpainting of another, and text alone."""
    kinds = ("text2img", "img2img", "inpainting")
    tasks = [
        a_picture(name, i, task=kind, steps=4 if i else 2, strength=0.5, cfg_scale=2.5)
        for i, (name, kind) in enumerate(zip(SIZES, kinds, strict=True))
    ]
    room, pictures = together(registry, tasks)

    assert apart(pictures, {task.request: draw_alone(registry, task) for task in tasks}) <= TOLERANCE
    assert room.engine.counters.unet_calls == 2


def test_in_exact_mode_sizes_stay_apart_and_change_no_byte(registry, tasks):
    _, alone = together(registry, tasks[:1], exact=True, max_rows=4)
    room, pictures = together(registry, tasks, exact=True, max_rows=4)

    assert pictures["square"] == alone["square"]
    assert room.engine.counters.unet_calls == 2 + 3 + 4


def test_a_much_larger_picture_is_not_joined(registry, tasks, alone):
    """A small one would be padded to it, and cost twice as much."""
    large = a_picture("large", 1, size=(128, 128), cfg_scale=1)
    room, pictures = together(registry, [tasks[0], large])

    assert apart({"square": pictures["square"]}, alone) <= TOLERANCE
    assert room.engine.counters.unet_calls == 2 + 3


def test_compiled_code_is_made_for_one_size(registry, tasks):
    """A shape for each company would never be called often enough to be compiled."""
    room = Studio(registry, max_rows=32)
    room.engine.caller.compiler = Compiler("regional", complain=lambda _: None, after=10**6)
    room.draw(*tasks)

    assert room.engine.counters.unet_calls == 2 + 3 + 4


def test_when_memory_runs_out_the_larger_size_gets_fewer_rows(registry, pair, alone, transformer):
    """No picture is lost, and the smaller one's rows are as many as before."""
    real, given_rows = transformer.forward, []

    def short(**given: Any) -> Any:
        given_rows.append(len(given["x"]))
        if len(given["x"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(**given)

    transformer.forward = short
    room, pictures = together(registry, pair)
    limits = {key[1]: rows for key, rows in room.engine._queue._limits.items()}

    assert apart(pictures, alone) <= TOLERANCE
    assert given_rows == [2, 1, 1, 1, 1, 1]
    assert limits == {192: 32, 224: 1}


def test_calls_of_several_sizes_are_told_by_the_largest(registry, pair):
    """Its pixels say what a row costs."""
    room, _ = together(registry, pair)
    calls = [call for event in room.events if isinstance(event, Stepped) for call in event.calls]

    assert [(call.pixels, call.rows) for call in calls if call.kind == "unet"] == [
        (224 * 192, 2),
        (224 * 192, 2),
        (224 * 192, 1),
    ]


# Whose calls run -------------------------------------------------------------------------------


def of_size(name: str, ticket: int, size: int, rows: int = 1) -> InFlight:
    image = begun(a_task(name, width=64 * size), "unet", ticket, key="any size")
    call = replace(image.call, size=size, own=f"size {size}", rows=rows)
    image.paused_in = call
    return image


def test_whose_turn_it_is_goes_first_and_others_fill_its_call():
    """However old the others' calls are."""
    turns = Turns()
    images = [of_size(f"wide{i}", i, 10) for i in range(4)] + [of_size("narrow", 9, 9)]
    turns.charge(False, images[0].batch_key, 1.0)

    assert names(next_group(images, lambda _kind, _key: 3, turns)) == ["narrow", "wide0", "wide1"]


def test_a_call_has_no_more_rows_than_each_of_its_sizes_may_have():
    limits = {"size 9": 8, "size 10": 2}
    images = [*(of_size(f"narrow{i}", i, 9) for i in range(3)), of_size("wide", 9, 10)]

    assert names(next_group(images, lambda _kind, key: limits[key], Turns())) == [
        "narrow0",
        "narrow1",
        "narrow2",
    ]
    limits["size 9"], limits["size 10"] = 2, 8
    assert names(next_group(images, lambda _kind, key: limits[key], Turns())) == ["narrow0", "narrow1"]


def test_a_call_is_padded_by_a_tenth_at_most():
    """Small ones ride in a large one's call while that is cheap; beside many small ones a large one is not."""
    narrow = [of_size(f"narrow{i}", i, 6) for i in range(1, 5)]
    images = [of_size("wide", 0, 10, rows=6), *narrow]
    assert names(next_group(images, unlimited, Turns())) == ["wide", "narrow1"]
    assert names(next_group([*narrow, of_size("wide", 9, 10)], unlimited, Turns())) == names(narrow)


def test_those_that_share_a_call_share_its_time():
    """By rows: whoever rides along has not had it for nothing."""
    narrow, *wide = [of_size("narrow", 9, 9), of_size("wide0", 1, 10), of_size("wide1", 2, 10)]

    assert shares([narrow, *wide]) == [(wide[0].batch_key, 2 / 3), (narrow.batch_key, 1 / 3)]
