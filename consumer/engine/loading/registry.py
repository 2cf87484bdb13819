"""The model registry: names to loaded models.

A model is loaded once: text2img, img2img and inpainting pipelines share its components. When
the memory budget is reached, the least recently used model is evicted, but never one that an
image in flight needs.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from consumer.engine.denoisers import DENOISERS
from consumer.engine.device_errors import free_memory
from consumer.engine.devices import Offload, pick_dtype, place, set_attention
from consumer.engine.loading.guides import Guides
from consumer.engine.loading.libraries import library, quiet
from consumer.engine.loading.loras import Adapters
from consumer.engine.loading.opening import check_class, open_pipeline
from consumer.engine.loading.probe import Outcome, probe
from consumer.engine.loading.quantizing import quantize
from consumer.engine.loading.templates import around, modules_of, with_stand_ins
from consumer.engine.passes import models_of
from consumer.engine.texts import Embeddings
from consumer.renderer.protocol import ImageTask, Loaded, Loading
from infra.models.cards import BUNDLED, Cards, ModelCard
from infra.models.families import Family, base_class
from infra.models.folders import read_folder
from infra.models.model_files import ModelFolder, ModelUnavailable, find
from schemas.errors import Rejected

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

_LOOK_AGAIN = 60.0  # seconds after which a model that was not available is looked for again
_TASKS = {"text2img": "", "img2img": "Img2Img", "inpainting": "Inpaint"}  # to their part of a class's name


@dataclass(eq=False)
class LoadedModel:
    """A model in memory."""

    card: ModelCard
    record: dict[str, str]  # name, revision, source, licence, dtype: what a result says of it
    templates: dict[str, Any]  # task: a pipeline whose models are stand-ins
    plain: dict[str, Any]  # task: the same with the real models
    scheduler_config: dict[str, Any]
    size_multiple: int  # pixels
    adapters: Adapters
    guides: Guides
    modules: list[Any]
    denoiser: str = "unet"  # the component
    joins: bool = True  # images of it may share calls
    probed: str = ""  # how that was found, where no table says it

    @property
    def bytes(self) -> int:
        """The memory that the weights take, tables of places included."""
        kept = (t for module in self.modules for t in (*module.parameters(), *module.buffers()))
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    def template(self, task: str) -> Any:
        """The pipeline that an image's own is copied from. Raises `Rejected` for a task that the model cannot do."""
        if task not in self.templates:
            text = f"model {self.card.name!r} cannot do {task}; it does {', '.join(self.templates)}"
            if task == "text2img" and "img2img" in self.templates:
                raise Rejected("unsupported", f"{text}: give it a picture in `image`", field="image")
            raise Rejected("unsupported", text, field="task")
        return self.templates[task]


