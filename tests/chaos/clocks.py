"""A worker whose clocks are wrong: `spoil` is called in a new worker process before it begins.

Its wall clock is off by days and jumps about; its monotonic clock began at another time than the
others', as on another machine.
"""

from __future__ import annotations

import datetime
import random
import time

DAY = 86_400.0  # seconds


def spoil(seed: int, since: float) -> None:
    """Put this process's clocks wrong.

    Args:
        since: seconds by which the monotonic clock is ahead.
    """
    wall, monotonic = time.time, time.monotonic
    began = monotonic()

    def off() -> float:
        """Another error every fifth of a second, the same for who asks twice."""
        return random.Random(f"{seed} {int((monotonic() - began) * 5)}").uniform(-DAY, DAY)

    class Wrong(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Wrong:
            return cls.fromtimestamp(time.time(), tz)

    time.time = lambda: wall() + off()
    time.time_ns = lambda: int(time.time() * 1e9)
    time.monotonic = lambda: monotonic() + since
    datetime.datetime = Wrong  # type: ignore[misc]
    import schemas.manifest
    import schemas.result

    for module in (schemas.manifest, schemas.result):  # where a worker reads the date
        assert module.datetime.now  # type: ignore[attr-defined]
        module.datetime = Wrong  # type: ignore[attr-defined]
