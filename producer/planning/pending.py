"""What waits in a store before new requests: what is in the inbox, and what workers have claimed."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infra.gather import gather_bounded
from producer.planning.planner import Planner, size_of
from producer.planning.work import Work, piece_of
from producer.request_state import read_progress
from schemas import layout
from schemas.batch import split_rows
from schemas.errors import NotFound, Rejected, TooLarge
from schemas.plan import Plan, read_plan

if TYPE_CHECKING:
    from infra.stores.store import Info, Store

READ = 200  # objects of each lane, and as many claims, that are read; the others count like the mean of these
LISTED = 100_000  # of each; a hundred calls in a bucket
_AT_ONCE = 16


@dataclass
class Pending:
    """Work that is not done, by lane (True: express)."""

    lanes: dict[bool, Work] = field(default_factory=lambda: {True: Work(), False: Work()})
    listed: int = 0  # requests and claims
    read: int = 0  # of them
    cut: bool = False  # there are more than were listed


async def pending(store: Store, planner: Planner) -> Pending:
    """Look at the inbox and the claims. Raises `StoreUnavailable`."""
    found = Pending()
    requests: dict[bool, list[Info]] = {True: [], False: []}
    async for info in store.list(layout.REQUESTS):
        if layout.is_request(info.key):
            requests[info.key.startswith(layout.EXPRESS)].append(info)
        if sum(map(len, requests.values())) >= LISTED:
            found.cut = True
            break
    claims: dict[str, Info] = {}  # the highest epoch of each id: a listing is in order
    async for info in store.list(layout.CLAIMS):
        claim = layout.parse_claim(info.key)
        if claim is not None and not claim[2]:
            claims[claim[0]] = info
        if len(claims) >= LISTED:
            found.cut = True
            break
    for express, infos in requests.items():
        unclaimed = [info for info in infos if layout.request_id(info.key) not in claims]

        async def dropped(info: Info, express: bool = express) -> tuple[bool, Work]:
            return express, await _dropped(store, planner, info)

        await _sampled(found, unclaimed, dropped)

    async def held(info: Info) -> tuple[bool, Work]:
        return await _claimed(store, planner, info)

    await _sampled(found, list(claims.values()), held)
    return found


async def _sampled(
    found: Pending, infos: Sequence[Info], read: Callable[[Info], Awaitable[tuple[bool, Work]]]
) -> None:
    """Read some objects, spread evenly over all, and count all like those."""
    step = max(1, -(-len(infos) // READ))
    some = infos[::step]
    factor = len(infos) / len(some) if some else 0.0
    for express, work in await gather_bounded(some, _AT_ONCE, read):
        found.lanes[express] = Work.of([found.lanes[express], work.times(factor)])
    found.listed += len(infos)
    found.read += len(some)


async def _dropped(store: Store, planner: Planner, info: Info) -> Work:
    """The work of a request object; none where it is gone, or can never be drawn."""
    work, batch = Work(), layout.is_batch(info.key)
    limits = planner.limits
    try:
        most = limits.max_batch_bytes if batch else limits.max_body_bytes
        body = (await store.get(info.key, max_bytes=most)).body
        bodies = [row.body for row in split_rows("x", body, limits)] if batch else [body]
    except (NotFound, TooLarge, Rejected):
        return work
    for one in bodies:
        with contextlib.suppress(Rejected):
            work.add(await planner.body(one, ours=False))
    return work


async def _claimed(store: Store, planner: Planner, info: Info) -> tuple[bool, Work]:
    """The lane of a claim, and what is left of its work. The rows of a batch have requests or claims of their own."""
    from infra.claims.claim import Claim

    work = Work()
    try:
        claim = Claim.model_validate_json((await store.get(info.key)).body)
        plan = None if claim.batch else read_plan(claim.plan)
    except (NotFound, ValueError):
        return False, work
    if not isinstance(plan, Plan) or await store.head(layout.result_key(claim.id)) is not None:
        return claim.in_express_lane, work
    with contextlib.suppress(Rejected):
        name = plan.model + (f"@{plan.model_version}" if plan.model_version else "")
        piece = piece_of(plan, size_of((await planner.card(name))[1]))
        progress = await read_progress(store, claim.id)
        done = progress.steps_done / progress.steps_total if progress and progress.steps_total else 0.0
        work.add(piece, max(0.0, 1 - done))
    return claim.in_express_lane, work
