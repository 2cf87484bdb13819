"""Models that edit pictures as a prompt says: requests meet in shared calls, and each is drawn from its own pictures.

The models are genuine diffusers pipelines with random weights. Their own rules scale pictures to a megapixel; here
the rules are the same with smaller numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus

from consumer.engine.loading.registry import ModelRegistry
from consumer.renderer.protocol import Drawn, Enlarged, ImageTask, RawPicture, Undrawable
from infra.models.cards import Cards
from infra.models.families import FAMILIES
from tests.studio import Studio, draw_alone, grey_levels_apart, make_task
from tests.tiny.families import EDITORS, save

if TYPE_CHECKING:
    from collections.abc import Iterator

TOLERANCE = 1  # grey level, between an image drawn in company and alone
SIDE = 64  # pixels, the smallest that all of them take
#: Calls of the denoiser for two requests of 2 and 3 steps; with and without the prompt for the guided ones.
CALLS = {"kontext": 3, "qwen_edit": 6, "qwen_edit_plus": 6, "klein": 6}


@dataclass
class Scene:
    """An editor, requests for it, and how each is drawn alone."""

    name: str
    registry: ModelRegistry
    tasks: list[ImageTask]
    alone: list[RawPicture]

    def draw(self, *tasks: ImageTask, **settings: Any) -> tuple[Studio, list[Any]]:
        room = Studio(self.registry, **{"max_rows": 8, **settings})
        ended = room.draw(*tasks)
        return room, [ended[task.request, 0] for task in tasks]


@pytest.fixture(scope="module")
def small_rules() -> Iterator[None]:
    """The sizes that pipelines scale their pictures to, divided by 16 a side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", [(32, 64), (64, 64), (64, 32)])
        for module in (pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus):
            real = module.calculate_dimensions
            patch.setattr(
                module, "calculate_dimensions", lambda area, ratio, real=real: real(area / 256, ratio)
            )
        yield


@pytest.fixture(scope="module", params=EDITORS)
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_rules: None
) -> Scene:
    folder = save(request.param, tmp_path_factory.mktemp(request.param) / "model", loud=5.0)
    registry = ModelRegistry(Cards.of([f"tiny={folder}"]))
    tasks = [
        make_task(
            f"r{i}",
            task="img2img",
            prompt=("make it a fox", "a winter night")[i],
            width=SIDE,
            height=SIDE,
            image=picture(i),
            steps=2 + i,
            seed=i,
            cfg_scale=4,
            scheduler="Flow Euler",
            strength=None,
        )
        for i in range(2)
    ]
    return Scene(request.param, registry, tasks, [draw_alone(registry, task) for task in tasks])


def picture(seed: int, width: int = SIDE, height: int = SIDE) -> RawPicture:
    """Stripes, of another colour and direction for each seed."""
    data = bytes(
        value
        for y in range(height)
        for x in range(width)
        for value in ((x if seed % 2 else y) * 16 % 256, 60 * seed % 256, 255 - 90 * seed % 256)
    )
    return RawPicture(width, height, 3, data)


def replaced(of: ImageTask, **fields: Any) -> ImageTask:
    return msgspec.structs.replace(of, **fields)


def test_company_does_not_change_an_edit(scene: Scene) -> None:
    room, ended = scene.draw(*scene.tasks)

    apart = [grey_levels_apart(one.picture, alone) for one, alone in zip(ended, scene.alone, strict=True)]
    assert max(apart) <= TOLERANCE
    assert room.engine.counters.unet_calls == CALLS[scene.name]
    assert room.engine.counters.splits == 0


def test_in_exact_mode_company_changes_no_byte_of_an_edit(scene: Scene) -> None:
    one, other = scene.tasks
    _, (alone,) = scene.draw(one, exact=True, max_rows=2)
    _, (_, together) = scene.draw(other, one, exact=True, max_rows=2)

    assert alone.picture == together.picture


def test_requests_with_one_prompt_and_two_pictures_share_no_embedding(scene: Scene) -> None:
    """They are drawn one after the other, so that the second could find what the first has left."""
    one = scene.tasks[0]
    other = replaced(one, request="other", image=picture(2))
    scene.draw(one)
    _, (drawn,) = scene.draw(other)

    assert grey_levels_apart(drawn.picture, draw_alone(scene.registry, other)) <= TOLERANCE
    assert grey_levels_apart(drawn.picture, scene.alone[0]) > TOLERANCE


def test_a_prompt_with_a_picture_is_read_once(scene: Scene) -> None:
    """Four images of one request must not encode its picture four times, nor a repetition of it again."""
    scene.registry.embeddings.forget()
    copies = [replaced(scene.tasks[0], request=f"copy{i}", seed=i) for i in range(3)]
    texts = scene.draw(copies[0])[0].engine.counters.text_calls
    again = scene.draw(*copies[1:])[0].engine.counters.text_calls

    assert (texts > 0, again) == (True, 0)


