"""The plan: a request with every default resolved, frozen in its first claim.

Every attempt draws from the same plan, so one result may have images of different attempts. Input
pictures stay in the frozen request; the plan has only numbers and names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas import samplers
from schemas.defaults import CFG_SCALE, IMG2IMG_STRENGTH, SIZE_MULTIPLE, STEPS, multiples_of
from schemas.errors import Rejected
from schemas.manifest import Img2Img, Manifest
from schemas.manifest_parts import ControlNetUse, IpAdapterUse, LoraChoice, Output, Upscale
from schemas.result import Note, digest
from schemas.text.prompts import check_syntax, foreign_syntax, has_marks

if TYPE_CHECKING:
    from collections.abc import Mapping

SEEDS = 2**63  # seeds are below this
#: What every version of this worker writes into a plan and reads there, with the fields of `output`.
_FROM_THE_BEGINNING = {
    *("task", "prompt", "negative_prompt", "model", "model_revision", "width", "height", "steps"),
    *("cfg_scale", "scheduler", "strength", "clip_skip", "loras", "seeds", "output", "notes"),
    *("format", "quality"),
}
_REFUSAL = "refusal"  # the key by which a refusal differs from a plan


class Refines(BaseModel):
    """The second model of a plan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    at: float
    revision: str = ""
    version: int | None = None  # of a published model

    @property
    def reference(self) -> str:
        return self.model if self.version is None else f"{self.model}@{self.version}"


