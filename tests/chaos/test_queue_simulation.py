"""The queue under every schedule: messages come twice, in any order, or never; workers die with some in hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from consumer.intake.queue import PendingMessage, QueueReader
from schemas.errors import StoreUnavailable
from tests.chaos.depth import is_long
from tests.chaos.law import Broken
from tests.chaos.mailroom import QueueSimulation
from tests.chaos.simulation import history
from tests.chaos.still import live

HISTORIES = 20_000 if is_long() else 160
pytestmark = pytest.mark.timeout(0 if is_long() else 900)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings are meant here, and slow."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def live_through(seeds: range, messages: type[QueueReader] = QueueReader) -> None:
    for seed in seeds:
        try:
            live(history(QueueSimulation(seed, messages=messages), 250))
        except BaseException as error:
            error.add_note(f"replay it: live(history(QueueSimulation({seed}), 250))")
            raise


@pytest.mark.parametrize("block", range(4))
def test_no_history_with_a_queue_breaks_the_law(block: int) -> None:
    """No message is deleted before its result exists, and all ends with an empty queue."""
    size = HISTORIES // 4
    live_through(range(block * size, (block + 1) * size))


def test_the_same_number_gives_the_same_history_with_a_queue() -> None:
    """Line for line, timers included."""
    assert live(history(QueueSimulation(3), 250)) == live(history(QueueSimulation(3), 250))


class DeletesWhatIsClaimed(QueueReader):
    """The message goes when the claim exists, as if the worker could not die."""

    async def _handle(self, pending: PendingMessage) -> None:
        await super()._handle(pending)
        if any(outcome.held for outcome in pending.requests):
            pending.queue.finish(pending.message)


class DeletesWhatItCouldNotTake(QueueReader):
    """A store that does not answer is taken for an end."""

    async def _claim(self, item, message, number):  # type: ignore[no-untyped-def]
        try:
            return await super()._claim(item, message, number)
        except StoreUnavailable:
            return None


class KeepsForEver(QueueReader):
    """What is finished is not deleted."""

    async def _check_pending(self) -> None:
        return None


@pytest.mark.parametrize("messages", [DeletesWhatIsClaimed, DeletesWhatItCouldNotTake, KeepsForEver])
def test_a_broken_doorbell_is_noticed(messages: type[QueueReader]) -> None:
    """Each of its rules is needed."""
    with pytest.raises(Broken, match=r"^invariant [36]: "):
        live_through(range(60), messages)
