"""What the other live workers of a store can draw, as their heartbeats say.

Workers of one store may differ in models, limits and version. So a worker refuses a request for
good only if no live worker can draw it; what another one can draw it leaves, for a bounded time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, get_args

from pydantic import BaseModel

from infra.gather import gather_bounded
from infra.lru import LruCache
from schemas import layout, samplers
from schemas.errors import NotFound, Rejected, StoreUnavailable, TooManyPixels
from schemas.limits import Limits
from schemas.manifest import TASKS, Img2Img, Inpainting, Text2Img, parse_manifest
from schemas.manifest_limits import check_numbers
from schemas.manifest_parts import OneOrSeveral
from schemas.plan import Plan, Refusal, read_plan
from schemas.text.strictjson import load_object

if TYPE_CHECKING:
    from infra.claims.claims import Claim
    from infra.models.addons.known import Addons
    from infra.stores.store import Info, Store

PATIENCE = 600.0  # seconds that a request is left to a worker that can draw it; then it is refused
TAKEOVER_PATIENCE = 120.0  # seconds that a claim whose plan nobody alive can draw waits for its worker
_READS = 8  # heartbeats read at a time
_REMEMBERED = 10_000  # requests that are left to others
_SETS = ("models", "loras", "schedulers", "fields", "tasks", "controlnets", "ip_adapters")  # of capabilities


@dataclass(frozen=True)
class Capabilities:
    """What one worker can draw; travels in its heartbeat."""

    models: frozenset[str] = frozenset()
    loras: frozenset[str] = frozenset()
    schedulers: frozenset[str] = frozenset()
    fields: frozenset[str] = frozenset()  # of a manifest, as `_fields_of` writes them
    tasks: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    published: bool = False  # whatever is published in the store, too
    controlnets: frozenset[str] = frozenset()
    ip_adapters: frozenset[str] = frozenset()

    @classmethod
    def own(
        cls, models: Iterable[str], loras: Iterable[str], limits: Limits, addons: Addons | None = None
    ) -> Self:
        fields = {name for body in (Text2Img, Img2Img, Inpainting) for name in _fields_of(body)}
        return cls(
            frozenset(models),
            frozenset(loras),
            frozenset([*samplers.names(), samplers.FLOW[0]]),
            frozenset(fields),
            frozenset(TASKS),
            limits,
            published=True,
            controlnets=frozenset(addons.controlnets if addons else ()),
            ip_adapters=frozenset(addons.ip_adapters if addons else ()),
        )

    def facts(self) -> dict[str, Any]:
        """As a heartbeat says it."""
        sets = {name: sorted(getattr(self, name)) for name in _SETS if name != "models"}
        limits = dataclasses.asdict(self.limits)
        return {"models": sorted(self.models), **sets, "limits": limits, "published": self.published}

    @classmethod
    def read(cls, facts: dict[str, Any]) -> Self:
        """From a heartbeat. An older worker that does not say its limits counts as having the default ones."""
        sets = {name: frozenset(map(str, _list(facts.get(name)))) for name in _SETS}
        known = {f.name for f in dataclasses.fields(Limits)}
        limits = facts.get("limits") if isinstance(facts.get("limits"), dict) else {}
        bounds = {k: v for k, v in (limits or {}).items() if k in known and type(v) in (int, float)}
        return cls(**sets, limits=Limits(**bounds), published=facts.get("published") is True)

    def can_draw(
        self, error: Rejected, body: bytes, size: int, *, batch: bool, refused_by: Capabilities
    ) -> bool:
        """Whether a worker with these capabilities may draw what another one refused with `error`."""
        if error.code == "too_large":
            return size <= (self.limits.max_batch_bytes if batch else self.limits.max_body_bytes)
        try:
            document = load_object(body)
        except Rejected:
            return False
        if error.code == "unknown_model" and (error.field or "").startswith(("controlnet", "ip_adapter")):
            return self._knows_addons(document)
        if error.code == "unknown_model":
            refiner = document.get("refiner")
            named = refiner if error.field == "refiner.model" and isinstance(refiner, dict) else document
            return named.get("model") in self.models
        if error.code == "unknown_scheduler":
            return document.get("scheduler") in self.schedulers
        if error.code == "unknown_lora":
            return {
                lora.get("name") for lora in _list(document.get("loras")) if isinstance(lora, dict)
            } <= self.loras
        if isinstance(error, TooManyPixels):
            known = document.get("model") is None or document["model"] in self.models
            return known and error.pixels <= self.limits.for_model(*error.native).max_pixels
        if error.code != "invalid_manifest":
            return False
        if document.get("task") in self.tasks - refused_by.tasks:
            return True
        # Without places in a list: loras.0.weight is the field loras.weight.
        name = ".".join(part for part in (error.field or "").split(".") if not part.isdecimal())
        if any(field == name or field.startswith(f"{name}=") for field in self.fields - refused_by.fields):
            return True
        # With equal limits it is refused there too; a long body need not be parsed once more to know that.
        return self.limits != refused_by.limits and _fits(body, self.limits)

    def _knows_addons(self, document: dict[str, Any]) -> bool:
        """Whether this worker knows every ControlNet and the IP-Adapter that a request names."""
        nets = {one.get("name") for one in _list(document.get("controlnet")) if isinstance(one, dict)}
        asked = document.get("ip_adapter")
        adapter = asked.get("name") if isinstance(asked, dict) else None
        fits = (
            adapter in self.ip_adapters
            if isinstance(adapter, str)
            else (asked is None or bool(self.ip_adapters))
        )
        return nets <= self.controlnets and fits


class Fleet:
    """The other workers of one store, as one worker sees them. For one event loop."""

    def __init__(
        self, store: Store, session: str, own: Capabilities, *, lease: float, clock: Callable[[], float]
    ) -> None:
        """
        Args:
            lease: seconds that an unchanged heartbeat counts as alive, by our own clock.
        """
        self.own = own
        self._store = store
        self._session = session
        self._lease = lease
        self._clock = clock
        self._next_look = 0.0
        self._beats: dict[str, tuple[str, float, Capabilities]] = {}  # session to (etag, since, what it can)
        self._left: LruCache[str, float] = LruCache(_REMEMBERED)  # request to when we first left it

    async def leaves(self, name: str, error: Rejected, body: bytes, size: int, *, batch: bool) -> bool:
        """Whether to leave a request that we would refuse, because another worker can draw it.

        Args:
            name: the request's key with its version, or its message's id.
        """
        able = any(
            other.can_draw(error, body, size, batch=batch, refused_by=self.own)
            for other in await self._others()
        )
        return able and self._waited(name) < PATIENCE

    async def may_take_over(self, claim: Claim) -> bool:
        """Whether to take over a claim: we can draw its plan, or nobody else will."""
        if claim.batch or self._draws(self.own, claim):
            return True
        others = any(self._draws(other, claim) for other in await self._others())
        return self._waited(f"{claim.id} {claim.fingerprint}") >= (PATIENCE if others else TAKEOVER_PATIENCE)

    def _draws(self, worker: Capabilities, claim: Claim) -> bool:
        try:
            plan = read_plan(claim.plan)
        except ValueError:
            return worker is not self.own  # a newer version's: ours cannot read it
        if plan is None or isinstance(plan, Refusal):
            return True
        loras = {lora.name for lora in plan.loras} - plan.lora_versions.keys()
        known = (plan.model_version is not None or plan.model in worker.models) and loras <= worker.loras
        refiner = plan.refiner
        known &= refiner is None or refiner.version is not None or refiner.model in worker.models
        published = plan.model_version or plan.lora_versions or (refiner and refiner.version)
        known &= worker.published or not published
        known &= {one.name for one in plan.controlnet} <= worker.controlnets
        known &= plan.ip_adapter is None or plan.ip_adapter.name in worker.ip_adapters
        return known and _fits(claim.frozen.body(), worker.limits, plan)

    def _waited(self, name: str) -> float:
        now = self._clock()
        return now - self._left.setdefault(name, now)

    async def _others(self) -> list[Capabilities]:
        """The live ones. Their heartbeats are listed at most a few times a lease."""
        now = self._clock()
        if now >= self._next_look:
            with contextlib.suppress(StoreUnavailable):
                await self._look()
            self._next_look = self._clock() + self._lease / 6
        return [can for _, since, can in self._beats.values() if self._clock() - since < self._lease]

    async def _look(self) -> None:
        listed = [info async for info in self._store.list(layout.WORKERS)]
        beats = {info.key.removeprefix(layout.WORKERS): info for info in listed}
        beats.pop(self._session, None)
        self._beats = {session: beat for session, beat in self._beats.items() if session in beats}
        new = [
            (s, info) for s, info in beats.items() if s not in self._beats or self._beats[s][0] != info.etag
        ]
        await gather_bounded(new, _READS, lambda entry: self._read(*entry))

    async def _read(self, session: str, info: Info) -> None:
        try:
            facts = json.loads((await self._store.get(info.key)).body)
        except (NotFound, ValueError):
            return
        can = Capabilities.read(facts if isinstance(facts, dict) else {})
        self._beats[session] = (info.etag, self._clock(), can)


def _fields_of(body: type[BaseModel], path: str = "") -> Iterator[str]:
    """The fields of a manifest: "output", inner ones as "output.format", named values as "output.format=png".

    One that may be a list where it was one value in older versions is "image=list", too.
    """
    for name, info in body.model_fields.items():
        yield path + name
        if info.annotation == get_args(OneOrSeveral)[0]:
            yield f"{path}{name}=list"
        for part in (info.annotation, *get_args(info.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from _fields_of(part, f"{path}{name}.")
            elif isinstance(part, str):  # of a `Literal`
                yield f"{path}{name}={part}"


def _fits(body: bytes, limits: Limits, plan: Plan | None = None) -> bool:
    """Whether a request, and what its plan fills in, is within limits."""
    try:
        parse_manifest(body, limits)
        if plan is not None:
            check_numbers(plan.steps, plan.cfg_scale, limits)
    except Rejected:
        return False
    return True


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