class Plan(BaseModel):
    """Exactly what will be drawn."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    prompt: str
    negative_prompt: str | None
    model: str
    model_revision: str
    width: int | None  # pixels; None for img2img and inpainting, where the picture decides
    height: int | None
    steps: int
    cfg_scale: float
    scheduler: str
    strength: float | None
    clip_skip: int | None
    loras: tuple[LoraChoice, ...]
    seeds: tuple[int, ...]  # one for each image
    output: Output
    notes: tuple[Note, ...] = ()  # what was changed while planning
    lora_hashes: dict[str, str] = Field(default_factory=dict)  # LoRA's name to its file's sha256
    model_version: int | None = None  # of a published model
    lora_versions: dict[str, int] = Field(default_factory=dict)  # published LoRA's name to its version
    controlnet: tuple[ControlNetUse, ...] = ()
    ip_adapter: IpAdapterUse | None = None  # with its name
    upscale: Upscale | None = None  # with its steps
    refiner: Refines | None = None
    weights: bool = False  # the prompts are written with weights; without it they are plain words

    @property
    def all_steps(self) -> int:
        """Steps of an image, as far as the plan tells: those of its second pass included."""
        return self.steps + (self.upscale.drawn_steps(self.steps) if self.upscale else 0)

    def document(self) -> dict[str, Any]:
        """As JSON. A field that came later is left out where it has its default.

        So older workers can read the plan, and its hash is the one that they compute.
        """
        document = _without_later_defaults(self)
        return document | {"output": _without_later_defaults(self.output)}

    def hash(self) -> str:
        """Equal for two plans that draw the same images."""
        return digest(self.document())


class Refusal(BaseModel):
    """Why a request can never succeed; its claim has this in place of a plan."""

    model_config = ConfigDict(frozen=True)

    code: str
    message: str
    field: str | None = None
    line: int | None = None
    column: int | None = None

    @classmethod
    def of(cls, error: Rejected) -> Self:
        return cls(
            code=error.code, message=error.message, field=error.field, line=error.line, column=error.column
        )

    def error(self) -> Rejected:
        return Rejected(self.code, self.message, field=self.field, line=self.line, column=self.column)

    def document(self) -> dict[str, Any]:
        return {_REFUSAL: self.model_dump(mode="json")}


def read_plan(document: dict[str, Any] | None) -> Plan | Refusal | None:
    """The plan or the refusal in a claim; None for a batch.

    Raises:
        ValueError: the plan was written by a version that this one cannot read; it says so to the author.
    """
    if document is None:
        return None
    if _REFUSAL in document:
        return Refusal.model_validate(document[_REFUSAL])
    try:
        return Plan.model_validate(document)
    except ValidationError as error:  # its own text may quote the prompt
        fields = sorted({".".join(map(str, fault["loc"]))[:60] for fault in error.errors()})[:3]
        raise ValueError(
            "the worker that began this request is of another version, and this one cannot go on with its plan "
            f"({', '.join(fields)}); send the request again, or run that version"
        ) from None


def _without_later_defaults(model: BaseModel) -> dict[str, Any]:
    """As JSON, without fields that came later and have their default."""
    changed = model.model_dump(mode="json", exclude_defaults=True)
    return {
        k: v for k, v in model.model_dump(mode="json").items() if k in _FROM_THE_BEGINNING or k in changed
    }


def plan(
    manifest: Manifest,
    *,
    model: str,
    revision: str,
    native_size: tuple[int, int],
    scheduler: str,
    random_seed: int,
    steps: int = STEPS,
    cfg_scale: float = CFG_SCALE,
    size_multiple: int = SIZE_MULTIPLE,
    edits: bool = False,
    loras: tuple[LoraChoice, ...] | None = None,
    lora_hashes: Mapping[str, str] | None = None,
    model_version: int | None = None,
    lora_versions: Mapping[str, int] | None = None,
    ip_adapter: str | None = None,
    refiner: Refines | None = None,
    notes: tuple[Note, ...] = (),
) -> Plan:
    """Resolve every default of a manifest.

    Args:
        model, revision, scheduler: canonical names, looked up by the caller.
        native_size: (width, height) of the model, pixels.
        random_seed: in [0, 2**32), used where the manifest gives no seed.
        steps, cfg_scale: of the model's card, used where the manifest leaves them open.
        size_multiple: pixels; the model can draw no other widths and heights.
        edits: the model edits pictures as the prompt says, so `strength` means nothing to it.
        loras: by their canonical names; None: as the manifest has them.
        lora_hashes: sha256 of each LoRA's file, by its name.
        model_version, lora_versions: of what is published.
        ip_adapter: the name of the one that is used, where the manifest asks for one.
        refiner: the second model, by its canonical name.
        notes: what else was changed.

    Raises:
        Rejected: the scheduler cannot do so many steps, the model no such size, or a pass would have
            no step, or a prompt has syntax that cannot be drawn.
    """
    steps = steps if (chosen := manifest.chosen("steps")) is None else chosen
    cfg_scale = cfg_scale if (chosen := manifest.chosen("cfg_scale")) is None else chosen
    samplers.check_steps(scheduler, steps)
    notes = (*notes, *_notes_on_words(manifest))
    first = manifest.drawn_seed if manifest.drawn_seed is not None else random_seed
    if first + manifest.number_of_images > SEEDS:
        text = f"the seeds of the images from {SEEDS - first} on would pass 2**63 - 1; they go on from 0"
        notes += (Note(code="seed_wrapped", message=text, field="seed"),)
    width = height = strength = None
    if manifest.task == "text2img":
        width, height = manifest.width or native_size[0], manifest.height or native_size[1]
        _check_size(model, {"width": width, "height": height}, size_multiple)
        if manifest.strength is not None:
            text = "strength is ignored: text2img starts from noise"
            notes += (Note(code="ignored", message=text, field="strength"),)
    elif edits:
        if manifest.strength is not None:
            text = f"strength has no effect with model {model!r}, which edits as the prompt says"
            notes += (Note(code="ignored", message=text, field="strength"),)
    else:
        strength = manifest.strength or (IMG2IMG_STRENGTH if isinstance(manifest, Img2Img) else 1.0)
    upscale = None
    if manifest.task != "inpainting" and manifest.upscale is not None:
        upscale = manifest.upscale.model_copy(update={"steps": manifest.upscale.steps or steps})
        upscale.drawn_steps(steps)
        samplers.check_steps(scheduler, upscale.steps or steps, "upscale.steps")
        if width and height:
            upscale.size(width, height, model, size_multiple)
    if manifest.task != "inpainting" and manifest.refiner is not None and refiner is not None:
        manifest.refiner.check_steps(steps, strength)
        used = manifest.loras if loras is None else loras
        guides = {"controlnet": manifest.controlnet, "ip_adapter": manifest.ip_adapter}
        notes += _notes_on_refining(model, loras=used, **guides)
    return Plan(
        task=manifest.task,
        prompt=manifest.prompt,
        negative_prompt=manifest.negative_prompt or None,
        model=model,
        model_revision=revision,
        width=width,
        height=height,
        steps=steps,
        cfg_scale=float(cfg_scale),
        scheduler=scheduler,
        strength=strength,
        clip_skip=manifest.clip_skip,
        loras=manifest.loras if loras is None else loras,
        seeds=tuple((first + k) % SEEDS for k in range(manifest.number_of_images)),
        output=manifest.output,
        notes=notes,
        lora_hashes=dict(lora_hashes or {}),
        model_version=model_version,
        lora_versions=dict(lora_versions or {}),
        controlnet=tuple(
            ControlNetUse(name=one.name, scale=one.scale, start=one.start, end=one.end)
            for one in manifest.controlnet
        ),
        ip_adapter=IpAdapterUse(name=ip_adapter, scale=manifest.ip_adapter.scale)
        if manifest.ip_adapter
        else None,
        upscale=upscale,
        refiner=refiner,
        weights=any(has_marks(text) for _, text in _words(manifest)),
    )


def _notes_on_refining(model: str, **given: object) -> tuple[Note, ...]:
    """What of a request acts on its first model only, by field."""
    text = "{} has an effect on model {!r} only; the refiner draws without it"
    fields = [field for field, value in given.items() if value]
    return tuple(Note(code="ignored", message=text.format(one, model), field=one) for one in fields)


def _check_size(model: str, size: Mapping[str, int], multiple: int) -> None:
    """Refuse what would be drawn in another size. Raises `Rejected`, with the nearest two."""
    for field, value in size.items():
        if value % multiple:
            raise Rejected.of_field(field, f"is {value}; {multiples_of(model, value, multiple)}")


def exact_names(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a manifest that name the published models of a plan by their versions; {} where it has none.

    Args:
        plan: as JSON, perhaps written by a stranger.
    """
    names: dict[str, Any] = {}
    model, version = plan.get("model"), plan.get("model_version")
    loras, versions = plan.get("loras"), plan.get("lora_versions")
    if isinstance(model, str) and type(version) is int:
        names["model"] = f"{model}@{version}"
    if isinstance(versions, dict) and versions and isinstance(loras, list):
        known = [lora for lora in loras if isinstance(lora, dict) and isinstance(lora.get("name"), str)]
        if isinstance(model, str):  # the request may have named a LoRA as its model
            names.setdefault("model", model)
        names["loras"] = [
            {**lora, "name": f"{name}@{versions[name]}"} if type(versions.get(name)) is int else lora
            for lora in known
            for name in [lora["name"]]
        ]
    refiner = plan.get("refiner")
    if isinstance(refiner, dict) and isinstance(refiner.get("model"), str):
        name, version = refiner["model"], refiner.get("version")
        exact = f"{name}@{version}" if type(version) is int else name
        names["refiner"] = {"model": exact} | ({"at": refiner["at"]} if "at" in refiner else {})
    return names


def _words(manifest: Manifest) -> tuple[tuple[str, str], ...]:
    """The prompts of a manifest by their fields."""
    return (("prompt", manifest.prompt), ("negative_prompt", manifest.negative_prompt or ""))


def _notes_on_words(manifest: Manifest) -> tuple[Note, ...]:
    """Where the words of a manifest ask for something that is not done. Raises `Rejected` where they may not."""
    notes = []
    for field, text in _words(manifest):
        check_syntax(text, field)
        if kinds := foreign_syntax(text):
            message = f"{field} has {', '.join(kinds)}: read as plain words here"
            notes.append(Note(code="prompt_syntax", message=message, field=field))
    asked = samplers.resolve(manifest.scheduler).instead_of if manifest.scheduler else ""
    if asked:
        message = f"{asked} is not offered; it was drawn with {samplers.resolve(asked).name}, without its added noise"
        notes.append(Note(code="scheduler_replaced", message=message, field="scheduler"))
    return tuple(notes)