@dataclass
class ModelRegistry:
    """Loads models on one device, and keeps as many as its memory budget allows.

    Args:
        dtype: precision by name; empty: the card's, else what suits the device.
        quantize: "off", or "fp8": weights of denoisers and text encoders in 8 bits.
        memory_budget: bytes of weights to keep; None: no limit.
        loras: registered name to a safetensors file.
        offline: never contact the hub.
        probing: find out at load whether images of a model that no table knows may share calls; for exact mode, where
            company must not change a byte, that is not proof enough.
        emit: gets `Loading` before a model is looked for or loaded, which may take minutes, and `Loaded`.
    """

    cards: Cards
    device: str = "cpu"
    dtype: str = ""
    channels_last: bool = True
    attention: str = "auto"
    offload: bool = False
    quantize: str = "off"
    memory_budget: int | None = None
    loras: Mapping[str, Path] = field(default_factory=dict)
    offline: bool = False
    probing: bool = False
    cache: Path | None = None  # of downloads; None: the hub library's own
    emit: Callable[[Loading | Loaded], None] = lambda _message: None
    clock: Callable[[], float] = time.monotonic
    embeddings: Embeddings = field(default_factory=Embeddings)
    loads: int = 0  # models loaded since the start
    offloading: Offload = field(default_factory=Offload)
    _loaded: OrderedDict[str, LoadedModel] = field(default_factory=OrderedDict)  # least recently used first
    _given: dict[str, ModelCard] = field(default_factory=dict)  # published models that tasks came with
    _folders: dict[str, ModelFolder] = field(default_factory=dict)
    _probed: dict[str, Outcome] = field(default_factory=dict)
    _missing: dict[str, tuple[float, ModelUnavailable]] = field(default_factory=dict)  # until when, and why

    def learn(self, name: str, folder: str) -> None:
        """Take note of a published model (name@version), whose files are in this folder."""
        if (card := self._given.get(name)) is not None and card.sources == (folder,):
            return
        revision = name.rpartition("@")[2]
        self._given[name] = ModelCard(name, (folder,), 0, 0, scheduler="", revision=revision)
        self._folders.pop(name, None)
        self._probed.pop(name, None)
        self._missing.pop(name, None)

    def _card(self, name: str) -> ModelCard:
        return self._given.get(name) or self.cards.get(name)

    def fits(self, name: str, in_use: Collection[str], *others: str) -> bool:
        """Whether the model is loaded, or can be once every model not in use is evicted.

        Args:
            others: models that are needed at the same time.
        """
        wanted = {name, *others}
        if self.memory_budget is None or not in_use or wanted <= self._loaded.keys():
            return True  # where nothing is in use, `get` reports a model that is too large
        held = {*in_use, *wanted} & self._loaded.keys()
        needed = sum(map(self.size_of, wanted - held))
        return sum(self._loaded[key].bytes for key in held) + needed <= self.memory_budget

    def size_of(self, name: str) -> int:
        """Bytes of a model's weights, loaded or not."""
        return self._find(name).bytes_at(self._dtype(self._card(name)).itemsize, self.quantize)

    def guides_fit(self, task: ImageTask, in_use: Collection[str]) -> bool:
        """The same of what guides a task beside its prompt; its model is loaded, or will be."""
        model = self._loaded.get(task.model)
        if model is None or self.memory_budget is None or not in_use:
            return True
        names = {*in_use, *models_of(task)}
        held = sum(self._loaded[key].bytes if key in self._loaded else self.size_of(key) for key in names)
        return held + model.guides.needed(task) <= self.memory_budget

    def get(self, name: str, *, in_use: Collection[str] = ()) -> LoadedModel:
        """The model, loaded if need be; models that are not in use may be evicted for it.

        Raises:
            Rejected: unknown, or not safe to load.
            ModelUnavailable: none of its sources is available; the message says what was tried.
        """
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        folder = self._find(name)  # first: what cannot be loaded must not evict anything
        self.emit(Loading(name, _public(folder.source)))
        # Before the load, or both models would be in memory at once.
        self._make_room(f"model {name!r}", self.size_of(name), in_use)
        model = self._load(self._card(name), folder)
        self._judge(model, folder.family)
        self._loaded[name] = (
            model  # only when it is whole: a load that failed is tried again by the next task
        )
        self.loads += 1
        sizes = {key: one.bytes for key, one in self._loaded.items()}
        record = model.record
        self.emit(Loaded(name, record["source"], record["dtype"], model.bytes, sizes, model.probed))
        return model

    def _judge(self, model: LoadedModel, family: Family) -> None:
        """Whether images of a model may share calls, by the tables or by a probe, whose outcome is kept."""
        parts = [getattr(pipe, family.denoiser) for pipe in model.templates.values()]
        known, name = DENOISERS.get(parts[0].__class__.__name__), model.card.name
        model.joins = family.joins
        if (family.joins and known is not None) or not self.probing or "text2img" not in model.templates:
            return
        if name not in self._probed:
            self._probed[name] = probe(model, known, self.offloading.make_way)
            self.offloading.clear()  # the probe also draws by the pipeline itself, which moves modules unseen
        outcome = self._probed[name]
        model.joins, model.probed = outcome.layout.joins, outcome.text
        for part in parts:
            part.join_by(outcome.layout)

    def joins(self, name: str) -> bool:
        """Whether images of this model may share calls; what is not known yet may."""
        if name in self._loaded:
            return self._loaded[name].joins
        return name not in self._folders or self._folders[name].family.joins

    def loaded(self) -> list[str]:
        """Names of the models in memory, least recently used first."""
        return list(self._loaded)

    def _find(self, name: str) -> ModelFolder:
        if name not in self._folders:
            card = self._card(name)
            until, missing = self._missing.get(name, (0.0, None))
            if missing is not None and self.clock() < until:  # everybody waits while the hub is asked
                raise missing
            self.emit(Loading(name, " or ".join(map(_public, card.sources))))
            try:
                self._folders[name] = find(card, offline=self.offline, cache=self.cache)
            except ModelUnavailable as error:
                self._missing[name] = (self.clock() + _LOOK_AGAIN, error.with_traceback(None))
                raise
        return self._folders[name]

    def _dtype(self, card: ModelCard) -> torch.dtype:
        return pick_dtype(self.device, self.dtype or card.dtype)

    def _make_room(self, what: str, needed: int, in_use: Collection[str], held: int = 0) -> None:
        """Evict models, least recently used first. Raises `ModelUnavailable` if it can never fit.

        Args:
            held: bytes in memory that it cannot do without.
        """
        if self.memory_budget is None:
            return
        if held + needed > self.memory_budget:
            text = f"{what} needs {held + needed:,} bytes; the budget is {self.memory_budget:,} bytes"
            raise ModelUnavailable(text)
        for old in [key for key in self._loaded if key not in in_use]:
            if sum(model.bytes for model in self._loaded.values()) + needed <= self.memory_budget:
                break
            self.offloading.forget(self._loaded.pop(old).modules)  # its hooks would keep the modules alive
            self.embeddings.forget()  # keyed by the modules' ids, which Python may reuse once they are freed
            free_memory()  # last: no reference may be left

    def _load(self, card: ModelCard, folder: ModelFolder) -> LoadedModel:
        quiet()
        check_class(card.name, folder.pipeline)
        dtype = self._dtype(card)
        pipe = open_pipeline(folder, dtype)
        pipe.set_progress_bar_config(disable=True)
        if dtype == torch.float16 and pipe.vae.config.get("force_upcast"):
            # This VAE overflows in float16; its pipeline would convert it for every image.
            pipe.vae.to(torch.float32)
        denoiser = getattr(pipe, folder.family.denoiser)
        modules: list[Any] = list(modules_of(pipe).values())
        for module in modules:
            module.eval().requires_grad_(False)
            if self.channels_last and isinstance(module, _with_pictures()):
                module.to(memory_format=torch.channels_last)
        if self.quantize != "off":
            quantize(pipe.components, folder.family.denoiser, dtype)
        place(modules, self.device, self.offloading if self.offload else None)
        set_attention(
            denoiser, pipe.vae, self.attention
        )  # after the move: xformers refuses modules on the CPU
        plain = _tasks(pipe, folder.family)
        return LoadedModel(
            card=card,
            record={
                "name": card.name,
                "revision": folder.revision,
                "source": _public(folder.source),
                "licence": card.licence,
                "dtype": str(dtype).removeprefix("torch.")
                + (f", weights {self.quantize}" if self.quantize != "off" else ""),
            },
            templates={task: with_stand_ins(one, folder.family.layers) for task, one in plain.items()},
            plain=plain,
            scheduler_config={**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__},
            size_multiple=max(card.size_multiple, read_folder(folder.configs or folder.path).size_multiple),
            adapters=Adapters(pipe, self.loras, self.quantize),
            guides=Guides.of(self, denoiser, plain, folder.family, modules),
            modules=modules,
            denoiser=folder.family.denoiser,
        )

    def equip(
        self, model: LoadedModel, task: ImageTask, in_use: Collection[str], names: Collection[str] = ()
    ) -> None:
        """Load what guides a task beside its prompt. Raises `Rejected` and `ModelUnavailable` as `get` does.

        Args:
            names: of all models that the task's image needs; they are loaded.
        """
        if needed := model.guides.needed(task):
            together = dict.fromkeys([task.model, *names])
            what = f"what guides the request, together with {' and '.join(map(repr, together))},"
            held = sum(self._loaded[name].bytes for name in together)
            self._make_room(what, needed, {*in_use, *together}, held=held)
        model.guides.ensure(task)


