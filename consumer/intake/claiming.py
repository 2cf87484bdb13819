"""From the bytes of a request to its claim: read, check, plan, claim.

A request that can never succeed is claimed too; its claim holds the reason in place of a plan.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from consumer import traces
from consumer.intake.names import Meaning, Names
from infra.logs import redacted
from infra.lru import LruCache
from infra.models.cards import Cards
from infra.models.families import too_many_pictures
from schemas import layout, samplers
from schemas.batch import Row, split_rows
from schemas.errors import DreamError, NotFound, Rejected, TooLarge, TooManyPixels
from schemas.limits import Limits
from schemas.manifest import Manifest, Text2Img, chosen_id, has_expired, parse_manifest
from schemas.manifest_limits import check_numbers, check_upscaled
from schemas.plan import Plan, Refusal, plan
from schemas.result import Note
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from consumer.intake.fleet import Fleet
    from infra.claims.claims import Claims, Held
    from infra.models.cards import ModelCard
    from infra.stores.store import Info, Store

T = TypeVar("T")

log = logging.getLogger(__name__)

SETTLED = 2.0  # seconds that a file must stay the same before it counts as complete
_LOOKS = 3  # at a request that fails unexpectedly; then it is refused, so that it does not fail for ever
_REMEMBERED = 1000  # files that may still be being written, and requests that failed unexpectedly
_LONG = 1 << 20  # bytes; a longer body is parsed in a thread, so that heartbeats go on


@dataclass(frozen=True, slots=True)
class ClaimOutcome:
    """What came of trying to claim a request."""

    id: str
    fingerprint: str = ""  # of its body; "" when the object was gone
    held: Held | None = None  # the claim, when it is ours to work on
    left: bool = False  # another worker can draw it, and we cannot
    settling: bool = False  # the file may still be being written: try again


@dataclass
class RequestClaimer:
    """Reads requests and claims them, for one worker."""

    store: Store
    claims: Claims
    cards: Cards
    default_model: str
    limits: Limits
    clock: Callable[[], float]
    rng: random.Random
    fleet: Fleet | None = None  # None: this worker refuses for good whatever it cannot draw
    #: Key to (etag, first seen) of files that may still be being written.
    _unsettled: LruCache[str, tuple[str, float]] = field(default_factory=lambda: LruCache(_REMEMBERED))
    _unexpected: LruCache[str, int] = field(
        default_factory=lambda: LruCache(_REMEMBERED)
    )  # errors by key or id

    def __post_init__(self) -> None:
        self.names = Names(self.cards, self.default_model, self.store, self.clock)

    async def claim_object(self, info: Info, *, express: bool = False) -> ClaimOutcome:
        """Claim the request in a listed object.

        Args:
            express: its message came by the express queue.

        Raises:
            StoreUnavailable: try again; the next listing shows the object again.
        """
        batch = layout.is_batch(info.key)
        limit = self.limits.max_batch_bytes if batch else self.limits.max_body_bytes
        id = layout.request_id(info.key)
        if batch and await self._may_grow(info):  # a batch that is cut off between two rows looks complete
            return ClaimOutcome(id, settling=True)
        try:
            stored = await self.store.get(info.key, max_bytes=limit)
        except NotFound:
            return ClaimOutcome(id)  # another worker was faster
        except TooLarge as error:
            if await self._may_grow(info):
                return ClaimOutcome(id, settling=True)
            if await self._leaves(info, id, error, b"", info.size, batch=batch):
                return ClaimOutcome(id, left=True)
            fingerprint = layout.oversize_fingerprint(info.key, info.size, info.etag)
            return await self._refuse(info, error, b"", id, fingerprint=fingerprint)
        return await self.claim_body(stored.body, id=id, source=stored.info, batch=batch, express=express)

    async def claim_body(
        self, body: bytes, *, id: str, source: Info | None = None, batch: bool = False, express: bool = False
    ) -> ClaimOutcome:
        """Claim a request whose body was read already. Raises `StoreUnavailable`.

        An unexpected error is raised at the first looks. Then the request is refused: it would fail
        in every worker, for ever.

        Args:
            id: used unless the manifest names its own.
            source: the object that held the body; None when a queue's message did.
            express: it came by the express queue.
        """
        began = self.clock()
        try:
            outcome = await self._claim(body, id, source, batch, express, began)
            if outcome.held is not None:
                lane = "express" if outcome.held.claim.in_express_lane else "normal"
                traces.record("claim", outcome.held, seconds=self.clock() - began, facts={"lane": lane})
            return outcome
        except DreamError:
            raise
        except Exception as error:
            name = source.key if source is not None else id
            looks = (self._unexpected.get(name) or 0) + 1
            self._unexpected[name] = looks
            if looks < _LOOKS:
                raise
            text = f"the worker failed unexpectedly when it read this request ({type(error).__name__}); see its log"
            log.error(
                "a request is refused: it fails unexpectedly", extra={"id": id, "error": redacted(error)}
            )
            return await self._refuse(source, Rejected("worker_crashed", text), body, chosen_id(body) or id)

    async def _claim(
        self, body: bytes, id: str, source: Info | None, batch: bool, express: bool, seen: float
    ) -> ClaimOutcome:
        try:
            if source is None and len(body) > self.limits.max_body_bytes:
                raise TooLarge("the message", len(body), self.limits.max_body_bytes)
            if batch:
                rows = await _parse(len(body), split_rows, id, body, self.limits)
                if source is not None and await self._ends_in_the_middle(source, rows[-1]):
                    return ClaimOutcome(id, settling=True)
                plan_document, request_id = None, id
            else:
                manifest = await _parse(len(body), parse_manifest, body, self.limits)
                request_id = manifest.id or id
                if has_expired(manifest):
                    return await self._refuse(source, _expired(manifest), body, request_id)
                plan_document = self.plan(manifest, await self.names.read(manifest, seen)).document()
        except Rejected as error:
            if source is not None and await self._may_be_unfinished(source, error):
                return ClaimOutcome(id, settling=True)
            if await self._leaves(source, id, error, body, len(body), batch=batch):
                return ClaimOutcome(id, layout.fingerprint(body), left=True)
            return await self._refuse(source, error, body, chosen_id(body) or id)
        held = await self.claims.take(
            source, body, id=request_id, plan=plan_document, batch=batch, express=express
        )
        return ClaimOutcome(request_id, layout.fingerprint(body), held)

    def plan(self, manifest: Manifest, meaning: Meaning) -> Plan:
        """Resolve a manifest's defaults.

        Raises:
            Rejected: an unknown scheduler, a size beyond the model's bound, or a default of the model over our limits.
        """
        card = meaning.card
        self._check_size(manifest, card)
        _check_pictures(manifest, card)
        scheduler, why = samplers.for_model(
            manifest.scheduler, card.scheduler, flow=card.flow, one=card.one_sampler
        )
        replaced = (Note(code="scheduler_replaced", message=why, field="scheduler"),) if why else ()
        planned = plan(
            manifest,
            model=card.name,
            revision=card.revision,
            native_size=(card.native_width, card.native_height),
            scheduler=scheduler,
            random_seed=self.rng.getrandbits(32),
            steps=card.steps,
            cfg_scale=card.cfg_scale,
            size_multiple=card.size_multiple,
            edits=card.editor is not None,
            loras=meaning.loras,
            lora_hashes=meaning.lora_hashes,
            model_version=meaning.model_version,
            lora_versions=meaning.lora_versions,
            ip_adapter=meaning.ip_adapter,
            refiner=meaning.refiner,
            notes=(*meaning.notes, *replaced),
        )
        check_numbers(planned.steps, planned.cfg_scale, self.limits)
        if planned.width and planned.height:
            limits = self.limits.for_model(card.native_width, card.native_height)
            check_upscaled(planned, (planned.width, planned.height), card.size_multiple, limits)
        return planned

    def _check_size(self, manifest: Manifest, card: ModelCard) -> None:
        """Refuse an explicit size beyond the model's bound; an input picture is scaled down instead."""
        if isinstance(manifest, Text2Img):
            native = (card.native_width, card.native_height)
            size = (manifest.width or native[0], manifest.height or native[1])
            limit = self.limits.for_model(*native).max_pixels
            if size[0] * size[1] > limit:
                raise TooManyPixels(size, card.name, native, limit)

    async def _leaves(
        self, source: Info | None, id: str, error: Rejected, body: bytes, size: int, *, batch: bool
    ) -> bool:
        """Whether another live worker can draw what we would refuse."""
        name = f"{source.key} {source.etag}" if source is not None else id
        return self.fleet is not None and await self.fleet.leaves(name, error, body, size, batch=batch)

    async def _may_grow(self, info: Info) -> bool:
        """Whether a file may still be being written: a program has it open, or it changed a moment ago."""
        if not self.store.shows_partial_files:
            return False
        writing = await self.store.is_being_written(info.key)
        return not self._is_settled(info) if writing is None else writing

    async def _may_be_unfinished(self, info: Info, error: Rejected) -> bool:
        """Whether a file that cannot be read may become right by itself."""
        if error.code != "invalid_json" or not self.store.shows_partial_files:
            return False
        if await self.store.is_being_written(info.key):
            return True
        return error.unfinished and not self._is_settled(info)

    async def _ends_in_the_middle(self, info: Info, last: Row) -> bool:
        """Whether a batch's last row may be half written."""
        try:
            load_object(last.body)
        except Rejected as error:
            return await self._may_be_unfinished(info, error)
        return False

    def _is_settled(self, info: Info) -> bool:
        """Whether a file has stayed the same for `SETTLED` seconds since we first saw it so."""
        now = self.clock()
        etag, since = self._unsettled.get(info.key) or ("", now)
        if etag != info.etag:
            self._unsettled[info.key] = (info.etag, now)
            return False
        return now - since >= SETTLED

    async def _refuse(
        self, info: Info | None, error: Rejected, body: bytes, id: str, *, fingerprint: str = ""
    ) -> ClaimOutcome:
        """Claim a request that can never succeed, so that only one worker answers it."""
        refusal = Refusal.of(error).document()
        held = await self.claims.take(info, body, id=id, plan=refusal, fingerprint=fingerprint)
        return ClaimOutcome(id, fingerprint or layout.fingerprint(body), held)


