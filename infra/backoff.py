"""How long to wait before a call is tried again."""

from __future__ import annotations

import random
from collections.abc import Iterator


def backoff(
    first: float, longest: float, rng: random.Random | None = None, *, growth: float = 2.0
) -> Iterator[float]:
    """Yield waits in seconds, without end: `first`, then each `growth` times the last, up to `longest`.

    Args:
        rng: draws each wait between 0 and twice that length (full jitter), so that clients that failed
            together do not all try again together; None for waits without jitter.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    wait = min(first, longest)
    while True:
        yield wait if rng is None else rng.uniform(0, 2 * wait)
        wait = min(growth * wait, longest)
