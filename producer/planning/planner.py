"""Resolves requests as a worker would, without drawing: each becomes a piece of work."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from PIL import Image

from infra import pictures
from infra.decoding.drawing import drawn_size
from infra.models import published
from infra.models.cards import BUILT_IN, POPULAR
from infra.models.published_cards import card_of
from producer.overview import defaults_of, models_of
from producer.planning.work import Piece, Work, piece_of
from schemas import samplers
from schemas.batch import split_rows
from schemas.defaults import CFG_SCALE, SIZE_MULTIPLE, STEPS, ModelDefaults
from schemas.errors import Rejected, TooManyPixels
from schemas.manifest import Text2Img, parse_manifest
from schemas.manifest_limits import check_upscaled
from schemas.models import split_reference
from schemas.plan import Refines, plan

if TYPE_CHECKING:
    from infra.stores.store import Store
    from producer.input_files import Item
    from schemas.limits import Limits
    from schemas.manifest import Manifest
    from schemas.models import PublishedCard
    from schemas.plan import Plan

_SIDE = 768  # pixels, where nobody says a model's size: the documented one


@dataclass
class Planner:
    """Plans requests by the cards that live workers publish, the store's published models and the built-in ones."""

    store: Store
    beats: Sequence[Mapping[str, Any]]  # of live workers
    model: str | None  # for requests that name none; None: what the workers say
    limits: Limits
    unknown_sizes: int = 0  # pictures that were not looked at, counted at their model's own size
    _cards: dict[str, tuple[str, ModelDefaults] | Rejected] = field(
        default_factory=dict
    )  # by name as asked for

    async def item(self, item: Item) -> Work:
        """The work of a file that `gather` has checked.

        Raises:
            Rejected: no worker can draw it; with the row's line.
        """
        work = Work()
        if not item.batch:
            work.add(await self.body(item.body))
            return work
        for row in split_rows("x", item.body, self.limits):
            try:
                work.add(await self.body(row.body))
            except Rejected as fault:
                text = f"line {row.line}: {fault.message}"
                raise Rejected(fault.code, text, field=fault.field, line=row.line) from fault
        return work

    async def body(self, body: bytes, *, ours: bool = True) -> Piece:
        """The work of one request.

        Args:
            ours: its pictures are the caller's own, so their headers may be read here.

        Raises:
            Rejected: it can never be drawn.
        """
        manifest = parse_manifest(body, self.limits)
        name, card = await self.card(manifest.model or self.default_model())
        native = size_of(card)
        bounds = self.limits.for_model(*native)
        size = native
        if isinstance(manifest, Text2Img):
            size = (manifest.width or native[0], manifest.height or native[1])
            if size[0] * size[1] > bounds.max_pixels:
                raise TooManyPixels(size, name, native, bounds.max_pixels)
        else:
            size = self._picture(manifest, bounds, native, _multiple(card)) if ours else native
        refiner = await self._refiner(manifest)
        planned = self._plan(manifest, name, card, native, refiner)
        check_upscaled(planned, size, _multiple(card), bounds)
        return piece_of(planned, size)

    async def _refiner(self, manifest: Manifest) -> Refines | None:
        """The second model of a request. Raises `Rejected`."""
        if manifest.task == "inpainting" or manifest.refiner is None:
            return None
        try:
            name, _, version = (await self.card(manifest.refiner.model))[0].partition("@")
        except Rejected as fault:
            raise Rejected(fault.code, f"refiner: {fault.message}", field="refiner.model") from fault
        return Refines(model=name, at=manifest.refiner.at, version=int(version) if version else None)

    def _plan(
        self,
        manifest: Manifest,
        name: str,
        card: ModelDefaults,
        native: tuple[int, int],
        refiner: Refines | None,
    ) -> Plan:
        plain, _, version = name.partition("@")
        built_in = next((one for one in (*BUILT_IN, *POPULAR) if one.name == name), None)
        return plan(
            manifest,
            model=plain,
            edits=built_in is not None and built_in.editor is not None,
            revision="",
            native_size=native,
            scheduler=samplers.resolve(manifest.scheduler or card.scheduler or "DDIM").name,
            random_seed=0,
            steps=card.steps or STEPS,
            cfg_scale=CFG_SCALE if card.cfg_scale is None else card.cfg_scale,
            size_multiple=_multiple(card),
            model_version=int(version) if version else None,
            refiner=refiner,
        )

    def _picture(
        self, manifest: Any, limits: Limits, native: tuple[int, int], multiple: int
    ) -> tuple[int, int]:
        """The size at which a request's picture is drawn, from its file's header. Raises `Rejected`."""
        try:
            data = pictures.decode_base64(manifest.pictures[0], "image", limits)
            with Image.open(io.BytesIO(data), formats=pictures.FORMATS) as picture:
                whole = picture.size
        except (Rejected, OSError, Image.DecompressionBombError):  # the name of an object, or no picture
            self.unknown_sizes += 1
            return native
        return drawn_size(whole, limits, multiple)

    def default_model(self) -> str:
        """The model of a request that names none: what most live workers say. Raises `Rejected`."""
        told = Counter(name for beat in self.beats if isinstance(name := beat.get("default_model"), str))
        if self.model or told:
            return self.model or told.most_common(1)[0][0]
        text = "is left open, and no worker is running that says which model it draws then; give one with --model"
        raise Rejected.of_field("model", text, "unknown_model")

    async def card(self, name: str) -> tuple[str, ModelDefaults]:
        """A model's exact name, and what fills the fields that a request leaves open.

        Raises:
            Rejected: neither a live worker nor the store knows it, and it is not built in.
        """
        found = self._cards.get(name)
        if found is None:
            try:
                found = await self._find(name)
            except Rejected as error:
                found = error
            self._cards[name] = found
        if isinstance(found, Rejected):
            raise found
        return found

    async def _find(self, name: str, lora: str = "") -> tuple[str, ModelDefaults]:
        """See `card`; with `lora` the name is the base of that one."""
        known, yields = self._known(name), any(card.name == name for card in POPULAR)
        if known is not None and not yields:
            return name, known
        try:
            card = await published.resolve(self.store, name)
        except Rejected:
            if known is not None:
                return name, known
            text = f"no model named {name[:200]!r}; known are {', '.join(self._names())}, and what is published here"
            raise Rejected("unknown_model", text, field="model") from None
        if card.kind == "full":
            return card.reference, self._filled(card)
        if lora:
            text = f"model is {lora}, a LoRA whose base {name[:200]!r} is a LoRA itself"
            raise Rejected("unsupported", text, field="model")
        return await self._find(card.base, card.reference)  # a LoRA that is named as the model

    def _names(self) -> list[str]:
        announced = {model for beat in self.beats for model in models_of(beat)}
        return sorted(announced | {card.name for card in (*BUILT_IN, *POPULAR)})

    def _known(self, name: str) -> ModelDefaults | None:
        """What a live worker says of a model, else what a built-in card says; None for a published one."""
        if any(name in models_of(beat) for beat in self.beats):
            return defaults_of(self.beats, name)
        return next((card.defaults for card in (*BUILT_IN, *POPULAR) if card.name == name), None)

    def _filled(self, card: PublishedCard) -> ModelDefaults:
        """The defaults of a published model. What its card leaves open is its base's, as a worker fills it."""
        left_open = {
            "steps": card.steps is None,
            "cfg_scale": card.cfg_scale is None,
            "scheduler": not card.scheduler,
            "width": not card.native_width,
            "height": not card.native_height,
        }
        base = self._known(split_reference(card.base)[0]) or ModelDefaults()
        told = base.model_dump(include={name for name, is_open in left_open.items() if is_open})
        known = {name: value for name, value in told.items() if value is not None}
        return card_of(card).defaults.model_copy(update=known)


def _multiple(card: ModelDefaults) -> int:
    return card.size_multiple or SIZE_MULTIPLE


def size_of(card: ModelDefaults) -> tuple[int, int]:
    """A model's own width and height."""
    return card.width or _SIDE, card.height or _SIDE