def test_pictures_are_read_in_their_order(scene: Scene) -> None:
    """Where a model takes several; the others refuse them, and say how many they take."""
    one = replaced(scene.tasks[0], request="two", image=picture(1), pictures={"image.1": picture(2)})
    swapped = replaced(one, request="swapped", image=picture(2), pictures={"image.1": picture(1)})
    if (most := FAMILIES[scene.registry.get("tiny").card.family].pictures) == 1:
        (ended,) = scene.draw(one)[1]
        assert ended == Undrawable(
            "two", 0, "invalid_manifest", "image has 2 pictures; model 'tiny' takes one", False, "image"
        )
        return
    _, (straight, crossed) = scene.draw(one, swapped)

    assert grey_levels_apart(straight.picture, draw_alone(scene.registry, one)) <= TOLERANCE
    assert grey_levels_apart(crossed.picture, draw_alone(scene.registry, swapped)) <= TOLERANCE
    assert grey_levels_apart(straight.picture, crossed.picture) > TOLERANCE
    assert grey_levels_apart(straight.picture, scene.alone[0]) > TOLERANCE
    many = {f"image.{place}": picture(0) for place in range(1, most + 1)}
    (refused,) = scene.draw(replaced(one, request="many", pictures=many))[1]
    assert f"takes at most {most}" in refused.message


def test_an_edit_has_the_size_that_was_asked_for(scene: Scene) -> None:
    """Whatever the pipeline scales its pictures to, and whichever shape the second picture has."""
    several = FAMILIES[scene.registry.get("tiny").card.family].pictures > 1
    wide = replaced(
        scene.tasks[0],
        request="wide",
        width=96,
        image=picture(0, 96, 64),
        pictures={"image.1": picture(1, 64, 80)} if several else {},
    )
    (ended,) = scene.draw(wide)[1]

    assert isinstance(ended, Drawn)
    assert (ended.picture.width, ended.picture.height) == (96, 64)


def test_strength_has_no_effect_and_says_so(scene: Scene) -> None:
    (ended,) = scene.draw(replaced(scene.tasks[0], request="weak", strength=0.3))[1]

    assert grey_levels_apart(ended.picture, scene.alone[0]) <= TOLERANCE
    assert ended.warnings == (
        ("ignored", "strength has no effect with model 'tiny', which edits as the prompt says"),
    )


def test_an_editor_without_a_picture(scene: Scene) -> None:
    """One that can draws from the prompt alone; the others say what is missing."""
    bare = replaced(scene.tasks[0], request="bare", task="text2img", image=None)
    (ended,) = scene.draw(bare)[1]

    if "qwen" in scene.name:
        assert (ended.code, ended.field, ended.retry) == ("unsupported", "image", False)
        assert "give it a picture" in ended.message
    else:
        assert isinstance(ended, Drawn)
        assert grey_levels_apart(ended.picture, scene.alone[0]) > TOLERANCE


def test_a_picture_that_a_model_cannot_read_is_refused(scene: Scene) -> None:
    if scene.name != "klein":
        pytest.skip("the others scale every picture")
    small = replaced(scene.tasks[0], request="small", width=32, height=32, image=picture(0, 32, 32))
    long = replaced(scene.tasks[0], request="long", pictures={"image.1": picture(0, 64, 640)})
    tiny, narrow = scene.draw(small, long)[1]

    assert (tiny.code, tiny.field) == (narrow.code, narrow.field) == ("invalid_manifest", "image")
    assert "is 32 x 32; model 'tiny' reads pictures from 64 pixels a side" in tiny.message
    assert "at most 8 times the shorter one" in narrow.message


def test_a_schedule_that_needs_two_steps_refuses_one(scene: Scene) -> None:
    """Qwen's gave pictures of numbers that are not finite."""
    (ended,) = scene.draw(replaced(scene.tasks[0], request="one", steps=1))[1]

    if "qwen" in scene.name:
        assert (ended.code, ended.field) == ("invalid_manifest", "steps")
        assert "at least 2 are needed" in ended.message
    else:
        assert isinstance(ended, Drawn)


def test_an_edit_is_not_upscaled_by_an_editor(scene: Scene) -> None:
    """Redrawing the larger picture needs a strength; an editor would edit it a second time."""
    upscale = Enlarged(width=2 * SIDE, height=2 * SIDE, steps=2, strength=0.3)
    (ended,) = scene.draw(replaced(scene.tasks[0], request="large", upscale=upscale))[1]

    assert (ended.code, ended.field, ended.retry) == ("unsupported", "upscale", False)
    assert ended.message.endswith("it edits pictures")
