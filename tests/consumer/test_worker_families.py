"""A real worker draws by a transformer's folder, says what it could not use, and refuses what cannot be served."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from consumer.intake.names import Meaning
from infra.models.cards import Cards
from infra.models.model_files import check, check_index, check_own
from infra.stores.memory import MemoryStore
from schemas.errors import Rejected
from schemas.manifest import validate_manifest
from tests.tiny.families import save
from tests.worker_inside import make_worker
from tests.worker_process import drop, result, worker

ASKED: dict[str, Any] = {"model": "flux", "prompt": "a red fox", "steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("flux", tmp_path_factory.mktemp("flux") / "model")


@pytest.fixture
def spoilt(flux: Path, tmp_path: Path) -> Path:
    """A copy whose index a test may change."""
    return shutil.copytree(flux, tmp_path / "spoilt")


def index(folder: Path, **changes: Any) -> None:
    """Change the pipeline's index of a folder."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def picture(width: int, height: int) -> str:
    """A picture as a manifest has it."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_a_real_worker_draws_by_a_transformer(flux: Path, tmp_path: Path) -> None:
    """From words and from a picture, which is cut to the sizes that this model draws; notes say what was not used."""
    requests: dict[str, dict[str, Any]] = {
        "words": {"width": 32, "height": 48, "negative_prompt": "ugly", "scheduler": "DPM++ 2M"},
        "euler": {"width": 32, "height": 32, "scheduler": "Euler"},
        "picture": {"image": picture(40, 33), "strength": 0.7},
        "strict": {"width": 32, "height": 32, "negative_prompt": "ugly", "strict": True},
        "narrow": {"width": 40, "height": 32},
        "edit": {"model": "klein", "image": [picture(64, 70), picture(96, 64)]},
    }
    for name, more in requests.items():
        drop(tmp_path, f"{name}.json", ASKED | more)
    klein = save("klein", tmp_path / "klein")
    options = ("--renderer", "diffusers", "--model", "flux", "--models", f"flux={flux},multiple=16")
    options += ("--models", f"klein={klein}")
    with worker(tmp_path, *options):
        ended = {name: result(tmp_path, name) for name in requests}

    notes = {name: [note["message"] for note in one["warnings"]] for name, one in ended.items()}
    assert [ended[name]["status"] for name in requests] == ["succeeded"] * 3 + ["failed"] * 2 + ["succeeded"]
    assert notes["euler"] == []
    assert notes["words"] == [
        "scheduler DPM++ 2M was not used: the model is made for flow matching; it was drawn with Flow Euler",
        "negative_prompt has no effect with model 'flux', which is distilled",
    ]
    assert notes["picture"] == ["image was 40 x 33; drawn at 32 x 32"]
    assert notes["edit"] == ["image.0 was 64 x 70; drawn at 64 x 64"]
    drawn = ("words", "picture", "edit")
    files = {name: (tmp_path / "results" / name / "0.png").read_bytes() for name in drawn}
    sizes = {name: Image.open(io.BytesIO(file)).size for name, file in files.items()}
    assert sizes == {"words": (32, 48), "picture": (32, 32), "edit": (64, 64)}
    assert "negative_prompt has no effect" in ended["strict"]["failure"]["message"]
    assert (
        "width is 40; model 'flux' draws multiples of 16, such as 32 or 48"
        in ended["narrow"]["failure"]["message"]
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            "text_encoder_2",
            "its text_encoder_2 is missing: model_index.json names it, and it has no such folder",
        ),
        ("tokenizer_2", "its tokenizer_2 is missing"),
        ("transformer", "its transformer is missing"),
    ],
)
def test_a_folder_that_lacks_a_part_is_told_at_the_start(spoilt: Path, part: str, message: str) -> None:
    """Before it can eat requests; only headers are read for that."""
    shutil.rmtree(spoilt / part)
    with pytest.raises(Rejected, match=message) as refused:
        check_own(Cards.of([f"flux={spoilt}"]).own())
    assert refused.value.message.startswith("model 'flux': ")


def test_a_part_that_the_index_leaves_out_is_told_too(spoilt: Path) -> None:
    """Of SD 3 the third encoder may be missing, because its pipeline draws without."""
    index(spoilt, text_encoder_2=[None, None])
    with pytest.raises(Rejected, match=r"its text_encoder_2 is missing \(null in model_index.json\)"):
        check(spoilt)


@pytest.mark.parametrize(
    "changes",
    [
        {"_class_name": "StableDiffusionControlNetPipeline", "controlnet": ["diffusers", "ControlNetModel"]},
        {"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]},
        {"_class_name": "SomeModel"},
        {"_class_name": None},
    ],
)
def test_a_pipeline_that_cannot_be_drawn_is_refused_by_its_index(
    spoilt: Path, changes: dict[str, Any]
) -> None:
    """So nothing large is downloaded for it; the message lists what can."""
    index(spoilt, **changes)
    with pytest.raises(Rejected, match=r"which is not drawn here; .*known are .*FluxPipeline \(FLUX.1\)"):
        check_index(spoilt)


def test_a_worker_does_not_start_with_such_a_folder(spoilt: Path, tmp_path: Path) -> None:
    """Though another model is the default one."""
    index(spoilt, _class_name="SomeModel")
    with worker(
        tmp_path, "--renderer", "diffusers", "--model", "doodle", "--models", f"x={spoilt}"
    ) as process:
        assert process.wait(120) == 3
        assert process.stderr is not None
        assert (
            f"model 'x': the model in {spoilt} is refused: its pipeline is 'SomeModel'"
            in process.stderr.read()
        )


def test_a_sampler_for_flow_matching_draws_no_other_model() -> None:
    """The model's own is used, and a note says so."""
    claimer = make_worker(MemoryStore(), cards=(cards := Cards.of()))._inbox.claimer
    manifest = validate_manifest({"prompt": "x", "scheduler": "FlowMatchEulerDiscreteScheduler"})
    plan = claimer.plan(manifest, Meaning(cards.get("doodle")))
    assert plan.scheduler == "DPM++ 2M"
    assert [note.field for note in plan.notes] == ["scheduler"]
