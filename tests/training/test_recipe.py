"""What cannot be trained is refused before the first step, by its field; what can be is printed as a plan."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import Rejected
from schemas.training import parse_training, validate_training
from tests.trainings import DOODLE, pluses
from training.bases import Base
from training.pictures import PictureSet, read_folder
from training.recipe import Recipe, resolve, shared

GIVEN = {"name": "my-plus", "base": "doodle", "instance_prompt": "a sks shape"}


@pytest.fixture(scope="module")
def base() -> Base:
    return Base.read(DOODLE, "doodle")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> PictureSet:
    return read_folder(pluses(tmp_path_factory.mktemp("pictures") / "pluses", 4), "a sks shape")


def planned(base: Base, found: PictureSet, cuda: bool = False, **options: Any) -> Recipe:
    return resolve(validate_training(GIVEN | options), base, found, device="cpu", cuda=cuda)


@pytest.mark.parametrize(
    ("options", "field", "words"),
    [
        ({"instance_prompt": "a photo of a"}, "instance_prompt", "no word of its own"),
        (
            {"instance_prompt": "red shape", "class_prompts": ["a red shape"]},
            "instance_prompt",
            "class_prompts have all",
        ),
        ({"instance_prompt": "sks " * 20}, "instance_prompt", "tokens"),
        ({"name": "doodle"}, "name", "a built-in model"),
        ({"resolution": 100}, "resolution", "96 or 128"),
        ({"resolution": 1024}, "pictures", "'0.png' of 128 x 128"),
        ({"method": "full", "rank": 4}, "rank", "lora only"),
        ({"method": "full", "dora": True}, "dora", "lora only"),
        ({"method": "full", "weight": 0.5}, "weight", "lora only"),
        ({"method": "full", "prior": "adapter_off", "class_prompts": ["a"]}, "prior", "needs method lora"),
        ({"prior": "pictures"}, "class_prompts", "is empty"),
        ({"class_prompts": ["a", "b"], "class_pictures": 1}, "class_pictures", "2 class prompts"),
        ({"optimizer": "adamw8bit"}, "optimizer", "CUDA"),
        ({"precision": "fp16"}, "precision", "CUDA"),
        (
            {"text_encoder": False, "text_encoder_learning_rate": 1e-4},
            "text_encoder_learning_rate",
            "text_encoder",
        ),
        ({"text_encoder": False, "text_encoder_stop": 0.5}, "text_encoder_stop", "text_encoder"),
        ({"schedule": "constant", "warmup_steps": 5}, "warmup_steps", "constant_with_warmup"),
        ({"steps": 5, "warmup_steps": 5}, "warmup_steps", "5 steps"),
    ],
)
def test_what_cannot_work_is_refused_by_its_field(
    options: dict[str, Any], field: str, words: str, base: Base, found: PictureSet
):
    with pytest.raises(Rejected) as refused:
        planned(base, found, **options)
    assert refused.value.field == field
    assert words in refused.value.message


def test_an_optimizer_that_is_not_installed_is_refused(
    base: Base, found: PictureSet, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for optimizer in ("prodigy", "adamw8bit"):
        with pytest.raises(Rejected, match="pip install"):
            planned(base, found, cuda=True, optimizer=optimizer)


def test_too_few_pictures_are_refused(base: Base, found: PictureSet):
    with pytest.raises(Rejected, match="pictures are 2; give at least 3"):
        planned(base, PictureSet(found.pictures[:2], ()))


@pytest.mark.parametrize(
    ("document", "field", "words"),
    [
        ({"stepz": 4}, "stepz", "did you mean 'steps'"),
        ({"rank": 0}, "rank", "greater than"),
        ({"steps": 4, "epochs": 2}, None, "steps and epochs are both given"),
        ({"name": "a/b"}, "name", "letters"),
        ({"steps": "4"}, "steps", "integer"),
        ({"instance_prompt": " "}, "instance_prompt", "is empty"),
    ],
)
def test_a_manifest_is_strict(document: dict[str, Any], field: str | None, words: str):
    with pytest.raises(Rejected) as refused:
        parse_training(json.dumps(GIVEN | document).encode())
    assert refused.value.field == field
    assert words in refused.value.message


def test_the_family_decides_what_is_left_open(base: Base, found: PictureSet):
    """Every default is in the plan, and what was given stays as it is."""
    full = planned(base, found, method="full").options
    assert (full.learning_rate, full.text_encoder, full.ema, full.steps, full.rank) == (
        8e-4,
        True,
        0.97,
        150,
        None,
    )
    lora = planned(base, found, epochs=10, learning_rate=1e-3).options
    assert (lora.learning_rate, lora.rank, lora.alpha, lora.targets, lora.steps) == (
        1e-3,
        16,
        16.0,
        "all",
        10,
    )
    assert lora.text_encoder_learning_rate == 1e-3
    assert planned(base, found, class_prompts=["a circle"]).options.prior == "pictures"
    assert planned(base, found, cuda=True).options.precision == "bf16"


def test_the_plan_says_what_will_happen(base: Base, found: PictureSet):
    """Pictures by name, tokens of the prompt's own words, steps, estimates, warnings."""
    plan = planned(base, found, class_prompts=["a circle"], steps=100)
    text = "\n".join(plan.lines())
    assert "  0.png: 128 x 128, cut to 128 x 128" in text
    assert "`sks` = 3 tokens" in text
    assert "100 steps of 4 pictures = 100.0 times each picture" in text
    assert "GiB of memory" in text
    (settings,) = (line for line in plan.lines() if line.startswith("all settings: "))
    for name in (
        "learning_rate 0.003",
        "batch_size 4",
        "seed 0",
        "precision no",
        "flip no",
        "validate_every 20",
    ):
        assert name in settings
    assert plan.triggers == ("sks", "shape")
    assert json.loads(json.dumps(plan.plan()))["tokens"]["a sks shape"] == [
        "a</w>",
        "s",
        "k",
        "s</w>",
        "shape</w>",
    ]