def _check_pictures(manifest: Manifest, card: ModelCard) -> None:
    """Refuse more pictures than a model takes, none where it needs one, and a mask where it reads none."""
    family, given = card.editor, len(manifest.pictures)
    most = family.pictures if family else 1
    if given > most:
        raise Rejected.of_field("image", too_many_pictures(card.name, given, most))
    if family and not given and family.needs_picture:
        text = f"is missing; model {card.name!r} edits pictures, so it needs one or more"
        raise Rejected.of_field("image", text)
    if not family:
        return
    if manifest.task == "inpainting":
        text = f"is not read by model {card.name!r}, which edits whole pictures; leave it out, and say in the prompt "
        raise Rejected.of_field("mask_image", f"{text}what is to change", "unsupported")
    if manifest.upscale is not None:
        text = f"is not drawn by model {card.name!r}, which edits as the prompt says; send the result to another model"
        raise Rejected.of_field("upscale", text, "unsupported")


async def _parse(size: int, parse: Callable[..., T], *arguments: Any) -> T:
    """Call `parse`; for a long body in a thread."""
    return await asyncio.to_thread(parse, *arguments) if size > _LONG else parse(*arguments)


def _expired(manifest: Manifest) -> Rejected:
    text = f"expires_at {manifest.expires_at:%Y-%m-%dT%H:%M:%S%z} had passed before the work began"
    return Rejected("expired", text, field="expires_at")
