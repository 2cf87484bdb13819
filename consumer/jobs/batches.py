"""A batch, which is a file of many requests: drops each row as a request, waits for all, and sums up.

Rows have fixed names, so after a crash another worker may repeat any of this without harm. Only one row's result
is in memory at a time.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer.jobs import summary
from consumer.jobs.row_spool import RowSpool
from infra.backoff import backoff
from infra.claims.claim import answers
from infra.gather import gather_bounded
from schemas import layout
from schemas.batch import Row, split_rows
from schemas.errors import NotFound, Rejected
from schemas.result import BatchResult, Failure, Result, Status, Timings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from infra.claims.claims import Held
    from infra.stores.store import Store
    from schemas.limits import Limits

log = logging.getLogger(__name__)

_IN_FLIGHT = 16  # store calls at a time
_POLL_INTERVAL = (0.1, 5.0)  # seconds between two looks for finished rows: first, longest
_IDLE_FACTOR = 9  # the pause is at least this many times a look, which takes longer the more rows have ended
_PAGE = 1000  # keys of a listing that cost one call
_READS = 4  # rows that are asked for one by one rather than listing another page


@dataclass(frozen=True, slots=True)
class OpenRow:
    """A row that was dropped, without its body, which its request object and then its claim carry."""

    line: int
    custom_id: str | None
    id: str
    fingerprint: str

    @classmethod
    def of(cls, row: Row) -> OpenRow:
        return cls(row.line, row.custom_id, row.id, layout.fingerprint(row.body))


@dataclass
class Batches:
    """Runs the batches of one worker."""

    store: Store
    limits: Limits
    clock: Callable[[], float]
    session: str

    async def run(self, held: Held) -> Result:
        """The result of a claimed batch, once all its rows have ended; the caller commits it."""
        began, claim = self.clock(), held.claim
        try:
            rows = await asyncio.to_thread(split_rows, claim.id, claim.frozen.body(), self.limits)
        except Rejected as error:
            return self._result(held, began, "failed", Failure.of(error))
        await self._drop(claim.id, rows)
        waiting = [OpenRow.of(row) for row in rows]
        del rows  # the bodies may be hundreds of megabytes
        with RowSpool() as spool:
            await self._wait(claim.id, waiting, spool)
            lines = [row.line for row in waiting]
            status, failure, batch = await summary.write(self.store, claim.id, lines, spool)
        return self._result(held, began, status, failure, batch)

    async def _drop(self, batch: str, rows: list[Row]) -> None:
        """Create the request of each row that has not ended."""
        folder = layout.result_folder(batch)  # an earlier attempt may have dropped all rows
        infos = self.store.list(folder)
        ended = {id async for info in infos if (id := layout.parse_result(info.key)) is not None}
        fresh = [row for row in rows if row.id not in ended]
        await gather_bounded(
            fresh,
            _IN_FLIGHT,
            lambda row: self.store.create(
                layout.request_key(row.id), row.body, content_type=layout.COMMIT_TYPE
            ),
        )
        log.info("batch dropped", extra={"id": batch, "rows": len(rows), "new": len(fresh)})

    async def _wait(self, batch: str, rows: list[OpenRow], spool: RowSpool) -> None:
        """Fill the spool with every row, once all have ended."""
        pauses = backoff(*_POLL_INTERVAL)
        waiting = {row.id: row for row in rows}
        pages = 1.0  # that the last listing had
        before_last = self.clock()  # when the look before this one began
        while waiting:
            began, before = self.clock(), len(waiting)
            one_by_one = len(waiting) <= _READS * pages  # cheaper than to list what has ended long since
            if one_by_one:
                ended: Iterable[str] = list(waiting)
            else:
                ended, keys = await self._newly_ended(batch, waiting)
                pages = max(1.0, keys / _PAGE)
            listed = self.clock()

            async def read(id: str) -> None:
                if await self._read(waiting[id], spool):
                    del waiting[id]

            await gather_bounded(ended, _IN_FLIGHT, read)
            now = self.clock()
            news = before - len(waiting)
            if news:
                pauses = backoff(*_POLL_INTERVAL)
            # Only what a look costs that finds nothing: results are read once, however often we look.
            pause = max(next(pauses), _IDLE_FACTOR * ((now if one_by_one else listed) - began))
            if (
                news
            ):  # not longer than the other rows take, counted from this look, at the rate of the last ones
                rest = len(waiting) * (began - before_last) / news - (now - began)
                pause = min(pause, max(_POLL_INTERVAL[0], rest))
            before_last = began
            if waiting:
                await asyncio.sleep(pause)

    async def _newly_ended(self, batch: str, waiting: dict[str, OpenRow]) -> tuple[list[str], int]:
        """The rows among `waiting` that have a result, and how many keys were listed for that."""
        # Rows end in about the order of their keys, so most of those that have ended come before the first that waits.
        first = min(map(layout.result_folder, waiting))
        ended, keys = [], 0
        async for info in self.store.list(layout.result_folder(batch), start_after=first):
            keys += 1
            id = layout.parse_result(info.key)
            # The result of a row whose id another body has is under `<id>~<hash>`.
            row = id if id is None or id in waiting else id.rpartition("~")[0]
            if row in waiting:
                ended.append(row)
        return list(dict.fromkeys(ended)), keys

    async def _read(self, row: OpenRow, spool: RowSpool) -> bool:
        """Put a row's result into the spool; False when it has not ended."""
        for id in (row.id, layout.other_body_id(row.id, row.fingerprint)):
            try:
                body = (await self.store.get(layout.result_key(id))).body
            except NotFound:
                return False
            try:
                result = Result.model_validate_json(body)
            except ValueError:  # somebody else wrote it; else this batch would wait for ever
                result = Result.damaged(id, layout.result_key(id))
            if answers(result.fingerprint, row.fingerprint):
                spool.add(row.line, summary.facts_of(row, result))
                return True
        return False

    def _result(
        self,
        held: Held,
        began: float,
        status: Status,
        failure: Failure | None,
        batch: BatchResult | None = None,
    ) -> Result:
        timings = Timings(total=round(self.clock() - began, 4))
        return held.claim.ended(
            status, failure, worker=self.session, task="batch", timings=timings, batch=batch
        )