def test_a_caption_without_the_concept_is_told(base: Base, found: PictureSet):
    first, *others = found.pictures
    warnings = planned(base, PictureSet((replace(first, caption="a red circle"), *others), ())).warnings
    assert any(first.name in warning and "none of the words" in warning for warning in warnings)


def test_a_plan_has_a_hash_of_all_that_decides(base: Base, found: PictureSet):
    """What is shown and kept does not change it; options, pictures, captions and steps do."""
    plain = planned(base, found).sha256()
    assert planned(base, found, checkpoint_every=7, keep=1, validate=[], name="other").sha256() == plain
    first, *others = found.pictures
    assert len({
        plain,
        planned(base, found, seed=1).sha256(),
        planned(base, found, steps=7).sha256(),
        planned(base, PictureSet((replace(first, caption="a sks"), *others), ())).sha256(),
        planned(base, PictureSet((replace(first, sha256="0"), *others), ())).sha256(),
    }) == 5  # fmt: skip


def test_processes_must_share_a_step_evenly(base: Base, found: PictureSet):
    plan = planned(base, found, batch_size=3, accumulation=2)
    assert [shared(plan, n) for n in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(Rejected, match="4 processes cannot share"):
        shared(plan, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("model_index.json", {"_class_name": "FluxPipeline"}), "is a FluxPipeline"),
        (("unet/config.json", {"in_channels": 9}), "inpainting"),
        (
            ("scheduler/scheduler_config.json", {"prediction_type": "flow_prediction"}),
            "predicts 'flow_prediction'",
        ),
    ],
)
def test_a_base_that_cannot_be_trained_is_refused(
    change: tuple[str, dict[str, Any]], words: str, tmp_path: Path
):
    folder = shutil.copytree(DOODLE, tmp_path / "base")
    file = folder / change[0]
    file.write_text(json.dumps(json.loads(file.read_text()) | change[1]))
    with pytest.raises(Rejected, match=words) as refused:
        Base.read(folder, "mine")
    assert refused.value.field == "base"


def test_a_plan_needs_no_torch():
    """The plan is printed on machines that only ask for it."""
    code = "import sys, training.recipe, training.report, training.pictures; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "False"
