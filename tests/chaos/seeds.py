"""Many more simulated histories than CI has time for, in order, as long as one likes.

    python -m tests.chaos.seeds --seeds 100000 [--queue] [--first 5000] [--seconds 600]

A seed that breaks the law is named and ends the run; `replay` shows its whole history.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from tests.chaos.mailroom import QueueSimulation
from tests.chaos.simulation import Simulation, history
from tests.chaos.still import live

STEPS = {False: 200, True: 250}  # of chaos; as the tests have it, so that their seeds are the first of these


def replay(seed: int, *, queue: bool) -> list[str]:
    """One history, line by line; raises what it broke."""
    make = QueueSimulation if queue else Simulation
    return live(history(make(seed), STEPS[queue]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--queue", action="store_true", help="with a queue")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after these")
    asked = parser.parse_args()
    logging.disable(logging.CRITICAL)
    began, events, seed = time.monotonic(), 0, asked.first
    while seed < asked.first + asked.seeds and time.monotonic() - began < asked.seconds:
        try:
            events += len(replay(seed, queue=asked.queue))
        except Exception as error:
            print(f"seed {seed} breaks the law: {error}", flush=True)
            return 1
        seed += 1
        if seed % 1000 == 0:
            print(f"{seed - asked.first} histories, {events} events, nothing broken", flush=True)
    seconds = time.monotonic() - began
    print(f"seeds {asked.first} to {seed - 1}: {events} events in {seconds:.0f} s, nothing broken")
    return 0


if __name__ == "__main__":
    sys.exit(main())