def _public(source: str) -> str:
    """A source as results and logs name it."""
    return "bundled" if source.startswith(str(BUNDLED)) else source


def _with_pictures() -> Any:
    """Classes whose convolutions are faster with the channels last."""
    diffusers = library("diffusers")
    return (diffusers.UNet2DConditionModel, diffusers.AutoencoderKL)


def _tasks(pipe: Any, family: Family) -> dict[str, Any]:
    """The pipelines around one set of components, where diffusers has them and the model can do them."""
    diffusers, base = library("diffusers"), base_class(type(pipe).__name__)
    denoiser = getattr(pipe, family.denoiser)
    names = {task: base.replace("Pipeline", f"{_TASKS[task]}Pipeline") for task in family.tasks}
    if family.pictures:  # one pipeline for both
        names = dict.fromkeys(family.tasks, base)
    can = [task for task, name in names.items() if hasattr(diffusers, name)]
    if family.denoiser == "unet" and denoiser.config.in_channels == 9:
        can = ["inpainting"]  # made for it: it cannot draw without a mask
    if "text_encoder_2" in pipe.components and pipe.components.get("text_encoder", pipe) is None:
        can = [task for task in can if task != "text2img"]  # a refiner: it goes on from a picture
    return {task: around(getattr(diffusers, names[task]), pipe) for task in can}
